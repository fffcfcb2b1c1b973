"""Quart: ``Tenure(app, db)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from quart import Quart
from werkzeug.exceptions import default_exceptions

from tenure.core.base import BaseDatabase
from tenure.web.aio import LoopBoundary, LoopRules
from tenure.web.asgi import UnitMiddleware
from tenure.web.registration import Extension, claim


class Tenure(Extension[Quart, BaseDatabase[Any]]):
    """Gives each request of a Quart application its unit.

    Args:
        app: The application; or call ``init_app`` later.
        database: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` for ``def`` views.
        rules: ``close=`` as in ``tenure.web.asgi.UnitMiddleware``. ``commit_if=`` replaces the rule that a status below 400 commits;
            these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application is registered already.

    """

    kind = Quart

    def __init__(self, app: Quart | None = None, database: BaseDatabase[Any] | None = None, **rules: Unpack[LoopRules]) -> None:
        super().__init__(app, database, rules)

    def register(self, app: Quart, database: BaseDatabase[Any], rules: Mapping[str, Any]) -> None:
        """Put units around the requests of *app*."""
        host: Any = app  # Quart's own types of ASGI are narrower
        boundary = LoopBoundary(database, **rules)
        claim(app.extensions.setdefault("tenure", []), database, "Tenure(app, db)")
        host.asgi_app = UnitMiddleware.around(host.asgi_app, boundary)
        host.full_dispatch_request = _Views(app, boundary).full_dispatch_request


class _Views:
    """Where Quart makes an answer: what COMMIT raises there goes to its error handlers."""

    def __init__(self, app: Quart, boundary: LoopBoundary) -> None:
        self.app: Any = app
        self.boundary = boundary
        self.answer = app.full_dispatch_request

    async def full_dispatch_request(self, *contexts: Any) -> Any:
        request = self.boundary.here()
        return await (self.answer(*contexts) if request is None else request.answer(self, *contexts))

    async def handled(self, error: Exception, *_contexts: Any) -> Any:
        return await self.app.finalize_request(await self.app.handle_user_exception(error))

    def exception(self, status: int) -> Exception:
        return default_exceptions[status]()
