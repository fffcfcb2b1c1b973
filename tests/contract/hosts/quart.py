"""Quart on hypercorn: ``async def`` views for an `AsyncDatabase`, ``def`` views for a `Database`."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import quart
from werkzeug.exceptions import HTTPException
from werkzeug.utils import redirect

from contract.host import Host, Mistaken, Raised, Stream, driven, in_thread
from tenure.web.quart import Tenure

from support import http
from support.face import drive


class OnQuart(Host):
    name = "quart"
    faces = ("sync", "async")
    closes_bodies = ("async",)

    def application(self, face, probes, **boundary):
        app = quart.Quart("probes")
        Tenure(app, face.db, close=True, **boundary)

        async def page():
            try:
                answer = await probes[quart.request.path]()
            except Raised as raised:
                _abort(raised)
            if isinstance(answer, Stream):
                return (_encoded(answer.parts) if face.is_async else driven(answer.parts)), answer.status
            if answer.after is not None and face.is_async:
                app.add_background_task(answer.after)
            elif answer.after is not None:
                in_thread(answer.after)
            return answer.text, answer.status

        @app.before_serving
        async def threads():  # the loop's own are as few as processors
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(100))

        for path in probes:
            app.add_url_rule(path, path, page if face.is_async else lambda: drive(page()), methods=["GET", "POST"])
        app.register_error_handler(Mistaken, _mistaken)
        app.logger.setLevel(logging.CRITICAL + 1)
        return app

    def beside(self, app, second):
        Tenure(app, second, close=True)
        return app

    def serve(self, app, threads):
        return http.hypercorn(app, threads)


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
