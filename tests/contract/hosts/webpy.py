"""web.py on its own server."""

import sys
from http import HTTPStatus

import web

from contract.host import File, Host, Mistaken, Raised, Stream, driven, given, in_thread
from tenure.web.webpy import processor

from support import http
from support.face import drive

web.config.debug = False  # else an error is answered with a page of its traceback


class WebPy(Host):
    name = "webpy"
    ranges = False

    def application(self, face, probes, **boundary):
        app = web.application(("(/.*)", _pages(probes)), autoreload=False)
        return self.served(app, face, **boundary)

    def served(self, app, face, **boundary):
        app.add_processor(processor(face.db, **boundary))
        app.internalerror = lambda: _handled(sys.exc_info()[1])
        return app

    def within(self, face, probes, inner):
        inside = web.application(("(/.*)", _pages(inner)), autoreload=False)
        return self.served(web.application(("/inner", inside, "(/.*)", _pages(probes)), autoreload=False), face)

    def beside(self, app, second):
        app.add_processor(processor(second))
        return app

    def serve(self, app, threads):
        return http.cheroot(app.wsgifunc(), threads)


def _pages(probes):
    class Page:
        def GET(self, path):  # noqa: N802 - web.py calls it so
            try:
                answer = drive(given(probes[path], _form)())
            except Raised as raised:
                if raised.location:
                    raise web.Redirect(raised.location, _line(raised.status)) from None
                raise web.HTTPError(_line(raised.status), data="raised") from None
            if isinstance(answer, File):
                return _parts(answer.path) if web.ctx.method == "GET" else ""  # web.py sends a body for HEAD, too
            web.ctx.status = _line(answer.status)
            if isinstance(answer, Stream):
                return driven(answer.parts)
            in_thread(answer.after)
            return answer.text

        POST = GET

    return Page


async def _form():
    found = web.input(file={})
    return found.name, len(found.file.file.read())


def _parts(path):
    with path.open("rb") as file:
        while part := file.read(0x10000):
            yield part


def _handled(error):
    return web.HTTPError(_line(409), data="handled") if isinstance(error, Mistaken) else web.HTTPError(_line(500))


def _line(status):
    return f"{status} {HTTPStatus(status).phrase}"


class Green(WebPy):
    """On the server of gevent or eventlet."""

    name = f"webpy-{http.GREEN}"

    def serve(self, app, threads):
        return http.green(app.wsgifunc(), threads)


HOSTS = [Green() if http.GREEN else WebPy()]
