"""Sanic: ``Tenure(app, db)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from sanic import HTTPResponse, Request, Sanic, text
from sanic.exceptions import SanicException
from sanic.http import Stage

from tenure.core.base import BaseDatabase
from tenure.exceptions import BadOption
from tenure.web.aio import LoopBoundary, LoopRequest, LoopRules, ServerBoundary
from tenure.web.answers import REFUSED, refused
from tenure.web.registration import Extension, check_in_time, claim


class Tenure(Extension[Any, BaseDatabase[Any]]):
    """Gives each request of a Sanic application its unit.

    Args:
        app: The application; or call ``init_app`` later.
        database: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` that handlers use in threads.
        rules: ``close=`` drains and closes the database when the server has stopped: the seconds that open units have, or True for
            one; by default whoever made it closes it. ``commit_if=`` replaces the rule that a status below 400 commits; these and
            the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application cannot be registered (any more).

    """

    kind = Sanic

    def __init__(self, app: Any = None, database: BaseDatabase[Any] | None = None, **rules: Unpack[LoopRules]) -> None:
        super().__init__(app, database, rules)

    def register(self, app: Any, database: BaseDatabase[Any], rules: Mapping[str, Any]) -> None:
        """Put units around the requests of *app*."""
        boundary = ServerBoundary(database, **rules)
        check_in_time(app.state.is_started, repr(app.name), "it is started")
        claim(app.ctx.__dict__.setdefault("tenure", []), database, "Tenure(app, db)")
        units = _Units(app, boundary)
        for told in (units.handle, units.send, units.response, units.exception, units.complete):
            app.add_signal(told, f"http.lifecycle.{told.__name__}")
        app.before_server_start(_starts)
        app.after_server_stop(boundary.stopped)


class _Units:
    """What Sanic's signals mean for the units of requests. A connection is one task, in which request comes after request."""

    def __init__(self, app: Any, boundary: LoopBoundary) -> None:
        self.handler = app.error_handler.lookup
        self.boundary = boundary

    async def handle(self, request: Any) -> None:
        """A request is about to be handled."""
        if self.boundary.inside():
            return
        work, stream = self.boundary.begin(f"{request.method} {request.path}", request), request.stream

        async def head(data: bytes, end_stream: bool) -> None:
            if not work.over:
                await _answered(work, stream.response)
            await onwards(data, end_stream)

        # Not documented: there is no signal for an answer that the handler sends by itself, but for its bytes, which is too late for a
        # header. tests/web/test_sanic.py fails when it changes.
        onwards, stream.response_func = stream.response_func, head

    async def send(self, data: bytes) -> None:
        """The server is about to send."""
        if data.startswith(b"HTTP/1.1 101 ") and (work := self.boundary.here()) is not None:
            await work.starts(101)

    async def response(self, request: Any, response: Any) -> None:  # noqa: ARG002 - Sanic passes it by name
        """The answer is known; nothing of it was sent, or all but its end."""
        if (work := self.boundary.here()) is not None:
            await _answered(work, response)
            await work.end()  # nothing may stay behind for the next request of the connection

    async def exception(self, request: Any, exception: BaseException) -> None:
        """Sanic is about to ask its exception handlers, if nothing was sent."""
        if (work := self.boundary.here()) is None:
            return
        work.handed_over()  # from here on it is they who answer
        if request.stream is None or request.stream.stage is not Stage.HANDLER:
            await work.end(exception)
        elif not isinstance(exception, SanicException) and self.handler(exception, request.name) in (None, _refused):
            await work.settle(500, exception)

    async def complete(self, conn_info: Any) -> None:  # noqa: ARG002 - Sanic passes it by name
        """The connection has ended, maybe before its last request had an answer."""
        if (work := self.boundary.here()) is not None:
            await work.end()


async def _answered(work: LoopRequest, response: Any) -> None:
    for name, value in await work.starts(response.status):
        response.headers.add(name, value)


async def _starts(app: Any) -> None:
    """The server is about to start, and all exception handlers are known."""
    if app.asgi:
        raise BadOption(
            f"{app.name!r} runs on an ASGI server, where Sanic does not tell when it sends. Write app = UnitMiddleware(app, db), of"
            " tenure.web.asgi, in place of Tenure(app, db)."
        )
    for kind in REFUSED:
        if app.error_handler.lookup(kind("")) is None:
            app.error_handler.cached_handlers.pop((kind, None), None)
            app.error_handler.add(kind, _refused)


def _refused(_request: Request[Any, Any], error: Exception) -> HTTPResponse:
    answer = refused(error)
    return text(answer.status, answer.code, answer.headers)
