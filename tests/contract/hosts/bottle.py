"""Bottle on cheroot."""

import functools

import bottle

from contract.host import File, Host, Mistaken, Raised, Stream, driven, given, in_thread
from tenure.web.bottle import Tenure

from support import http
from support.face import drive


class OnBottle(Host):
    name = "bottle"

    def application(self, face, probes, **boundary):
        app = self.routed(probes)
        app.install(Tenure(face.db, **boundary))
        return app

    def routed(self, probes):
        app = bottle.Bottle()

        def page(probe):
            try:
                answer = drive(given(probe, _form)())
            except Raised as raised:
                if raised.location:
                    bottle.redirect(raised.location, raised.status)
                if raised.status < 400:
                    raise bottle.HTTPResponse("raised", raised.status) from None
                bottle.abort(raised.status)
            if isinstance(answer, File):
                return bottle.static_file(answer.path.name, answer.path.parent)
            bottle.response.status = answer.status
            if isinstance(answer, Stream):
                return driven(answer.parts)
            in_thread(answer.after)
            return answer.text

        for path, probe in probes.items():
            app.route(path, ["GET", "POST"], functools.partial(page, probe))
        app.error(500, _handled)
        return app

    def within(self, face, probes, inner):
        app = self.application(face, probes)
        app.mount("/inner/", self.routed(inner))
        return app

    def beside(self, app, second):
        app.install(Tenure(second))
        return app

    def serve(self, app, threads):
        return http.cheroot(app, threads)


async def _form():
    return bottle.request.forms.name, len(bottle.request.files.file.file.read())


def _handled(error):
    if isinstance(error.exception, Mistaken):
        bottle.response.status = 409
        return "handled"
    return "sorry"


HOSTS = [OnBottle()]
