"""Falcon: a WSGI application on cheroot, and an ASGI application on uvicorn for both kinds of database."""

import contextlib

import falcon
import falcon.asgi

from contract.host import File, Host, Mistaken, Raised, Stream, called, driven, given, in_thread
from tenure.web.falcon import in_units

from support import http
from support.face import drive


class OnWsgi(Host):
    name = "falcon-wsgi"
    ranges = False
    mounts = False

    def application(self, face, probes, **boundary):
        app = falcon.App()

        class Page:
            def on_get(self, req, resp):
                try:
                    answer = drive(given(probes[req.path], _form(req))())
                except Raised as raised:
                    raise _raised(raised) from None
                if isinstance(answer, File):
                    resp.set_stream(answer.path.open("rb"), answer.path.stat().st_size)
                    return
                resp.status = answer.status
                if isinstance(answer, Stream):
                    resp.stream = driven(answer.parts)
                    return
                resp.text = answer.text
                in_thread(answer.after)

            on_post = on_get

        for path in probes:
            app.add_route(path, Page())
        app.add_error_handler(Mistaken, _handled)
        return in_units(app, face.db, **boundary)

    def beside(self, app, second):
        return in_units(app, second)

    def serve(self, app, threads):
        return http.cheroot(app, threads)


class OnAsgi(Host):
    name = "falcon-asgi"
    faces = ("sync", "async")
    closes_bodies = ()
    ranges = False
    mounts = False
    sockets = True
    ends_bodies = False

    def application(self, face, probes, **boundary):
        app = falcon.asgi.App()

        class Page:
            async def on_get(self, req, resp):
                try:
                    answer = await called(face, given(probes[req.path], _async_form(req)))
                except Raised as raised:
                    raise _raised(raised) from None
                if isinstance(answer, File):
                    resp.set_stream(_parts(answer.path), answer.path.stat().st_size)
                    return
                resp.status = answer.status
                if isinstance(answer, Stream):
                    resp.stream = _encoded(face, answer.parts)
                    return
                resp.text = answer.text
                if answer.after is not None:
                    resp.schedule(_later(face, answer.after))

            on_post = on_get

        for path in probes:
            app.add_route(path, Page())
        app.add_error_handler(Mistaken, _handled_async)
        self.app = app
        return in_units(app, face.db, close=True, **boundary)

    def exchanging(self, app, face, exchange):
        self.app.add_route("/ws", _Talk(face, exchange))

    def beside(self, app, second):
        return in_units(app, second, close=True)

    def serve(self, app, threads):
        return http.uvicorn(app, threads)


def _form(req):
    async def form():
        fields = {}
        for part in req.media:
            fields[part.name] = len(part.stream.read()) if part.filename else part.text
        return fields["name"], fields["file"]

    return form


def _async_form(req):
    async def form():
        fields = {}
        async for part in await req.get_media():
            fields[part.name] = len(await part.stream.read()) if part.filename else await part.text
        return fields["name"], fields["file"]

    return form


async def _parts(path):
    with path.open("rb") as file:
        while part := file.read(0x10000):
            yield part


class _Talk:
    def __init__(self, face, exchange):
        self.face, self.exchange = face, exchange

    async def on_websocket(self, req, socket):
        await socket.accept()
        with contextlib.suppress(falcon.WebSocketDisconnected):
            while True:
                text = await socket.receive_text()
                await socket.send_text(await called(self.face, lambda text=text: self.exchange(text)))


def _later(face, after):
    async def later():
        await called(face, after)

    return later


def _raised(raised):
    return falcon.HTTPStatus(raised.status, {"Location": raised.location} if raised.location else None, text="raised")


async def _encoded(face, parts):
    try:
        while True:
            try:
                part = await called(face, parts.__anext__)
            except StopAsyncIteration:
                return
            yield part.encode()
    finally:
        await called(face, parts.aclose)


def _handled(req, resp, error, params):
    resp.status, resp.text = 409, "handled"


async def _handled_async(req, resp, error, params):
    _handled(req, resp, error, params)


HOSTS = [OnWsgi(), OnAsgi()]
