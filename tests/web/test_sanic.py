import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap

import anyio
import pytest
import sanic
from sanic.exceptions import SanicException
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

import tenure
from tenure.exceptions import BadOption, NoUnit, Overloaded
from tenure.web.asgi import UnitMiddleware
from tenure.web.sanic import Tenure

from support import http
from support.asgi import call, run
from support.face import PATIENCE, drive
from support.models import Pledge, User

pytestmark = pytest.mark.dialects("sqlite", "postgresql")
alone = pytest.mark.drivers("aiosqlite")
numbers = itertools.count()


@pytest.fixture
def app():
    app = sanic.Sanic(f"test-{next(numbers)}", configure_logging=False)
    yield app
    sanic.Sanic.unregister_app(app)


def taken(request, error):
    return sanic.text("taken", 409)


async def pledge_for_nobody(face):
    async def write():
        face.session.add(User(name="ada"))
        await face.session.flush()
        face.session.add(Pledge(user_id=4711))

    await (write() if face.is_async else anyio.to_thread.run_sync(lambda: drive(write())))


# -------------------------------------------------------------------------------- where it commits


@pytest.mark.parametrize("how", ["returned", "raised", "sent", "swallowed"])
def test_exception_handlers_see_a_failing_commit(face, app, stored, told, how):
    """R14: the handler of an IntegrityError answers for a COMMIT that fails, however the handler gives its answer."""
    Tenure(app, face.db, close=True)
    app.exception(IntegrityError)(taken)

    @app.get("/")
    async def pledge(request):
        await pledge_for_nobody(face)
        if how == "raised":
            raise SanicException("a body for nobody", 303)
        if how == "returned":
            return sanic.text("a body for nobody", 201)
        response = await request.respond(status=201)
        try:
            await response.send("a body for nobody")
        except IntegrityError:
            if how == "swallowed":
                return sanic.text("a success for nobody")
            raise
        return None

    with http.sanic(app) as address:
        response = http.fetch(address)

    assert (response.status, response.text) == (409, "taken")
    assert (stored(), face.out()) == ([], 0)
    assert told.closed() == [("GET /", "rolled back", "IntegrityError")]


@alone
def test_middleware_works_in_the_requests_unit(face, app, stored, told):
    """R15, R22: before the handler and after it; what an exception handler answers decides, be it a success."""
    Tenure(app, face.db, close=True)

    @app.on_request
    async def before(request):
        face.db.session.add(User(name=f"before {request.path}"))

    @app.on_response
    async def after(request, response):
        face.db.session.add(User(name=f"after {request.path}"))

    @app.get("/kept")
    async def kept(request):
        await joined(request)
        raise LookupError

    @face.db.unit
    async def joined(request, session: AsyncSession):
        session.add(User(name="handler"))

    @app.get("/lost")
    async def lost(request):
        raise ArithmeticError

    app.exception(LookupError)(lambda request, error: sanic.text("never mind"))
    with http.sanic(app) as address:
        statuses = [http.fetch(address, path).status for path in ("/kept", "/lost", "/missing")]
        told.closed(3)

    assert statuses == [200, 500, 404]
    assert stored() == ["after /kept", "before /kept", "handler"]
    assert [reason for _, _, reason in told.closed()] == ["status 200", "ArithmeticError", "status 404"]


@alone
def test_a_connection_that_is_kept_keeps_nothing(face, app, told):
    """R22: a connection is one task, and each request on it has its own unit."""
    Tenure(app, face.db, close=True)
    seen = []

    @app.get("/")
    async def ask(request):
        seen.append(face.db.session)
        return sanic.text(str(seen[0] is seen[-1]))

    @app.signal("http.lifecycle.read_head")
    async def between(head):
        with pytest.raises(NoUnit):
            _ = face.db.session

    async def twice():
        with http.sanic(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            answers = []
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                answers.append(await reader.readexactly(5 if answers else 4))
            writer.close()
            return answers

    assert asyncio.run(asyncio.wait_for(twice(), PATIENCE)) == [b"True", b"False"]
    assert len(told.closed(2)) == 2


@alone
@pytest.mark.parametrize("how", ["returned", "sent"])
def test_a_client_that_has_written_gets_its_cookie(tmp_path, url, watch, app, how):
    """R41: however the handler answers, and one cookie."""
    db = tenure.AsyncDatabase(url, replicas=[f"sqlite+aiosqlite:///{tmp_path}/replica.db"])
    face = watch(db, "aiosqlite")
    Tenure(app, db, close=True, position_cookie="seen")

    @app.get("/")
    async def add(request):
        face.db.session.add(User(name="ada"))
        if how == "returned":
            return sanic.text("added", 201)
        response = await request.respond(status=201)
        await response.send("added")
        await response.eof()
        return None

    with http.sanic(app) as address, http.socket.create_connection(address, PATIENCE) as talk:
        talk.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        said = b"".join(iter(lambda: talk.recv(1000), b"")).decode()
    assert said.startswith("HTTP/1.1 201 ")
    assert (
        len(re.findall(r"set-cookie: seen=[pt][0-9a-f]+; Path=/; Max-Age=600; HttpOnly; SameSite=Lax", said, re.IGNORECASE)) == 1
    )


@alone
def test_a_client_that_waits_before_it_sends_its_body(face, app, stored):
    """R14: what the server says before the status is no answer."""
    Tenure(app, face.db, close=True)

    @app.post("/")
    async def add(request):
        face.db.session.add(User(name=request.body.decode()))
        return sanic.text("added", 201)

    with http.sanic(app) as address, http.socket.create_connection(address, PATIENCE) as talk:
        talk.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert talk.recv(1000).startswith(b"HTTP/1.1 100 ")
        talk.sendall(b"ada")
        assert talk.recv(1000).startswith(b"HTTP/1.1 201 ")
    assert stored() == ["ada"]


@alone
def test_a_websocket_opens_units_of_its_own(face, app, stored, told):
    """R16: what came before ends with the handshake, then each exchange has its own unit."""
    from websockets.sync.client import connect

    Tenure(app, face.db, close=True)

    @app.on_request
    async def before(request):
        face.db.session.add(User(name="handshake"))

    @app.websocket("/")
    async def chat(request, socket):
        assert told.closed() == [("GET /", "committed", "status 101")]
        async for message in socket:
            with pytest.raises(NoUnit):
                _ = face.db.session
            async with face.unit() as session:
                session.add(User(name=message))
            await socket.send(str(sorted(stored())))

    with http.sanic(app) as (host, port), connect(f"ws://{host}:{port}/") as socket:
        said = []
        for name in ("ada", "eve"):
            socket.send(name)
            said.append(socket.recv(PATIENCE))

    assert said == ["['ada', 'handshake']", "['ada', 'eve', 'handshake']"]


@alone
def test_a_handler_for_overloaded_is_asked_first(face, app):
    """R37: the 503 is for what nobody has caught."""
    Tenure(app, face.db, close=True)
    app.exception(Overloaded)(taken)

    @app.get("/")
    async def ask(request):
        message = "full"
        raise Overloaded(message)

    with http.sanic(app) as address:
        assert http.fetch(address).status == 409


# ---------------------------------------------------------------------------------- registration


@alone
def test_bad_registrations(make_face, app):
    """R51: what is wrong is said where the application is registered, or when it is started on the wrong server."""
    face = make_face()
    for wrong in (lambda: Tenure("app", face.db), lambda: Tenure(app), lambda: Tenure(app, "sqlite://")):
        with pytest.raises(BadOption):
            wrong()
    Tenure(database=face.db).init_app(app)
    with pytest.raises(BadOption, match="registered with 'main' already"):
        Tenure(app, face.db)

    app.config.TOUCHUP = False
    app.add_route(lambda request: None, "/")
    (failed, _) = run(face, on_asgi(app))
    assert failed["type"] == "lifespan.startup.failed"
    assert re.search(r"runs on an ASGI server.*Write app = UnitMiddleware\(app, db\)", failed["message"])
    other = make_face(name="other")
    with pytest.raises(BadOption, match="is at work already"):
        Tenure(app, other.db)
    run(face, face.close())
    with pytest.raises(BadOption, match="'main' is closed"):
        Tenure(app, face.db)


async def on_asgi(app):
    """What *app* says when an ASGI server starts and stops it."""
    told = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    said = []

    async def receive():
        return told.pop(0)

    async def send(message):
        said.append(message)

    await app({"type": "lifespan"}, receive, send)
    return said


@alone
def test_on_an_asgi_server(face, app, stored):
    """R14: there UnitMiddleware is around the application, and exception handlers see a failing COMMIT as well."""
    app.config.TOUCHUP = False
    app.exception(IntegrityError)(taken)

    @app.get("/")
    async def add(request):
        face.db.session.add(User(name="ada"))
        return sanic.text("added", 201)

    async def twice():
        served = UnitMiddleware(app, face.db)
        await on_asgi(served)
        scope = {"http_version": "1.1", "raw_path": b"/", "query_string": b"", "server": ("test", 80), "client": ("test", 1)}
        return [(await call(served, scope))[0]["status"] for _ in range(2)]

    assert run(face, twice()) == [201, 409]
    assert stored() == ["ada"]


@alone
def test_none_is_registered(face, app):
    """R51: a handler that asks for a session is told what is missing."""
    seen = []

    @app.get("/")
    async def ask(request):
        try:
            _ = face.db.session
        except NoUnit as error:
            seen.append(str(error))
        return sanic.text("")

    with http.sanic(app) as address:
        http.fetch(address)
    assert seen[0].startswith("no unit of 'main' is open in task")


PROGRAM = """
import sys
from sanic import Sanic, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tenure import AsyncDatabase
from tenure.web.sanic import Tenure

class Base(DeclarativeBase): ...

class Person(Base):
    __tablename__ = "people"
    name: Mapped[str] = mapped_column(primary_key=True)

db = AsyncDatabase("sqlite+aiosqlite:///app.db")
app = Sanic("people", configure_logging=False)
app.config.MOTD = False
Tenure(app, db, close=True)

@app.before_server_start
async def tables(app):
    async with db.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

@app.get("/returned")
async def returned(request):
    db.session.add(Person(name="ada"))
    return text("added", 201)

@app.get("/sent")
async def sent(request):
    db.session.add(Person(name="ada"))
    response = await request.respond(status=201)
    await response.send("added")

@app.exception(IntegrityError)
async def taken(request, error):
    return text("taken", 409)

@app.after_server_start
async def started(app):
    print("started", flush=True)

if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), single_process=True, access_log=False)
    print("closed" if db.supply.closed else "open")
"""


@alone
def test_as_a_program(face, tmp_path):
    """R14, R31: Sanic changes its own code when it starts, but not what this stands on; SIGTERM closes the database."""
    (tmp_path / "app.py").write_text(textwrap.dedent(PROGRAM))
    with http.socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "app.py", str(address[1])]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "started\n"
        statuses = [http.fetch(address, path).status for path in ("/returned", "/sent", "/returned")]
        program.send_signal(signal.SIGTERM)
        said = program.stdout.read()
    assert (statuses, said, program.returncode) == ([201, 409, 409], "closed\n", 0)
