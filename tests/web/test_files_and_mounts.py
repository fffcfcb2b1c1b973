"""Files that a framework sends by itself, large uploads, and applications within applications."""

import asyncio

import flask
import pytest
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse
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


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "report.txt"
    made.write_bytes(b"0123456789" * 20_000)
    return made


async def ask(app, path="/", *, method="GET", headers=(), body=()):
    """Status, headers and body of an answer; *body* are the parts of the request's."""
    parts = [{"type": "http.request", "body": one, "more_body": True} for one in body]
    parts.append({"type": "http.request", "body": b"", "more_body": False})
    sent = []

    async def receive():
        if not parts:
            await asyncio.Event().wait()  # the client stays
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": "", "query_string": b"", "headers": list(headers)}
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(one.get("body", b"") for one in sent)


def served(face, routes):
    app = Starlette(routes=routes)
    app.add_middleware(UnitMiddleware, face.db)
    return app


# ------------------------------------------------------------------------------------------------------ files


@on_loop
def test_files_and_ranges_on_a_loop(face, file, stored, told):
    """R16: a whole file, a part of it, one that the client has already, and HEAD are each one unit, ended with the last byte."""

    async def download(request: Request):
        face.db.session.add(User(name=f"{request.method} {request.headers.get('range')}"))
        return FileResponse(file)

    app = served(face, [Route("/", download, methods=["GET", "HEAD"])])

    async def work():
        async with live(app):
            whole = await ask(app)
            part = await ask(app, headers=[(b"range", b"bytes=2-4")])
            head = await ask(app, method="HEAD")
        return whole, part, head

    whole, part, head = run(face, work())

    assert (whole[0], len(whole[2])) == (200, 200_000)
    assert (part[0], part[1][b"content-range"], part[2]) == (206, b"bytes 2-4/200000", b"234")
    assert (head[0], head[1][b"content-length"], head[2]) == (200, b"200000", b"")
    assert stored() == ["GET None", "GET bytes=2-4", "HEAD None"]
    assert [(outcome, reason) for _, outcome, reason in told.closed(3)] == [
        ("committed", "status 200"), ("committed", "status 206"), ("committed", "status 200"),
    ]  # fmt: skip
    assert face.out() == 0


@blocking
def test_files_and_ranges_in_flask(face, file, stored, told):
    """R16: the same in Flask, with the 304 that its conditional answers bring."""
    app = flask.Flask("files")
    Tenure(app, face.db)

    @app.get("/")
    def download():
        face.db.session.add(User(name=f"{flask.request.method} {flask.request.headers.get('Range', len(stored()))}"))
        return flask.send_file(file, conditional=True)

    client = app.test_client()
    whole = client.get("/", buffered=True)
    part = client.get("/", headers={"Range": "bytes=2-4"}, buffered=True)
    same = client.get("/", headers={"If-None-Match": whole.headers["ETag"]}, buffered=True)
    head = client.head("/", buffered=True)

    assert (whole.status_code, len(whole.data)) == (200, 200_000)
    assert (part.status_code, part.headers["Content-Range"], part.data) == (206, "bytes 2-4/200000", b"234")
    assert (same.status_code, same.data) == (304, b"")
    assert (head.status_code, head.content_length, head.data) == (200, 200_000, b"")
    assert stored() == ["GET 0", "GET 2", "GET bytes=2-4", "HEAD 3"]
    assert [outcome for _, outcome, _ in told.closed(4)] == ["committed"] * 4


@on_loop
def test_an_upload_on_a_loop(face, stored, told):
    """R16: a body that comes in parts is read within the unit, which holds no connection while it comes."""

    async def upload(request: Request):
        await face.db.session.scalar(select(User.name))
        size = 0
        async for part in request.stream():
            assert face.out() == 0
            size += len(part)
        face.db.session.add(User(name=str(size)))
        return PlainTextResponse("", 201)

    app = served(face, [Route("/", upload, methods=["POST"])])

    async def work():
        async with live(app):
            return await ask(app, method="POST", body=[b"x" * 65536] * 64)

    assert run(face, work())[0] == 201
    assert (stored(), len(told.closed(1))) == (["4194304"], 1)


@blocking
def test_an_upload_in_flask(face, stored, told):
    """R16: the same in Flask."""
    app = flask.Flask("uploads")
    Tenure(app, face.db)

    @app.post("/")
    def upload():
        face.db.session.scalar(select(User.name))
        size = 0
        while part := flask.request.stream.read(65536):
            assert face.out() == 0
            size += len(part)
        face.db.session.add(User(name=str(size)))
        return "", 201

    assert app.test_client().post("/", data=b"x" * 4_194_304).status_code == 201
    assert (stored(), len(told.closed(1))) == (["4194304"], 1)


# ------------------------------------------------------------------------------- applications within applications


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
            return [(await ask(app, path))[0] for path in ("/200", "/inner/201", "/inner/404")]

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
