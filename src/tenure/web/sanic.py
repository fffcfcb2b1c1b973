"""Sanic: ``Tenure(app, db)``."""

from __future__ import annotations

from typing import Any, Final, Unpack, cast

from sanic import HTTPResponse, Request, Sanic, text
from sanic.exceptions import SanicException
from sanic.http import Stage

from tenure.core.base import BaseDatabase
from tenure.exceptions import BadOption
from tenure.web.aio import LoopBoundary, LoopRequest, check_close
from tenure.web.answers import REFUSED, refusal
from tenure.web.boundary import Rules, chosen, enlist

_STATUS: Final = slice(9, 12)  # of b"HTTP/1.1 200 OK"
_CONTINUE: Final = 100
_SWITCHING_PROTOCOLS: Final = 101  # a WebSocket


class Tenure:
    """Gives each request of a Sanic application its unit.

    Args:
        app: The application; or call ``init_app`` later.
        database: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` that handlers use in threads.
        close: Drain and close the database when the server has stopped: the seconds that open units have, or True for one.
            Default False: whoever made it closes it.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application cannot be registered (any more).

    """

    def __init__(
        self,
        app: Any = None,
        database: BaseDatabase[Any] | None = None,
        *,
        close: bool | float = False,
        **rules: Unpack[Rules],
    ) -> None:
        self._database = database
        self._rules = rules
        self._close = check_close(close)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Any, database: BaseDatabase[Any] | None = None) -> None:
        """Register *app*, with *database* where the constructor got none.

        Raises:
            BadOption: As the constructor.

        """
        if not isinstance(app, Sanic):
            raise BadOption(f"{type(app).__name__} is not a Sanic application. Give Tenure(app, db) the Sanic().")
        database = chosen(database, self._database)
        boundary = LoopBoundary(database, **self._rules)
        sanic = cast("Any", app)  # whose types are generic in parameters that nobody gives
        if sanic.state.is_started:
            raise BadOption(f"{sanic.name!r} has been started already. Register it where it is made.")
        enlist(sanic.ctx.__dict__.setdefault("tenure", []), database, sanic.name)
        units = _Units(sanic, boundary, close=self._close)
        for event, handler in units.signals.items():
            sanic.add_signal(handler, event)
        sanic.before_server_start(units.starts)
        sanic.after_server_stop(units.stopped)


class _Units:
    """The units of an application's requests. A connection is one task, in which request comes after request."""

    def __init__(self, app: Any, boundary: LoopBoundary, *, close: bool | float) -> None:
        self.app = app
        self.boundary = boundary
        self.close = close
        self.signals: dict[str, Any] = {
            "http.lifecycle.handle": self.begins,
            "http.lifecycle.send": self.sends,
            "http.lifecycle.response": self.answers,
            "http.lifecycle.exception": self.raised,
            "http.lifecycle.complete": self.closed,
        }

    def here(self) -> LoopRequest | None:
        work = self.boundary.here()
        return work if isinstance(work, LoopRequest) else None

    async def begins(self, request: Any) -> None:
        """A request is about to be handled."""
        if not self.boundary.inside():
            self.boundary.begin(f"{request.method} {request.path}", request.headers.get("cookie"), request)

    async def sends(self, data: bytes) -> None:
        """The server is about to send, first of all the status: of an answer which the handler sends by itself, or of a WebSocket."""
        work = self.here()
        if work is None or (work.settled is not None and work.failed is None):
            return
        status = int(data[_STATUS])
        if status == _CONTINUE:
            return
        try:
            work.refuse_success(status)
            await work.settle(status)
        except BaseException:
            _start_again(Request.get_current())
            raise
        if status == _SWITCHING_PROTOCOLS:
            await self.end(work)

    async def answers(self, request: Any, response: Any) -> None:
        """The answer is known; nothing of it was sent, or all but its end."""
        if (work := self.here()) is None:
            return
        work.refuse_success(response.status)
        await work.settle(response.status)
        for cookie in work.set_cookies(secure=request.scheme == "https"):
            response.headers.add("set-cookie", cookie)
        await self.end(work)

    async def raised(self, request: Any, exception: BaseException) -> None:
        """Sanic is about to ask its exception handlers, if nothing was sent."""
        if (work := self.here()) is None:
            return
        work.failed = None  # from here on it is they who answer
        if request.stream is None or request.stream.stage is not Stage.HANDLER:
            await self.end(work, exception)
            return
        handler = self.app.error_handler.lookup(exception, request.name)
        if not isinstance(exception, SanicException) and handler in (None, _refused):
            await work.settle(500, exception)

    async def closed(self, conn_info: Any) -> None:  # noqa: ARG002 - Sanic passes it by name
        """The connection has ended, maybe before its last request had an answer."""
        if (work := self.here()) is not None:
            await self.end(work)

    async def end(self, work: LoopRequest, error: BaseException | None = None) -> None:
        """Nothing of *work* may stay behind for the next request of the connection."""
        await work.finish(error)
        work.gone()

    async def starts(self, app: Any) -> None:
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

    async def stopped(self, _app: Any) -> None:
        """The server has stopped."""
        if self.close is not False:
            await self.boundary.close(self.close)
        self.boundary.ended()


def _start_again(request: Any) -> None:
    """Another answer comes in place of one whose head was made."""
    # Not documented: there is no other way to have a head made again. tests/web/test_sanic.py fails when it changes.
    request.stream.response_func = request.stream.http1_response_header


def _refused(_request: Any, error: Exception) -> HTTPResponse:
    refused = refusal(error)
    assert refused is not None, error
    return text(refused.status, int(refused.status.split()[0]), refused.headers)
