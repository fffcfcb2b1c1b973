"""Flask on two servers: cheroot and werkzeug's own."""

import contextlib
import logging

import flask
from werkzeug import serving
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from contract.host import File, Host, Mistaken, Raised, Stream, driven, given, in_thread
from tenure.web.flask import Tenure

from support import http
from support.face import drive


def answer_raised(raised):
    """As a view of Flask raises it."""
    if raised.location:
        flask.abort(flask.redirect(raised.location, raised.status))
    if raised.status < 400:
        raise HTTPException(response=flask.Response("raised", raised.status)) from None
    flask.abort(raised.status)


class Flask(Host):
    def __init__(self, name, server):
        self.name = name
        self.serve = server

    def application(self, face, probes, **boundary):
        app = flask.Flask("probes")
        Tenure(app, face.db, **boundary)

        def page():
            try:
                answer = drive(given(probes[flask.request.path], _form)())
            except Raised as raised:
                answer_raised(raised)
            if isinstance(answer, Stream):
                return flask.stream_with_context(driven(answer.parts)), answer.status
            if isinstance(answer, File):
                return flask.send_file(answer.path, conditional=True)
            in_thread(answer.after)
            return answer.text, answer.status

        for path in probes:
            app.add_url_rule(path, path, page, methods=["GET", "POST"])
        app.register_error_handler(Mistaken, lambda error: ("handled", 409))
        app.logger.setLevel(logging.CRITICAL + 1)
        return app

    def within(self, face, probes, inner):
        return DispatcherMiddleware(self.application(face, probes), {"/inner": self.application(face, inner)})

    def beside(self, app, second):
        Tenure(app, second)
        return app


async def _form():
    return flask.request.form["name"], len(flask.request.files["file"].read())


@contextlib.contextmanager
def werkzeug(app, threads):
    """The server of ``flask run``: a new thread for each request."""
    server = serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent)
    with http.serving(server, "werkzeug") as address:
        yield address


class _Silent(serving.WSGIRequestHandler):
    protocol_version = "HTTP/1.0"  # as the client speaks it; else it sends chunks

    def log(self, *args):
        """The tests look at the answers."""


HOSTS = [Flask("flask-cheroot", http.cheroot), Flask("flask-werkzeug", werkzeug)]
if http.GREEN:
    HOSTS = [Flask(f"flask-{http.GREEN}", http.green)]
