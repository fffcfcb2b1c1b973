"""What a framework answers by its own error handlers: for a COMMIT that failed, and to a client that may come again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Protocol

from tenure.web.answers import refusal
from tenure.web.request import Step


class Answers(Protocol):
    """How a framework answers a request. On an event loop ``answer`` and ``handled`` are awaited."""

    @property
    def answer(self) -> Callable[..., Any]:
        """Gives the answer, as handlers and error handlers make it; raises what none of them handles."""
        ...

    @property
    def handled(self) -> Callable[..., Any]:
        """Gives what the error handlers answer for an error, its first argument; raises that where there is none."""
        ...

    def exception(self, status: int) -> Exception:
        """The framework's own exception with *status*, for which an application may have an error handler."""
        ...


class Settles(Protocol):
    """What is settled by an answer."""

    @property
    def boundary(self) -> Any:
        """What the application has decided."""
        ...

    @property
    def settle(self) -> Any:
        """Commit or roll back."""
        ...


def answering(
    request: Settles, host: Answers, given: tuple[Any, ...], error: Exception, *, committing: bool
) -> Generator[Step, Any, Any]:
    """The plan for the answer when *error* was raised.

    Args:
        request: What is settled.
        host: How the framework answers.
        given: What it wants to be told each time.
        error: What was raised.
        committing: There was an answer, and *error* came in place of its COMMIT: no error handler has seen it.

    """
    if committing:
        try:
            return (yield Step(None, partial(host.handled, error, *given)))
        except Exception as again:
            error = again
    if not request.boundary.explicit:  # else the handler of a 500 may have something to commit
        yield Step(None, partial(request.settle, 500, error))
    refused = refusal(error)
    if refused is None:
        raise error
    response = yield Step(None, partial(host.handled, host.exception(refused.code), *given))
    response.headers.update(refused.headers)
    return response
