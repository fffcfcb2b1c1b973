"""Sanic on its own server: coroutines for an `AsyncDatabase`, worker threads for a `Database`."""

import asyncio
import contextlib
import itertools

import sanic
from sanic.exceptions import SanicException

from contract.host import File, Host, Mistaken, Raised, Stream, called, given
from tenure.web.sanic import Tenure

from support import http

_NUMBERS = itertools.count()  # no two applications of a process may have one name


class OnSanic(Host):
    name = "sanic"
    faces = ("sync", "async")
    ranges = False
    reads_ahead = True
    sockets = True
    closes_bodies = ("async",)  # a handler is cancelled when its client has left; what it does in a thread goes on

    def application(self, face, probes, **boundary):
        app = sanic.Sanic(f"probes-{next(_NUMBERS)}", configure_logging=False)
        Tenure(app, face.db, close=True, **boundary)
        for number, (path, probe) in enumerate(probes.items()):
            app.add_route(_handler(face, probe), path, ["GET", "POST"], name=f"probe{number}")
        app.exception(Mistaken)(_mistaken)
        return app

    def within(self, face, probes, inner):
        app, inside = self.application(face, probes), sanic.Blueprint("inner", "/inner")
        for number, (path, probe) in enumerate(inner.items()):
            inside.add_route(_handler(face, probe), path, ["GET", "POST"], name=f"inner{number}")
        app.blueprint(inside)
        return app

    def exchanging(self, app, face, exchange):
        async def talk(request, socket):
            async for text in socket:
                await socket.send(await called(face, lambda text=text: exchange(text)))

        app.add_websocket_route(talk, "/ws")

    def beside(self, app, second):
        Tenure(app, second, close=True)
        return app

    def serve(self, app, threads):
        return http.sanic(app, threads)


def _handler(face, probe):
    later = set()

    async def handle(request):
        async def form():
            return request.form["name"][0], len(request.files["file"][0].body)

        try:
            answer = await called(face, given(probe, form))
        except Raised as raised:
            headers = {"location": raised.location} if raised.location else {}
            raise SanicException("raised", raised.status, headers=headers, quiet=True) from None
        if isinstance(answer, Stream):
            return await _stream(face, answer, request)
        if isinstance(answer, File):
            return await sanic.file(answer.path)
        if answer.after is not None:
            later.add(asyncio.create_task(called(face, answer.after)))  # the server of the tests knows no add_task()
        return sanic.text(answer.text, answer.status)

    return handle


async def _stream(face, answer, request):
    response = await request.respond(status=answer.status)
    try:
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await response.send((await called(face, answer.parts.__anext__)).encode())
    finally:
        await called(face, answer.parts.aclose)
    await response.eof()


async def _mistaken(request, error):
    return sanic.text("handled", 409)


HOSTS = [OnSanic()]
