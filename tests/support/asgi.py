"""ASGI without a server: requests, WebSockets and the lifespan, made by hand on the test's own event loop."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any
from urllib.parse import urlencode

from support.face import PATIENCE, Face


def run(face: Face, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a test on an event loop, whichever kind its database is."""
    if face.is_async:
        return face.run(coroutine)
    return asyncio.run(asyncio.wait_for(coroutine, 3 * PATIENCE))


async def call(app: Any, scope: dict[str, Any] | None = None, *, seen: Callable[[Any], Any] | None = None) -> list[Any]:
    """One request, as a server makes it; gives the messages that leave, each told to *seen* when it does."""
    sent: list[Any] = []

    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        message = next(asked, None)
        return await asyncio.Event().wait() if message is None else message  # the client stays

    async def send(message: Any) -> None:
        sent.append(message)
        if seen is not None:
            seen(message)

    await app({"type": "http", "method": "GET", "path": "/", "headers": [], **(scope or {})}, receive, send)
    return sent


async def fetch(app: Any, path: str = "/", method: str = "GET", **query: Any) -> tuple[int, Any]:
    """Status and JSON of an answer; 500 for an error that reaches the server."""
    scope = {"method": method, "path": path, "query_string": urlencode(query).encode()}
    seen: list[Any] = []
    with contextlib.suppress(Exception):
        await call(app, scope, seen=seen.append)
    body = b"".join(one.get("body", b"") for one in seen)
    status = seen[0]["status"] if seen else 500
    return status, json.loads(body) if status < 400 and body else None


async def exchange(app: Any, path: str, texts: Iterable[str]) -> list[str]:
    """A WebSocket that sends *texts*, each after the answer to the one before, and leaves; gives the answers."""
    left = iter(texts)
    answers: list[str] = []
    opened = False

    async def receive() -> Any:
        nonlocal opened
        if not opened:
            opened = True
            return {"type": "websocket.connect"}
        for one in left:
            return {"type": "websocket.receive", "text": one}
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            answers.append(message["text"])

    with contextlib.suppress(Exception):  # frameworks raise for a client that has left
        await app({"type": "websocket", "path": path, "headers": [], "query_string": b"", "subprotocols": []}, receive, send)
    return answers


@contextlib.asynccontextmanager
async def live(app: Any) -> AsyncIterator[None]:
    """The lifespan of *app*, around what a test asks of it."""
    asked: asyncio.Queue[Any] = asyncio.Queue()
    said: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan", "state": {}}, asked.get, said.put))
    for what in ("startup", "shutdown"):
        await asked.put({"type": f"lifespan.{what}"})
        message = await asyncio.wait_for(said.get(), PATIENCE)
        assert message["type"] == f"lifespan.{what}.complete", message
        if what == "startup":
            try:
                yield
            except BaseException:
                task.cancel()
                raise
    await task
