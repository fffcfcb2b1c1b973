"""Any WSGI application: one unit for each request, settled before ``start_response`` is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeAlias

from tenure.core.database import Database
from tenure.web.boundary import BlockingBoundary, BlockingRequest, Commit, CommitIf

WSGIApplication: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]


class UnitMiddleware:
    """Wraps a WSGI application: ``app = UnitMiddleware(app, db)``.

    COMMIT is done before the first byte leaves. If it fails, the error goes to the server, which answers 500.

    Args:
        app: The application.
        database: Whose units its requests are.
        commit_if: Replaces the rule that a status below 400 commits.
        commit: ``"auto"``, or ``"explicit"`` for code that calls ``commit()`` itself.

    """

    def __init__(
        self, app: WSGIApplication, database: Database, *, commit_if: CommitIf | None = None, commit: Commit = "auto"
    ) -> None:
        self.app = app
        self.boundary = BlockingBoundary(database, commit_if=commit_if, commit=commit)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        if self.boundary.inside():
            return self.app(environ, start_response)
        request = BlockingRequest(self.boundary, f"{environ.get('REQUEST_METHOD', '?')} {environ.get('PATH_INFO', '')}")
        answer = _Answer(request, start_response)
        try:
            body = answer.begin(self.app(environ, answer.start))
        except BaseException as error:
            request.finish(error)
            raise
        finally:
            request.leave(request.token)
        return body


class _Answer:
    """What the application wants to answer, withheld until its work is settled."""

    def __init__(self, request: BlockingRequest, start_response: Callable[..., Any]) -> None:
        self.request = request
        self.start_response = start_response
        self.withheld: tuple[Any, ...] | None = None
        self.write: Callable[[bytes], Any] | None = None

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], Any]:
        """The ``start_response`` that the application sees."""
        if self.write is not None:  # the answer has begun: only an error may come now, and the server raises it
            return self.start_response(status, headers, exc_info)  # type: ignore[no-any-return]
        self.withheld = (status, headers) if exc_info is None else (status, headers, exc_info)
        return self.write_at_once

    def started(self) -> bool:
        """Whether the application has said what it answers."""
        return self.withheld is not None

    def write_at_once(self, data: bytes) -> None:
        """The legacy ``write()``: it sends, so the work is settled first."""
        self.release()
        assert self.write is not None
        self.write(data)

    def release(self) -> None:
        """Settle the work by the status, then let the answer begin."""
        if self.write is not None:
            return
        if self.withheld is None:
            raise AssertionError("the WSGI application gave a body without calling start_response")
        self.request.settle(int(self.withheld[0].split(None, 1)[0]))
        self.write = self.start_response(*self.withheld)

    def begin(self, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """The body to send for the application's *iterable*."""
        if isinstance(iterable, (list, tuple)) and self.started():
            self.release()
            self.request.finish()
            return iterable
        body = _Body(self, iterable)
        try:
            body.reach_status()
        except BaseException:
            body.close_iterable()
            raise
        return body


class _Body:
    """A body that is made while it is sent. Its unit ends with it, with ``close()``, or when a server drops it."""

    def __init__(self, answer: _Answer, iterable: Iterable[bytes]) -> None:
        self.answer = answer
        self.iterable = iterable
        self.iterator: Iterator[bytes] | None = None
        self.first: list[bytes] = []

    def reach_status(self) -> None:
        """A generator may call ``start_response`` as late as with its first chunk; run it that far."""
        if not self.answer.started():
            self.iterator = iter(self.iterable)
            for chunk in self.iterator:
                self.first.append(chunk)
                if self.answer.started():
                    break
        self.answer.release()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if self.first:
            return self.first.pop(0)
        request = self.answer.request
        token = request.enter()
        try:
            if self.iterator is None:
                self.iterator = iter(self.iterable)
            return next(self.iterator)
        except StopIteration:
            request.finish()
            raise
        except BaseException as error:
            request.finish(error)
            raise
        finally:
            request.leave(token)

    def close(self) -> None:
        """Called by the server when the body was sent or the client has left."""
        token = self.answer.request.enter()
        try:
            self.close_iterable()
        finally:
            self.answer.request.finish()
            self.answer.request.leave(token)

    def close_iterable(self) -> None:
        """Close the application's own iterable, as WSGI asks."""
        close = getattr(self.iterable, "close", None)
        if close is not None:
            close()

    def __del__(self) -> None:
        if not self.answer.request.over:  # a server that never called close()
            self.answer.request.finish()
