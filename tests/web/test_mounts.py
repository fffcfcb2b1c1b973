"""Applications within applications, beside what the contract asks of every host."""

import flask
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from tenure.web.asgi import UnitMiddleware
from tenure.web.flask import Tenure

from support.asgi import live, run
from support.models import User

pytestmark = pytest.mark.drivers("sqlite", "aiosqlite")

blocking = pytest.mark.faces("sync")
on_loop = pytest.mark.faces("async")


async def ask(app, path):
    """The status of an answer."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": "GET", "path": path, "root_path": "", "query_string": b"", "headers": []}, receive, send)
    return sent[0]["status"]


def served(face, routes):
    app = Starlette(routes=routes)
    app.add_middleware(UnitMiddleware, face.db)
    return app


@on_loop
@pytest.mark.parametrize("both", [False, True], ids=["outer", "both"])
def test_a_mounted_application_is_a_part_of_the_request(face, stored, told, both):
    """R22: it is one unit, whether the mounted application has the middleware too or not, and its status decides."""

    async def write(request: Request):
        face.db.session.add(User(name=request.url.path))
        return PlainTextResponse("", int(request.path_params["status"]))

    inner = Starlette(routes=[Route("/{status}", write)])
    if both:
        inner.add_middleware(UnitMiddleware, face.db)
    app = served(face, [Mount("/inner", app=inner), Route("/{status}", write)])

    async def work():
        async with live(app):
            return [await ask(app, path) for path in ("/200", "/inner/201", "/inner/404")]

    assert run(face, work()) == [200, 201, 404]
    assert stored() == ["/200", "/inner/201"]
    assert [(name, outcome) for name, outcome, _ in told.closed(3)] == [
        ("GET /200", "committed"), ("GET /inner/201", "committed"), ("GET /inner/404", "rolled back"),
    ]  # fmt: skip


@blocking
def test_flask_applications_side_by_side_and_within(face, stored, told):
    """R22: each that a dispatcher knows has its own requests; one that is called from a view is a part of the view's request."""
    outer, inner = flask.Flask("outer"), flask.Flask("inner")
    Tenure(outer, face.db)
    Tenure(inner, face.db)

    @inner.get("/<int:status>")
    def write(status):
        face.db.session.add(User(name=flask.request.script_root + flask.request.path))
        return "", status

    @outer.get("/within")
    def within():
        face.db.session.add(User(name="within"))
        return inner.wsgi_app  # Flask calls an answer that is an application

    outer.add_url_rule("/<int:status>", view_func=write)
    client = Client(DispatcherMiddleware(outer, {"/inner": inner}))

    assert [client.get(path, buffered=True).status_code for path in ("/200", "/inner/201", "/inner/404", "/within")] == [
        200,
        201,
        404,
        404,
    ]
    assert stored() == ["/200", "/inner/201"]
    assert [outcome for _, outcome, _ in told.closed(4)] == ["committed", "committed", "rolled back", "rolled back"]
