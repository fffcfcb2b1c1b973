"""Litestar: ``Litestar(plugins=[TenurePlugin(db)])``."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack, cast

from litestar import Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute, WebSocketRoute

from tenure.core.base import BaseDatabase
from tenure.exceptions import BadOption
from tenure.web.aio import LoopBoundary, LoopRules
from tenure.web.answers import REFUSED, refused
from tenure.web.asgi import UnitMiddleware
from tenure.web.registration import check_once


class TenurePlugin(InitPlugin, ReceiveRoutePlugin):
    """Gives each request of a Litestar application its unit, and handlers and dependencies their ``db_session``.

    Args:
        database: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` for ``def`` handlers.
        session_name: By which name the session is injected; a second database needs one of its own.
        rules: ``close=`` drains and closes the database when the application has shut down: the seconds that open units have, or
            True for one; by default whoever made it closes it. ``commit_if=`` replaces the rule that a status below 400 commits;
            these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value; or, where the application is made, it is registered already, or the
            handler of a WebSocket asks for the session.

    """

    def __init__(self, database: BaseDatabase[Any], *, session_name: str = "db_session", **rules: Unpack[LoopRules]) -> None:
        if not str(session_name).isidentifier():
            raise BadOption(f"session_name={session_name!r}: give the name of a parameter.")
        self.boundary = LoopBoundary(database, **rules)
        self.session_name = session_name

    def on_app_init(self, app_config: Any) -> Any:  # whose types are generic in parameters that nobody gives
        """What the plugin adds to an application."""
        known = [one.boundary.database for one in app_config.plugins if isinstance(one, TenurePlugin)]
        check_once(self.boundary.database, known, "TenurePlugin(db)", own=1)
        if (name := self.session_name) in app_config.dependencies:
            raise BadOption(f"the application has a dependency {name!r} already. Write TenurePlugin(db, session_name=…).")
        app_config.dependencies = {**app_config.dependencies, name: Provide(self.session, sync_to_thread=False)}
        app_config.exception_handlers = {**dict.fromkeys(REFUSED, _refused), **app_config.exception_handlers}
        app_config.middleware.insert(0, partial(UnitMiddleware.around, boundary=self.boundary))
        app_config.on_shutdown.append(self.boundary.stopped)
        if _raised not in app_config.after_exception:
            app_config.after_exception.append(_raised)
        return app_config

    def session(self) -> Any:
        """What is injected: the session of the request's unit."""
        return self.boundary.database.session

    def receive_route(self, route: BaseRoute) -> None:
        """What the plugin adds to a route, now or later in the application's life."""
        if isinstance(route, HTTPRoute):
            for handler in cast("Any", route).route_handlers:
                hook = [layer.after_request for layer in handler.ownership_layers if getattr(layer, "after_request", None)][-1:]
                if not hook or getattr(hook[0], "func", None) is not _before_it_is_sent:
                    handler.after_request = partial(_before_it_is_sent, *(hook or [None]))
        elif isinstance(route, WebSocketRoute) and self.session_name in _asked_for(route.route_handler):
            what = f"the WebSocket {route.path!r} asks for {self.session_name!r}, but has no unit."
            raise BadOption(f"{what} Let each exchange in it open its own: `async with db.unit() as session`.")


def _asked_for(handler: Any) -> set[str]:
    """The names that *handler* asks for, and those which its dependencies do."""
    given, names = handler.resolve_dependencies(), set(handler.parsed_fn_signature.parameters)
    while more := {name for one in names & given.keys() for name in given[one].parsed_fn_signature.parameters} - names:
        names |= more
    return names


async def _settle(scope: Any, status: int, error: Exception | None = None) -> None:
    """Settle the requests of the application's databases that are under way here, in the order in which the plugins were given."""
    for plugin in scope["litestar_app"].plugins.init:
        if isinstance(plugin, TenurePlugin) and (request := plugin.boundary.here()) is not None:
            await request.settle(status, error)


async def _before_it_is_sent(hook: Any, response: Any) -> _Settled:
    """Commits when the answer is made and nothing of it was sent, where Litestar still asks its exception handlers.

    It knows no application: Litestar lets all in which a handler is registered share what it has made of this hook.
    """
    return _Settled(response if hook is None else await hook(response))


class _Settled:
    """An answer that settles the work before it begins."""

    def __init__(self, response: Any) -> None:
        self.response = response

    def to_asgi_response(self, *args: Any, **options: Any) -> _Settled:
        return _Settled(self.response.to_asgi_response(*args, **options))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = getattr(self.response, "status_code", None)  # one that an application answers by itself is not known yet
        if status is not None:
            await _settle(scope, status)
        await self.response(scope, receive, send)


async def _raised(error: Exception, scope: Any) -> None:
    """Roll back for an *error* that is no answer itself, and of which no handler of the application's makes one."""
    handlers: dict[Any, Any] = scope["route_handler"].resolve_exception_handlers() if "route_handler" in scope else {}
    found = next(
        (handlers[kind] for kind in type(error).__mro__ if kind in handlers), handlers.get(500)
    )  # the key for what has none of its own
    if not isinstance(error, HTTPException) and found in (None, _refused):
        await _settle(scope, 500, error)


def _refused(_request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    answer = refused(error)
    return Response(answer.text, status_code=answer.code, headers=answer.headers, media_type="text/plain")
