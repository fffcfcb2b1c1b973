"""Requests on a host that blocks: what ``boundary`` decides is carried out in the thread that asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from tenure import callsite
from tenure.core.database import Database
from tenure.core.plan import drive
from tenure.web.boundary import Boundary
from tenure.web.request import Request, Step


class BlockingBoundary(Boundary):
    """What an application on a host that blocks has decided: its database must be a ``Database``."""

    serves = Database


class BlockingRequest(Request):
    """A request of a ``Database``, on a host that blocks."""

    def settle(self, status: int, error: BaseException | None = None) -> None:
        """Commit or roll back, before the first byte leaves. Once: later calls do nothing.

        Args:
            status: The status of the answer.
            error: What the handler raised, if it raised something that is not itself an answer.

        Raises:
            Exception: The COMMIT failed, or a failure had been swallowed; the answer must be an error.

        """
        if not self.settle_unopened(status, error):
            drive(self.settling(status, error), _call)

    def finish(self, error: BaseException | None = None) -> None:
        """The body was sent, or the client has left: the unit ends. Once, from any thread; later calls do nothing."""
        if not self.finish_unopened():
            drive(self.finishing(error, callsite.here(2)), _call)


def _call(step: Step) -> Any:
    return step.call()


class BlockingBody:
    """A body that is made while it is sent, each part within its request.

    Its unit ends with it, with ``close()`` when the client has left, or when a server drops it.

    Args:
        request: The request that it answers.
        parts: What the application gave.

    """

    def __init__(self, request: BlockingRequest, parts: Iterable[Any]) -> None:
        self.request = request
        self._closed = False
        self._given = parts
        self._ahead: list[Any] = []
        self._parts = iter(parts)

    def ahead(self) -> bool:
        """Make one part before it is asked for, as where only that brings the status; False when there is none."""
        for part in self._parts:
            self._ahead.append(part)
            return True
        return False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._ahead:
            return self._ahead.pop(0)
        token = self.request.enter()
        try:
            return next(self._parts)
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
            if (close := getattr(self._given, "close", None)) is not None:
                close()
        finally:
            try:
                self.request.finish(error)
            finally:
                self.request.leave(token)

    def __del__(self) -> None:
        self.close()
