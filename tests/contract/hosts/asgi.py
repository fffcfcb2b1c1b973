"""A plain ASGI application in ``UnitMiddleware``, on two servers."""

import asyncio
from contextlib import suppress

from contract.host import Answer, File, Host, Mistaken, Raised, Stream, called, given
from tenure.web.asgi import UnitMiddleware

from support import http


class Asgi(Host):
    faces = ("sync", "async")
    ranges = False
    sockets = True

    def __init__(self, name, server):
        self.name = name
        self.serve = server

    def application(self, face, probes, **boundary):
        later = set()

        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                await _live(receive, send)
            elif scope["type"] == "websocket":
                await _talk(face, self.exchange, receive, send)
            else:
                after = await _reply(face, given(probes[scope["path"]], _read(scope, receive)), receive, _Sender(send))
                if after is not None:
                    later.add(asyncio.create_task(called(face, after)))

        return UnitMiddleware(app, face.db, close=True, **boundary)

    def within(self, face, probes, inner):
        outside, inside = self.application(face, probes), self.application(face, {f"/inner{path}": inner[path] for path in inner})

        async def app(scope, receive, send):
            if scope["type"] == "http" and scope["path"].startswith("/inner/"):
                await inside({**scope, "root_path": "/inner"}, receive, send)
            else:
                await outside(scope, receive, send)

        return UnitMiddleware(
            app, face.db
        )  # or that of the inner one, which hears nothing of the lifespan, would keep its threads

    def exchanging(self, app, face, exchange):
        self.exchange = exchange

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
        if isinstance(answer, File):
            await send.start(200)
            with answer.path.open("rb") as file:
                while part := file.read(0x10000):
                    await send.body(part.decode(), more_body=True)
            await send.body("")
            return None
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


def _read(scope, receive):
    """A host without forms: all of the body is the file."""

    async def read():
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise EOFError
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        return scope["query_string"].decode(), size

    return read


async def _talk(face, exchange, receive, send):
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.receive":
            text = message["text"]
            await send({"type": "websocket.send", "text": await called(face, lambda text=text: exchange(text))})


async def _left(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive, send):
    for what in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{what}"
        await send({"type": f"lifespan.{what}.complete"})


HOSTS = [Asgi("asgi-uvicorn", http.uvicorn), Asgi("asgi-hypercorn", http.hypercorn)]
