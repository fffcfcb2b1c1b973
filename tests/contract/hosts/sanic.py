"""Sanic on its own server: coroutines for an `AsyncDatabase`, worker threads for a `Database`."""

import asyncio
import contextlib
import itertools

import sanic
from sanic.exceptions import SanicException

from contract.host import Host, Mistaken, Raised, Stream, called
from tenure.web.sanic import Tenure

from support import http

_NUMBERS = itertools.count()  # no two applications of a process may have one name


class OnSanic(Host):
    name = "sanic"
    faces = ("sync", "async")
    closes_bodies = ("async",)  # a handler is cancelled when its client has left; what it does in a thread goes on

    def application(self, face, probes, **boundary):
        app = sanic.Sanic(f"probes-{next(_NUMBERS)}", configure_logging=False)
        Tenure(app, face.db, close=True, **boundary)
        for number, (path, probe) in enumerate(probes.items()):
            app.add_route(_handler(face, probe), path, ["GET", "POST"], name=f"probe{number}")
        app.exception(Mistaken)(_mistaken)
        return app

    def beside(self, app, second):
        Tenure(app, second, close=True)
        return app

    def serve(self, app, threads):
        return http.sanic(app, threads)


def _handler(face, probe):
    later = set()

    async def handle(request):
        try:
            answer = await called(face, probe)
        except Raised as raised:
            headers = {"location": raised.location} if raised.location else {}
            raise SanicException("raised", raised.status, headers=headers, quiet=True) from None
        if isinstance(answer, Stream):
            return await _stream(face, answer, request)
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
