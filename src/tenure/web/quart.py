"""Quart: ``Tenure(app, db)``."""

from __future__ import annotations

from typing import Any, Unpack, cast

from quart import Quart, Response
from werkzeug.exceptions import default_exceptions

from tenure.core.base import BaseDatabase
from tenure.exceptions import BadOption
from tenure.web.aio import LoopRequest
from tenure.web.answers import refusal
from tenure.web.asgi import UnitMiddleware
from tenure.web.boundary import Rules, chosen, enlist


class Tenure:
    """Gives each request of a Quart application its unit.

    Args:
        app: The application; or call ``init_app`` later.
        database: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` for ``def`` views.
        close: As ``tenure.web.asgi.UnitMiddleware`` does. Default False: whoever made the database closes it.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application is registered already.

    """

    def __init__(
        self,
        app: Quart | None = None,
        database: BaseDatabase[Any] | None = None,
        *,
        close: bool | float = False,
        **rules: Unpack[Rules],
    ) -> None:
        self._database = database
        self._rules = rules
        self._close = close
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart, database: BaseDatabase[Any] | None = None) -> None:
        """Register *app*, with *database* where the constructor got none.

        Raises:
            BadOption: As the constructor.

        """
        if not isinstance(cast("object", app), Quart):
            raise BadOption(f"{type(app).__name__} is not a Quart application. Give Tenure(app, db) the Quart().")
        database = chosen(database, self._database)
        host: Any = app  # Quart's own types of ASGI are narrower
        middleware = UnitMiddleware(host.asgi_app, database, close=self._close, **self._rules)
        enlist(app.extensions.setdefault("tenure", []), database, app.name)
        host.asgi_app = middleware
        host.full_dispatch_request = _Settling(app, middleware).full_dispatch_request


class _Settling:
    """Commits as soon as there is an answer, and gives what COMMIT raises to the error handlers, as if the view had raised it."""

    def __init__(self, app: Quart, middleware: UnitMiddleware) -> None:
        self.app: Any = app
        self.boundary = middleware.boundary
        self.answer = app.full_dispatch_request

    async def full_dispatch_request(self, *contexts: Any) -> Any:
        request = self.boundary.here()
        if not isinstance(request, LoopRequest):
            return await self.answer(*contexts)
        try:
            response = await self.answer(*contexts)
            try:
                await request.settle(response.status_code)
            except Exception as error:
                return await self._handled(error)
        except Exception as error:
            if not self.boundary.explicit:  # else the handler of a 500 may have something to commit
                await request.settle(500, error)
            refused = refusal(error)
            if refused is None:
                raise
            response = await self._handled(default_exceptions[int(refused.status.split()[0])]())
            response.headers.update(refused.headers)
        return response

    async def _handled(self, error: Exception) -> Response:
        """What the application's error handlers answer for *error*; raises it where there is none."""
        return await self.app.finalize_request(await self.app.handle_user_exception(error))  # type: ignore[no-any-return]
