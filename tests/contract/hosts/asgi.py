"""A plain ASGI application in ``UnitMiddleware``, on two servers."""

import asyncio
from contextlib import suppress

from contract.host import Answer, Host, Mistaken, Raised, Stream, called
from tenure.web.asgi import UnitMiddleware

from support import http


class Asgi(Host):
    faces = ("sync", "async")

    def __init__(self, name, server):
        self.name = name
        self.serve = server

    def application(self, face, probes, **boundary):
        later = set()

        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                await _live(receive, send)
            else:
                after = await _reply(face, probes[scope["path"]], receive, _Sender(send))
                if after is not None:
                    later.add(asyncio.create_task(called(face, after)))

        return UnitMiddleware(app, face.db, close=True, **boundary)

    def beside(self, app, second):
        return UnitMiddleware(app, second, close=True)


class _Sender:
    def __init__(self, send):
        self.send = send

    async def start(self, status, *headers):
        await self.send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain"), *headers]}
        )

    async def body(self, text, more_body=False):
        await self.send({"type": "http.response.body", "body": text.encode(), "more_body": more_body})


async def _reply(face, probe, receive, send):
    try:
        answer = await called(face, probe)
    except Raised as raised:
        await send.start(raised.status, *([(b"location", raised.location.encode())] if raised.location else []))
        answer = Answer(text="raised")
    except Mistaken:
        await send.start(409)
        answer = Answer(text="handled")
    else:
        if isinstance(answer, Stream):
            return await _stream(face, answer, receive, send)
        await send.start(answer.status)
    await send.body(answer.text)
    return answer.after


async def _stream(face, answer, receive, send):
    left = asyncio.create_task(_left(receive))
    try:
        await send.start(answer.status)
        with suppress(StopAsyncIteration):
            while not left.done():
                await send.body(await called(face, answer.parts.__anext__), more_body=True)
    finally:
        left.cancel()
        await called(face, answer.parts.aclose)
    await send.body("")


async def _left(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive, send):
    for what in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{what}"
        await send({"type": f"lifespan.{what}.complete"})


HOSTS = [Asgi("asgi-uvicorn", http.uvicorn), Asgi("asgi-hypercorn", http.hypercorn)]
