"""``python served.py gevent URL``: Flask and web.py on the library's own WSGI server, each with a pool of 5; prints their addresses."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from patched import LIBRARY, sleep, spawn  # isort: skip - before anything else is imported

import json

import flask
import web
from sqlalchemy import text

from tenure import Database
from tenure.exceptions import NoUnit
from tenure.web.flask import Tenure
from tenure.web.webpy import processor

web.config.debug = False
FLASK = Database(sys.argv[2], name="flask", pool_size=5, max_overflow=0)
WEBPY = Database(sys.argv[2], name="webpy", pool_size=5, max_overflow=0)
found_open = []


def work(db, kind, name):
    """The body of every page: a row, some waiting, and a look at whose session it is."""
    session = db.session
    if kind == "stream":
        return (f"{db.session.scalar(text('SELECT 1'))}\n" for _ in range(3))
    session.execute(text("INSERT INTO users (name, balance) VALUES (:name, 0)"), {"name": f"{db.name} {kind} {name}"})
    sleep(0.002)
    if db.session is not session:
        raise AssertionError
    if kind == "raise":
        raise ZeroDivisionError
    return [kind]


def status(db):
    numbers = db.status()
    return json.dumps([numbers.in_use, numbers.waiting, numbers.peak, numbers.acquired, found_open])


def look(db):
    """What the greenlet, which may have served another request before, knows when it begins."""
    try:
        found_open.append(db.current.name)
    except NoUnit:
        pass


app = flask.Flask("shop")
app.logger.disabled = True


@app.get("/<kind>/<name>")
def page(kind, name):
    if kind == "status":
        return status(FLASK)
    body = "".join(work(FLASK, kind, name)) if kind != "stream" else work(FLASK, kind, name)
    if kind == "redirect":
        flask.abort(flask.redirect("/elsewhere", 303))
    return body, 400 if kind == "refuse" else 200


Tenure(app, FLASK)


class Page:
    def GET(self, kind, name):  # noqa: N802 - web.py calls it so
        if kind == "status":
            return status(WEBPY)
        body = work(WEBPY, kind, name)
        if kind == "redirect":
            raise web.seeother("/elsewhere")
        if kind == "refuse":
            web.ctx.status = "400 Bad Request"
        return body if kind == "stream" else "".join(body)


pages = web.application(("/(.*)/(.*)", Page), autoreload=False)
pages.add_processor(processor(WEBPY))
pages.internalerror = lambda: web.HTTPError("500 Internal Server Error")


def looking(application, db):
    def look_first(environ, start_response):
        look(db)
        return application(environ, start_response)

    return look_first


applications = [looking(app, FLASK), looking(pages.wsgifunc(), WEBPY)]
if LIBRARY == "gevent":
    from gevent.pywsgi import WSGIServer

    servers = [WSGIServer(("127.0.0.1", 0), one, log=None, error_log=None) for one in applications]
    for one in servers:
        one.start()
    ports = [one.server_port for one in servers]
else:
    import eventlet
    from eventlet import wsgi

    sockets = [eventlet.listen(("127.0.0.1", 0), backlog=256) for _ in applications]
    ports = [one.getsockname()[1] for one in sockets]
    for listening, one in zip(sockets, applications, strict=True):
        spawn(wsgi.server, listening, one, log_output=False)
print(json.dumps(ports), flush=True)
while True:
    sleep(60)
