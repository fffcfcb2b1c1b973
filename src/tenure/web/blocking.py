"""Requests on a host that blocks: what ``boundary`` decides is carried out in the thread that asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from tenure import callsite
from tenure.core.database import Database
from tenure.core.plan import drive
from tenure.web.answering import Answers, answering
from tenure.web.boundary import Boundary
from tenure.web.request import NOTHING, Request, Step


class BlockingBoundary(Boundary):
    """What an application on a host that blocks has decided: its database must be a ``Database``. The host is on WSGI."""

    serves = Database

    def cookies(self, given: Any) -> str | None:
        """As in WSGI's environ."""
        return given.get("HTTP_COOKIE")  # type: ignore[no-any-return]

    def is_secure(self, given: Any) -> bool:
        """As in WSGI's environ."""
        return given.get("wsgi.url_scheme") == "https"  # type: ignore[no-any-return]

    if TYPE_CHECKING:

        def here(self) -> BlockingRequest | None:
            """As ``Boundary``."""


class BlockingAnswer(ABC):
    """What is answered on a host that blocks, by a framework that has error handlers."""

    boundary: Boundary

    @abstractmethod
    def settle(self, status: int, error: BaseException | None = None) -> None:
        """As ``BlockingRequest``."""

    def answer(self, host: Answers, *given: Any) -> Any:
        """What *host* answers, settled. Error handlers see what came in place of a COMMIT, as if the handler had raised it.

        Args:
            host: How the framework answers.
            given: What it wants to be told each time.

        """
        response = None
        try:
            response = host.answer(*given)
            self.settle(response.status_code)
        except Exception as error:
            return drive(answering(self, host, given, error, committing=response is not None), _call)
        return response


class BlockingRequest(Request, BlockingAnswer):
    """A request of a ``Database``, on a host that blocks."""

    def settle(self, status: int, error: BaseException | None = None) -> None:
        """Commit or roll back, before the first byte leaves. Once: later calls do nothing.

        Args:
            status: The status of the answer.
            error: What the handler raised, if it raised something that is not itself an answer.

        Raises:
            Exception: The COMMIT failed, or a failure had been swallowed; the answer must be an error.

        """
        if self.wanted or self.settled is not None:
            settled = self.settle_unopened(status, error)
        else:  # the same, for most requests that have no unit
            self.settled, self.meant = NOTHING, (status, error)
            settled = self.stands()
        if not settled:
            drive(self.settling(status, error), _call)

    def starts(self, status: int) -> Sequence[tuple[str, str]]:
        """An answer with *status* is about to be sent: settle, and give the headers that it is to have besides its own.

        Raises:
            Exception: As ``settle``. Who sends may catch it, and answer for it; for an answer that would be a success it is raised again.

        """
        if self.failed is not None:
            self.refuse_success(status)
        if self.settled is None:
            try:
                self.settle(status)
            except BaseException as error:
                self.failed = error
                raise
        self.begun = True
        return () if self.client is None and self.together is None else self.set_cookies()

    def finish(self, error: BaseException | None = None) -> None:
        """The body was sent, or the client has left: the unit ends. Once, from any thread; later calls do nothing."""
        if not self.finish_unopened():
            drive(self.finishing(error, callsite.here(2)), _call)

    def left(self, *_whatever: Any) -> None:
        """The host goes on to something else, and has what is whole; a body that is made while it is sent ends by itself."""
        try:
            if self.whole:
                self.over = not self.wanted
                if self.wanted:
                    self.finish()
        finally:
            self.leave(self.token)


def _call(step: Step) -> Any:
    return step.call()


class Begun:
    """Parts of a body, of which some may be made before they are asked for."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self._given = parts
        self._parts = iter(parts)
        self._ahead: list[Any] = []

    def ahead(self) -> list[Any]:
        """Make one part before it is asked for, as where only that brings the status; an empty list when there is none."""
        for part in self._parts:
            self._ahead.append(part)
            return [part]
        return []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._ahead.pop(0) if self._ahead else next(self._parts)

    def close(self) -> None:
        """Close what the application gave."""
        if (close := getattr(self._given, "close", None)) is not None:
            close()


class BlockingBody(Begun):
    """A body that is made while it is sent, each part within its request.

    Its unit ends with it, with ``close()`` when the client has left, or when a server drops it.

    Args:
        request: The request that it answers.
        parts: What the application gave.

    """

    def __init__(self, request: BlockingRequest, parts: Iterable[Any]) -> None:
        self.request = request
        self._closed = False
        super().__init__(parts)

    def __next__(self) -> Any:
        if self._ahead:
            return self._ahead.pop(0)
        token = self.request.enter()
        try:
            return super().__next__()
        except StopIteration:
            self.request.finish()
            raise
        except BaseException as error:
            self.request.finish(error)
            raise
        finally:
            self.request.leave(token)

    def close(self, error: BaseException | None = None) -> None:
        """Close what the application gave, once, and end the unit. *error* is what kept the body from being sent."""
        if self._closed:
            return
        self._closed = True
        token = self.request.enter()
        try:
            super().close()
        finally:
            try:
                self.request.finish(error)
            finally:
                self.request.leave(token)

    def __del__(self) -> None:
        self.close()


def name_of(environ: dict[str, Any]) -> str:
    """``GET /path``, as WSGI has it; with the path of an application that another has mounted."""
    return f"{environ.get('REQUEST_METHOD', '?')} {environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"


def is_whole(body: Any, environ: dict[str, Any]) -> bool:
    """Whether no code of the application runs while *body* is sent: it is there, or a file that the server may send by itself."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(body, (list, tuple)) or (isinstance(wrapper, type) and isinstance(body, wrapper))
