"""Litestar: ``Litestar(plugins=[TenurePlugin(db)])``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Unpack

from litestar import Request, Response
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute, WebSocketRoute

from tenure.core.base import BaseDatabase
from tenure.exceptions import BadOption
from tenure.web.aio import LoopBoundary, LoopRequest, check_close
from tenure.web.answers import REFUSED, refusal
from tenure.web.asgi import UnitMiddleware
from tenure.web.boundary import Rules

_WHATEVER: Final = 500  # the key of an exception handler for what has none of its own


class TenurePlugin(InitPlugin, ReceiveRoutePlugin):
    """Gives each request of a Litestar application its unit, and handlers and dependencies their ``db_session``.

    Args:
        database: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` for ``def`` handlers.
        session_name: By which name the session is injected; a second database needs one of its own.
        close: Drain and close the database when the application has shut down: the seconds that open units have, or True for one.
            Default False: whoever made it closes it.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value; or, where the application is made, it is registered already, or the
            handler of a WebSocket asks for the session.

    """

    def __init__(
        self,
        database: BaseDatabase[Any],
        *,
        session_name: str = "db_session",
        close: bool | float = False,
        **rules: Unpack[Rules],
    ) -> None:
        if not str(session_name).isidentifier():
            raise BadOption(f"session_name={session_name!r}: give the name of a parameter.")
        self.boundary = LoopBoundary(database, **rules)
        self.session_name = session_name
        self.close = check_close(close)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """What the plugin adds to an application."""
        config: Any = app_config  # whose types are generic in parameters that nobody gives
        database, name = self.boundary.database, self.session_name
        known = [one.boundary.database for one in config.plugins if isinstance(one, TenurePlugin)]
        if known.count(database) > 1:
            raise BadOption(f"the application is registered with {database.name!r} twice. Leave one TenurePlugin out.")
        if name in config.dependencies:
            raise BadOption(f"the application has a dependency {name!r} already. Write TenurePlugin(db, session_name=…).")
        config.dependencies = {**config.dependencies, name: Provide(self.session, sync_to_thread=False)}
        config.exception_handlers = {**dict.fromkeys(REFUSED, _refused), **config.exception_handlers}
        config.middleware.insert(0, self._around)
        config.on_shutdown.append(self._ended)
        if _raised not in config.after_exception:
            config.after_exception.append(_raised)
        return app_config

    def session(self) -> Any:
        """What is injected: the session of the request's unit."""
        return self.boundary.database.session

    def receive_route(self, route: BaseRoute) -> None:
        """What the plugin adds to a route, now or later in the application's life."""
        if isinstance(route, HTTPRoute):
            handler: Any
            for handler in route.route_handlers:
                hooks = [layer.after_request for layer in handler.ownership_layers if getattr(layer, "after_request", None)]
                if not hooks or not isinstance(hooks[-1], _BeforeItIsSent):
                    handler.after_request = _BeforeItIsSent(hooks[-1] if hooks else None)
        elif isinstance(route, WebSocketRoute) and self.session_name in _asked_for(route.route_handler):
            raise BadOption(
                f"the WebSocket {route.path!r} asks for {self.session_name!r}, but has no unit. Let each exchange in it open its own:"
                " `async with db.unit() as session`."
            )

    def _around(self, app: Any) -> Any:
        return UnitMiddleware.around(app, self.boundary)

    async def _ended(self) -> None:
        if self.close is not False:
            await self.boundary.close(self.close)
        self.boundary.ended()


def _asked_for(handler: Any) -> set[str]:
    """The names that *handler* asks for, and those which its dependencies do."""
    given, names = handler.resolve_dependencies(), set(handler.parsed_fn_signature.parameters)
    while more := {name for one in names & given.keys() for name in given[one].parsed_fn_signature.parameters} - names:
        names |= more
    return names


def _requests(scope: Any) -> Iterator[LoopRequest]:
    """The requests of an application's databases that are under way here, in the order in which the plugins were given."""
    for plugin in scope["litestar_app"].plugins.init:
        if isinstance(plugin, TenurePlugin) and isinstance(request := plugin.boundary.here(), LoopRequest):
            yield request


class _BeforeItIsSent:
    """Commits when the answer is made and nothing of it was sent, where Litestar still asks its exception handlers.

    It knows no application: Litestar lets all in which a handler is registered share what it has made of this hook.
    """

    def __init__(self, hook: Any) -> None:
        self.hook = hook

    async def __call__(self, response: Any) -> _Settled:
        return _Settled(response if self.hook is None else await self.hook(response))


class _Settled:
    """An answer that settles the work before it begins."""

    def __init__(self, response: Any) -> None:
        self.response = response

    def to_asgi_response(self, *args: Any, **options: Any) -> _Settled:
        return _Settled(self.response.to_asgi_response(*args, **options))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = getattr(self.response, "status_code", None)  # one that an application answers by itself is not known yet
        if status is not None:
            for request in _requests(scope):
                await request.settle(status)
        await self.response(scope, receive, send)


async def _raised(error: Exception, scope: Any) -> None:
    """Roll back for an *error* that is no answer itself, and of which no handler of the application's makes one."""
    handlers: dict[Any, Any] = scope["route_handler"].resolve_exception_handlers() if "route_handler" in scope else {}
    found = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), handlers.get(_WHATEVER))
    if not isinstance(error, HTTPException) and found in (None, _refused):
        for request in _requests(scope):
            await request.settle(500, error)


def _refused(_request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    refused = refusal(error)
    if refused is None:  # another database has kept its part: nobody is told to come again
        raise error
    return Response(refused.status, status_code=int(refused.status.split()[0]), headers=refused.headers, media_type="text/plain")
