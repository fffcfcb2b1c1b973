"""Falcon, WSGI and ASGI: ``app = in_units(app, db)``."""

from __future__ import annotations

from typing import Any, Unpack, cast, overload

import falcon
import falcon.asgi

from tenure.core.base import BaseDatabase
from tenure.core.database import Database
from tenure.exceptions import BadOption, DatabaseDraining, Overloaded
from tenure.web import asgi, wsgi
from tenure.web.aio import LoopRequest
from tenure.web.answers import refusal
from tenure.web.blocking import BlockingRequest
from tenure.web.boundary import Boundary, Rules


@overload
def in_units(
    app: falcon.asgi.App[Any, Any], db: BaseDatabase[Any], *, close: bool | float = ..., **rules: Unpack[Rules]
) -> asgi.UnitMiddleware: ...
@overload
def in_units(app: falcon.App[Any, Any], db: Database, **rules: Unpack[Rules]) -> wsgi.UnitMiddleware: ...
def in_units(app: Any, db: Any, *, close: bool | float = False, **rules: Unpack[Rules]) -> Any:
    """Give each request of *app* its unit; serve what this returns.

    The work is committed when all of Falcon's middleware has seen the answer, and what COMMIT raises goes to its error handlers.

    Args:
        app: A ``falcon.App`` or a ``falcon.asgi.App``.
        db: Whose units its requests are: a ``Database``, or for ASGI an ``AsyncDatabase`` as well.
        close: As ``tenure.web.asgi.UnitMiddleware``, for an ASGI application. Default False: whoever made *db* closes it.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or *app* has units of *db* already.

    """
    if not isinstance(app, falcon.App):
        raise BadOption(f"{type(app).__name__} is not a Falcon application. Give in_units(app, db) the falcon.App().")
    served: asgi.UnitMiddleware | wsgi.UnitMiddleware
    if is_async := isinstance(app, falcon.asgi.App):
        served = asgi.UnitMiddleware(cast("Any", app), db, close=close, **rules)
    elif close:
        raise BadOption("close=True is for a falcon.asgi.App: a WSGI server does not tell when it ends. Call db.close() then.")
    else:
        served = wsgi.UnitMiddleware(cast("Any", app), db, **rules)
    host = cast("Any", app)
    # Private, but add_middleware() only appends, and what comes last settles before the others have seen the answer.
    # tests/web/test_falcon.py fails when it changes.
    middleware: list[Any] = host._unprepared_middleware  # noqa: SLF001
    if any(isinstance(one, _Settling) and one.boundary.database is db for one in middleware):
        raise BadOption(f"this application has units of {db.name!r} already. Leave one in_units(app, db) out.")
    settling = _Settling(served.boundary)
    middleware.insert(0, settling)
    host.add_middleware([])
    host.add_error_handler((Overloaded, DatabaseDraining), settling.refuse_async if is_async else settling.refuse)
    return served


class _Settling:
    """Middleware in Falcon's manner: it commits as soon as there is an answer, where what COMMIT raises finds its error handlers."""

    def __init__(self, boundary: Boundary) -> None:
        self.boundary = boundary

    def process_response(self, _req: Any, resp: Any, _resource: Any, _succeeded: bool) -> None:
        if isinstance(request := self.boundary.here(), BlockingRequest):
            if resp.media is not None:
                resp.render_body()  # kept for later; an answer that cannot be rendered is none
            try:
                request.settle(resp.status_code)
            except Exception:
                resp.stream = None  # else an error handler that says nothing of the body would answer with this
                raise

    async def process_response_async(self, _req: Any, resp: Any, _resource: Any, _succeeded: bool) -> None:
        if isinstance(request := self.boundary.here(), LoopRequest):
            if resp.media is not None:
                await resp.render_body()
            try:
                await request.settle(resp.status_code)
            except Exception:
                resp.stream = resp.sse = None
                raise

    def refuse(self, _req: Any, _resp: Any, error: Exception, _params: Any) -> None:
        """The error handler for what says that the client may come again."""
        if isinstance(request := self.boundary.here(), BlockingRequest):
            request.settle(503, error)
        _refuse(error)

    async def refuse_async(self, _req: Any, _resp: Any, error: Exception, _params: Any) -> None:
        if isinstance(request := self.boundary.here(), LoopRequest):
            await request.settle(503, error)
        _refuse(error)


def _refuse(error: Exception) -> None:
    refused = refusal(error)
    if refused is None:  # another database has kept its part: nobody is told to come again
        raise error
    raise falcon.HTTPError(refused.status, headers=refused.headers) from error
