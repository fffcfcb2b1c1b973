"""Any ASGI application: one unit for each request, settled before ``http.response.start`` goes on to the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias, Unpack

from tenure.core.base import BaseDatabase
from tenure.web.aio import LoopBoundary, LoopRules
from tenure.web.lifespan import Lifespan
from tenure.web.registration import Layer

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY: Final = frozenset(["http.response.body", "http.response.pathsend", "http.response.zerocopysend"])


class UnitMiddleware(Layer[ASGIApplication, LoopBoundary]):
    """Wraps an ASGI application: ``app.add_middleware(UnitMiddleware, db)``, or ``app = UnitMiddleware(app, db)``.

    COMMIT is done before the first byte leaves. If it fails, nothing of the answer is sent: the error is raised where the
    application sends, and goes on to the server, which answers 500. A WebSocket has no unit: each exchange opens its own.

    Args:
        app: The application.
        db: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` whose units end in threads.
        rules: ``close=`` drains and closes *db* at the end of the application's lifespan: the seconds that open units have, or
            True for one; by default whoever made it closes it. ``commit_if=`` replaces the rule that a status below 400 commits;
            these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application has units of *db* already.

    """

    def __init__(self, app: ASGIApplication, db: BaseDatabase[Any], **rules: Unpack[LoopRules]) -> None:
        super().__init__(app, "scope, receive, send", lambda: LoopBoundary(db, **rules))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] == "lifespan":
            await Lifespan(self.boundary).pass_on(self.app, scope, receive, send)
        elif scope["type"] != "http" or self.boundary.inside():
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self.boundary.begin(f"{scope['method']} {scope['path']}", scope)

        async def settled(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.start":
                if more := await request.starts(message["status"]):
                    message = {**message, "headers": [*message.get("headers", ()), *_in_bytes(more)]}
            elif request.failed is not None:
                raise request.failed
            elif kind in _BODY and not message.get("more_body", False):
                await request.finish()
            await send(message)

        try:
            try:
                await self.app(scope, receive, settled)
            except BaseException as error:
                await request.finish(error)
                raise
            await request.finish()
            if request.failed is not None:  # whoever caught it has not answered
                raise request.failed
        except Exception as error:
            refused = request.refused(error)
            await send({"type": "http.response.start", "status": refused.code, "headers": _in_bytes(refused.plain)})
            await send({"type": "http.response.body", "body": refused.text.encode()})
        finally:
            request.gone()


def _in_bytes(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers]
