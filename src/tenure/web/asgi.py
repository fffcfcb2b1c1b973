"""Any ASGI application: one unit for each request, settled before ``http.response.start`` goes on to the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias, Unpack

from tenure.core.base import BaseDatabase
from tenure.web.aio import LoopBoundary, LoopRequest, check_close
from tenure.web.answers import keeps, refusal
from tenure.web.boundary import Rules
from tenure.web.lifespan import Lifespan

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY: Final = frozenset(["http.response.body", "http.response.pathsend", "http.response.zerocopysend"])


class UnitMiddleware:
    """Wraps an ASGI application: ``app.add_middleware(UnitMiddleware, db)``, or ``app = UnitMiddleware(app, db)``.

    COMMIT is done before the first byte leaves. If it fails, nothing of the answer is sent: the error is raised where the
    application sends, and goes on to the server, which answers 500. A WebSocket has no unit: each exchange opens its own.

    Args:
        app: The application.
        db: Whose units its requests are: an ``AsyncDatabase``, or a ``Database`` whose units end in threads.
        close: Drain and close *db* at the end of the application's lifespan: the seconds that open units have, or True for one.
            Default False: whoever made it closes it.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value.

    """

    def __init__(
        self,
        app: ASGIApplication,
        db: BaseDatabase[Any],
        *,
        close: bool | float = False,
        **rules: Unpack[Rules],
    ) -> None:
        self.app = app
        self.boundary = LoopBoundary(db, **rules)
        self.close = check_close(close)

    @classmethod
    def around(cls, app: ASGIApplication, boundary: LoopBoundary) -> UnitMiddleware:
        """Wrap *app*, one of several that share *boundary*, for a framework that knows itself when it shuts down."""
        made = cls.__new__(cls)
        made.app, made.boundary, made.close = app, boundary, False
        return made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] == "lifespan":
            await Lifespan(self.boundary, self.close).pass_on(self.app, scope, receive, send)
        elif scope["type"] != "http" or self.boundary.inside():
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        cookies = None
        if self.boundary.position_cookie is not None:
            cookies = "; ".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie")
        request = self.boundary.begin(f"{scope['method']} {scope['path']}", cookies, scope)
        answer = _Answer(request, send, secure=scope.get("scheme") == "https")
        try:
            try:
                await self.app(scope, receive, answer.send)
            except BaseException as error:
                await request.finish(error)
                raise
            await request.finish()
            if answer.failed is not None and not answer.begun:  # whoever caught it has not answered
                raise answer.failed
        except Exception as error:
            await answer.raised(error)
        finally:
            request.gone()


class _Answer:
    """What the application answers, withheld until its work is settled."""

    def __init__(self, request: LoopRequest, send: Send, *, secure: bool) -> None:
        self.request = request
        self.onwards = send
        self.secure = secure
        self.begun = False
        self.failed: BaseException | None = None  # what came in place of a COMMIT

    async def send(self, message: Message) -> None:
        """The ``send`` that the application sees."""
        kind = message["type"]
        if kind == "http.response.start":
            message = await self._start(message)
        elif self.failed is not None and not self.begun:
            raise self.failed
        elif kind in _BODY and not message.get("more_body", False):
            await self.request.finish()
        await self.onwards(message)

    async def _start(self, message: Message) -> Message:
        if self.failed is not None and keeps(message["status"]):
            raise self.failed  # whatever else the application may answer now, it may not be a success
        try:
            await self.request.settle(message["status"])
        except BaseException as error:
            self.failed = error
            raise
        self.begun = True
        if cookies := self.request.set_cookies(secure=self.secure):
            more = [(b"set-cookie", cookie.encode()) for cookie in cookies]
            return {**message, "headers": [*message.get("headers", ()), *more]}
        return message

    async def raised(self, error: Exception) -> None:
        """The application has raised *error*: answer it, if that says that the client may come again, else let the server know."""
        # Starlette wraps what comes after it has begun to answer in an error of its own.
        cause = error if self.begun or self.failed is None else self.failed
        refused = None if self.begun else refusal(cause)
        if refused is None and cause is error:
            raise error
        if refused is None:
            raise cause from None
        headers = {"Content-Type": "text/plain", **refused.headers}
        await self.onwards(
            {
                "type": "http.response.start",
                "status": int(refused.status.split(None, 1)[0]),
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self.onwards({"type": "http.response.body", "body": f"{refused.status}\n".encode()})
