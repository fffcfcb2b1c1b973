"""Starlette: ``app.add_middleware(UnitMiddleware, db)``. The session is ``db.session``, or what ``@db.unit`` passes to an endpoint."""

from tenure.web.asgi import UnitMiddleware

__all__ = ["UnitMiddleware"]
