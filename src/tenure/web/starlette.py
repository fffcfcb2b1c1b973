"""Starlette: ``app.add_middleware(UnitMiddleware, db)``. The session is ``db.session``, or what ``@db.unit`` passes to an endpoint."""

from __future__ import annotations

from typing import Any, Unpack

from starlette.middleware.exceptions import ExceptionMiddleware

from tenure.core.base import BaseDatabase
from tenure.web import asgi
from tenure.web.aio import LoopBoundary, LoopRules
from tenure.web.registration import check_once

__all__ = ["UnitMiddleware"]


class UnitMiddleware(asgi.UnitMiddleware):
    """As ``tenure.web.asgi.UnitMiddleware``, for Starlette, whose exception handlers are told of a COMMIT that fails.

    Args:
        app: What Starlette gives.
        db: As there.
        rules: As there.

    Raises:
        BadOption: As there.

    """

    def __init__(self, app: asgi.ASGIApplication, db: BaseDatabase[Any], **rules: Unpack[LoopRules]) -> None:
        super().__init__(app, db, **rules)
        below: Any = app
        known: list[Any] = []
        while below is not None and not isinstance(below, ExceptionMiddleware):
            known += [below.boundary.database] if isinstance(below, asgi.UnitMiddleware) else []
            below = getattr(below, "app", None)
        if below is not None:
            check_once(db, known, "app.add_middleware(UnitMiddleware, db)")
            below.app = _Within(below.app, self.boundary)


class _Within:
    """Stands within Starlette's exception handlers, which answer for what was raised before they have seen an answer begin."""

    def __init__(self, app: asgi.ASGIApplication, boundary: LoopBoundary) -> None:
        self.app = app
        self.boundary = boundary

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        request = self.boundary.here() if scope["type"] == "http" else None
        if request is None:
            await self.app(scope, receive, send)
            return

        async def settling(message: asgi.Message) -> None:
            if message["type"] == "http.response.start":
                await request.known(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, settling)
        except Exception:
            if request.failed is None:
                raise
        if (failed := request.handed_over()) is not None:  # not what Starlette's routes have made of it
            raise failed from None
