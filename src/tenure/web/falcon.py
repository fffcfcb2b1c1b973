"""Falcon, WSGI and ASGI: ``app = in_units(app, db)``."""

from __future__ import annotations

from typing import Any, Unpack, overload

import falcon
import falcon.asgi

from tenure.core.base import BaseDatabase
from tenure.core.database import Database
from tenure.web import asgi, wsgi
from tenure.web.aio import LoopRules
from tenure.web.answers import REFUSED, refused
from tenure.web.boundary import Rules
from tenure.web.registration import as_layer, check_kind, check_once


@overload
def in_units(
    app: falcon.asgi.App[Any, Any] | asgi.UnitMiddleware, db: BaseDatabase[Any], **rules: Unpack[LoopRules]
) -> asgi.UnitMiddleware: ...
@overload
def in_units(app: falcon.App[Any, Any] | wsgi.UnitMiddleware, db: Database, **rules: Unpack[Rules]) -> wsgi.UnitMiddleware: ...
def in_units(app: Any, db: Any, **rules: Any) -> Any:
    """Give each request of *app* its unit; serve what this returns.

    The work is committed when all of Falcon's middleware has seen the answer, and what COMMIT raises goes to its error handlers.

    Args:
        app: A ``falcon.App`` or a ``falcon.asgi.App``, or what this has returned for it and another database.
        db: Whose units its requests are: a ``Database``, or for ASGI an ``AsyncDatabase`` as well.
        rules: For an ASGI application ``close=``, as in ``tenure.web.asgi.UnitMiddleware``. ``commit_if=`` replaces the rule that a
            status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or *app* has units of *db* already.

    """
    host = app
    while (layer := as_layer(host)) is not None:  # it has units of another database
        host = layer.app
    check_kind(host, falcon.App, "in_units(app, db)")
    is_async = isinstance(host, falcon.asgi.App)
    # Private, but add_middleware() only appends, and what comes last settles before the others have seen the answer.
    # tests/web/test_falcon.py fails when it changes.
    middleware: list[Any] = host._unprepared_middleware  # noqa: SLF001
    check_once(db, [one.boundary.database for one in middleware if isinstance(one, _Settling)], "in_units(app, db)")
    served = asgi.UnitMiddleware(app, db, **rules) if is_async else wsgi.UnitMiddleware(app, db, **rules)
    settling = _Settling(served.boundary)
    middleware.insert(0, settling)
    host.add_middleware([])
    host.add_error_handler(REFUSED, settling.refuse_async if is_async else settling.refuse)
    return served


class _Settling:
    """Middleware in Falcon's manner: it commits as soon as there is an answer, where what COMMIT raises finds its error handlers."""

    def __init__(self, boundary: Any) -> None:
        self.boundary = boundary

    def process_response(self, _req: Any, resp: Any, _resource: Any, _succeeded: bool) -> None:
        if (request := self.boundary.here()) is not None:
            if resp.media is not None:
                resp.render_body()  # kept for later; an answer that cannot be rendered is none
            try:
                request.settle(resp.status_code)
            except Exception:
                resp.stream = None  # else an error handler that says nothing of the body would answer with this
                raise

    async def process_response_async(self, _req: Any, resp: Any, _resource: Any, _succeeded: bool) -> None:
        if (request := self.boundary.here()) is not None:
            if resp.media is not None:
                await resp.render_body()
            try:
                await request.settle(resp.status_code)
            except Exception:
                resp.stream = resp.sse = None
                raise

    def refuse(self, _req: Any, _resp: Any, error: Exception, _params: Any) -> None:
        """The error handler for what says that the client may come again."""
        if (request := self.boundary.here()) is not None:
            request.settle(503, error)
        raise _refused(error) from error

    async def refuse_async(self, _req: Any, _resp: Any, error: Exception, _params: Any) -> None:
        if (request := self.boundary.here()) is not None:
            await request.settle(503, error)
        raise _refused(error) from error


def _refused(error: Exception) -> Exception:
    answer = refused(error)
    return falcon.HTTPError(answer.status, headers=answer.headers)
