"""Bottle on cheroot."""

import bottle

from contract.host import Host, Mistaken, Raised, Stream, driven, in_thread
from tenure.web.bottle import Tenure

from support import http
from support.face import drive


class OnBottle(Host):
    name = "bottle"

    def application(self, face, probes, **boundary):
        app = bottle.Bottle()
        app.install(Tenure(face.db, **boundary))

        def page():
            try:
                answer = drive(probes[bottle.request.path]())
            except Raised as raised:
                if raised.location:
                    bottle.redirect(raised.location, raised.status)
                if raised.status < 400:
                    raise bottle.HTTPResponse("raised", raised.status) from None
                bottle.abort(raised.status)
            bottle.response.status = answer.status
            if isinstance(answer, Stream):
                return driven(answer.parts)
            in_thread(answer.after)
            return answer.text

        for path in probes:
            app.route(path, ["GET", "POST"], page)
        app.error(500, _handled)
        return app

    def beside(self, app, second):
        app.install(Tenure(second))
        return app

    def serve(self, app, threads):
        return http.cheroot(app, threads)


def _handled(error):
    if isinstance(error.exception, Mistaken):
        bottle.response.status = 409
        return "handled"
    return "sorry"


HOSTS = [OnBottle()]
