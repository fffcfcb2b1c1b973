"""Quart on hypercorn: ``async def`` views for an `AsyncDatabase`, ``def`` views for a `Database`."""

import asyncio
import functools
import logging
from concurrent.futures import ThreadPoolExecutor

import quart
from werkzeug.exceptions import HTTPException
from werkzeug.utils import redirect

from contract.host import File, Host, Mistaken, Raised, Stream, called, driven, given, in_thread
from tenure.web.quart import Tenure

from support import http
from support.face import drive


class OnQuart(Host):
    name = "quart"
    faces = ("sync", "async")
    sockets = True
    closes_bodies = ("async",)

    def application(self, face, probes, **boundary):
        app = quart.Quart("probes")
        Tenure(app, face.db, close=True, **boundary)

        @app.before_serving
        async def threads():  # the loop's own are as few as processors
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(100))

        _route(app, app, face, probes)
        app.register_error_handler(Mistaken, _mistaken)
        app.logger.setLevel(logging.CRITICAL + 1)
        return app

    def within(self, face, probes, inner):
        app, inside = self.application(face, probes), quart.Blueprint("inner", "inner", url_prefix="/inner")
        _route(inside, app, face, inner)
        app.register_blueprint(inside)
        return app

    def exchanging(self, app, face, exchange):
        async def talk():
            while True:
                text = await quart.websocket.receive()
                await quart.websocket.send(await called(face, functools.partial(exchange, text)))

        app.add_websocket("/ws", "talk", talk)

    def beside(self, app, second):
        Tenure(app, second, close=True)
        return app

    def serve(self, app, threads):
        return http.hypercorn(app, threads)


def _route(where, app, face, probes):
    async def page(probe):
        try:
            answer = await given(probe, _form)()
        except Raised as raised:
            _abort(raised)
        if isinstance(answer, Stream):
            return (_encoded(answer.parts) if face.is_async else driven(answer.parts)), answer.status
        if isinstance(answer, File):
            return await quart.send_file(answer.path, conditional=True)
        if answer.after is not None and face.is_async:
            app.add_background_task(answer.after)
        elif answer.after is not None:
            in_thread(answer.after)
        return answer.text, answer.status

    for path, probe in probes.items():
        view = functools.partial(page, probe) if face.is_async else lambda probe=probe: drive(page(probe))
        where.add_url_rule(path, path.strip("/"), view, methods=["GET", "POST"])


async def _form():
    return (await quart.request.form)["name"], len((await quart.request.files)["file"].read())


def _abort(raised):
    if raised.location:
        quart.abort(redirect(raised.location, raised.status))
    if raised.status < 400:
        raise HTTPException(response=quart.Response("raised", raised.status)) from None
    quart.abort(raised.status)


async def _mistaken(error):
    return "handled", 409


async def _encoded(parts):
    try:
        async for part in parts:
            yield part.encode()
    finally:
        await parts.aclose()


HOSTS = [OnQuart()]
