"""aiohttp on its own server: coroutines for an `AsyncDatabase`, worker threads for a `Database`."""

import asyncio
import contextlib

from aiohttp import web

from contract.host import File, Host, Mistaken, Raised, Stream, called, given
from tenure.web.aiohttp import middleware

from support import http


class OnAiohttp(Host):
    name = "aiohttp"
    faces = ("sync", "async")
    sockets = True

    def application(self, face, probes, **boundary):
        units = middleware(face.db, **boundary)
        app = web.Application(client_max_size=2**24, middlewares=[_mistaken, units])
        app.cleanup_ctx.append(units.closing)
        for path, probe in probes.items():
            app.router.add_route("*", path, _handler(face, probe))
        return app

    def within(self, face, probes, inner):
        app, sub = self.application(face, probes), web.Application()
        for path, probe in inner.items():
            sub.router.add_route("*", path, _handler(face, probe))
        app.add_subapp("/inner", sub)
        return app

    def exchanging(self, app, face, exchange):
        async def talk(request):
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(await called(face, lambda text=message.data: exchange(text)))
            return socket

        app.router.add_get("/ws", talk)

    def beside(self, app, second):
        units = middleware(second)
        app.middlewares.append(units)
        app.cleanup_ctx.append(units.closing)
        return app

    def serve(self, app, threads):
        return http.aiohttp(app, threads)


def _handler(face, probe):
    later = set()

    async def handle(request):
        async def form():
            found = await request.post()
            return found["name"], len(found["file"].file.read())

        try:
            answer = await called(face, given(probe, form))
        except Raised as raised:
            raise _exception(raised) from None
        if isinstance(answer, Stream):
            return await _stream(face, answer, request)
        if isinstance(answer, File):
            return web.FileResponse(answer.path)
        if answer.after is not None:
            later.add(asyncio.create_task(called(face, answer.after)))
        return web.Response(text=answer.text, status=answer.status)

    return handle


def _exception(raised):
    kinds = {303: web.HTTPSeeOther, 404: web.HTTPNotFound, 200: web.HTTPOk}
    return kinds[raised.status](*([raised.location] if raised.location else []), text="raised")


async def _stream(face, answer, request):
    response = web.StreamResponse(status=answer.status)
    try:
        await response.prepare(request)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await response.write((await called(face, answer.parts.__anext__)).encode())
    finally:
        await called(face, answer.parts.aclose)
    return response


@web.middleware
async def _mistaken(request, handler):
    try:
        return await handler(request)
    except Mistaken:
        return web.Response(text="handled", status=409)


HOSTS = [OnAiohttp()]
