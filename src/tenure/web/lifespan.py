"""The life of an ASGI application: at its end the database that was lent to it is drained and closed, if that was asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tenure.web.aio import LoopBoundary


class Lifespan:
    """One lifespan, as it passes by.

    An application that knows no such thing returns or raises without asking what is to be done. Then this answers in its place:
    what was asked for at the end must not depend on that.

    Args:
        boundary: Whose threads go, and whose database.

    """

    def __init__(self, boundary: LoopBoundary) -> None:
        self._boundary = boundary
        self._asked = self._ended = False

    async def pass_on(
        self, app: Any, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Let *app* live."""

        async def received() -> Any:
            self._asked = True
            return await receive()

        async def sent(message: Any) -> None:
            self._asked = True
            if message["type"].startswith("lifespan.shutdown."):
                await self._end()
            await send(message)

        try:
            await app(scope, received, sent)
        except Exception:  # whatever an application raises that looks for a request
            if self._asked:
                await self._end()
                raise
        if not self._asked:
            for what in ("startup", "shutdown"):
                await receive()
                await sent({"type": f"lifespan.{what}.complete"})

    async def _end(self) -> None:
        if not self._ended:
            self._ended = True
            await self._boundary.stopped()
