"""web.py on its own server."""

import sys
from http import HTTPStatus

import web

from contract.host import Host, Mistaken, Raised, Stream, driven, in_thread
from tenure.web.webpy import processor

from support import http
from support.face import drive

web.config.debug = False  # else an error is answered with a page of its traceback


class WebPy(Host):
    name = "webpy"

    def application(self, face, probes, **boundary):
        class Page:
            def GET(self, path):  # noqa: N802 - web.py calls it so
                try:
                    answer = drive(probes[path]())
                except Raised as raised:
                    if raised.location:
                        raise web.Redirect(raised.location, _line(raised.status)) from None
                    raise web.HTTPError(_line(raised.status), data="raised") from None
                web.ctx.status = _line(answer.status)
                if isinstance(answer, Stream):
                    return driven(answer.parts)
                in_thread(answer.after)
                return answer.text

            POST = GET

        app = web.application(("(/.*)", Page), autoreload=False)
        app.add_processor(processor(face.db, **boundary))
        app.internalerror = lambda: _handled(sys.exc_info()[1])
        return app

    def beside(self, app, second):
        app.add_processor(processor(second))
        return app

    def serve(self, app, threads):
        return http.cheroot(app.wsgifunc(), threads)


def _handled(error):
    return web.HTTPError(_line(409), data="handled") if isinstance(error, Mistaken) else web.HTTPError(_line(500))


def _line(status):
    return f"{status} {HTTPStatus(status).phrase}"


HOSTS = [WebPy()]
