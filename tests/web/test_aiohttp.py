import asyncio

import anyio
import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tenure.core.events import UnitLeaked
from tenure.exceptions import BadOption, NoUnit, ReadOnlyUnit
from tenure.web.aio import LoopBoundary
from tenure.web.aiohttp import middleware

from support.asgi import run
from support.face import drive, settle
from support.models import Pledge, User

pytestmark = pytest.mark.dialects("sqlite", "postgresql")
alone = pytest.mark.drivers("aiosqlite")


@web.middleware
async def errors(request, handler):
    """What applications have: one place that makes answers of errors."""
    try:
        return await handler(request)
    except IntegrityError:
        return web.Response(text="taken", status=409)
    except LookupError:
        return web.Response(text="never mind")


def application(face, *handlers, middlewares=None, at="/"):
    units = [middleware(face.db)] if middlewares is None else middlewares
    app = web.Application(middlewares=units)
    for one in units:
        if hasattr(one, "boundary"):
            app.on_cleanup.append(lambda _, boundary=one.boundary: settle(boundary.ended()))
    for handler in handlers:
        app.router.add_get(at, handler)
    return app


def served(face, app, work):
    """What ``work(client)`` gives, while *app* is served."""

    async def during():
        async with TestClient(TestServer(app)) as client:
            return await work(client)

    return run(face, during())


async def answered(client, path="/"):
    response = await client.get(path, allow_redirects=False)
    return response.status, await response.text()


# -------------------------------------------------------------------------------- where it commits


@pytest.mark.parametrize("how", ["returned", "raised", "sent", "swallowed"])
def test_middlewares_see_a_failing_commit(face, stored, told, how):
    """R14: one that stands before tenure's answers for a COMMIT that fails, however the handler gives its answer."""

    async def write():
        face.session.add(User(name="ada"))
        await face.session.flush()
        face.session.add(Pledge(user_id=4711))

    async def pledge(request):
        await (write() if face.is_async else anyio.to_thread.run_sync(lambda: drive(write())))
        if how == "raised":
            raise web.HTTPSeeOther("/elsewhere")
        if how == "returned":
            return web.Response(text="a body for nobody", status=201)
        response = web.StreamResponse(status=201)
        response.enable_compression()
        try:
            await response.prepare(request)
        except IntegrityError:
            if how == "swallowed":
                return web.Response(text="a success for nobody")
            raise
        await response.write(b"a body for nobody")
        return response

    app = application(face, pledge, middlewares=[errors, middleware(face.db)])

    assert served(face, app, answered) == (409, "taken")
    assert (stored(), face.out()) == ([], 0)
    assert told.closed() == [("GET /", "rolled back", "IntegrityError")]


@alone
@pytest.mark.parametrize("place", ["before", "after"])
def test_where_a_middleware_for_errors_stands(face, stored, place):
    """R15: what stands after tenure's decides by its answer; an exception that goes by tenure's rolls back."""

    async def add(request):
        face.session.add(User(name="ada"))
        await face.session.flush()
        raise LookupError

    units = middleware(face.db)
    app = application(face, add, middlewares=[errors, units] if place == "before" else [units, errors])

    assert served(face, app, answered) == (200, "never mind")
    assert stored() == (["ada"] if place == "after" else [])


@alone
def test_a_handler_that_gives_no_answer(face, stored, told):
    """R15: aiohttp makes a 500 of it, so its work is not kept."""

    async def add(request):
        face.session.add(User(name="ada"))

    assert served(face, application(face, add), answered)[0] == 500
    assert (stored(), told.closed()) == ([], [("GET /", "rolled back", "status 500")])


@alone
def test_the_session_is_passed_by_the_decorator(face, stored):
    """R22: a decorated handler joins its request's unit, and so do two applications in one."""
    inner = application(face, at="/add")

    @face.db.unit
    async def add(request, session: AsyncSession):
        session.add(User(name="ada"))
        return web.Response(status=400 if session is face.db.session else 500)

    inner.router.add_get("/add", add)
    app = application(face)
    app.add_subapp("/inner", inner)

    assert served(face, app, lambda client: answered(client, "/inner/add"))[0] == 400
    assert stored() == []


@alone
def test_two_databases_in_one_request(face, make_face):
    """R12: they end in the order in which they were opened, also where the handler sends by itself."""
    other, committed = make_face(name="other"), []

    async def add(request):
        for each in (face, other):
            each.session.add(User(name=each.db.name))
            each.db.on_commit(committed.append, each.db.name)
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    app = application(face, add, middlewares=[middleware(face.db), middleware(other.db)])

    assert served(face, app, answered)[0] == 200
    assert committed == ["main", "other"]


# ------------------------------------------------------------------------------- while it is sent


@pytest.mark.faces("async")
def test_a_body_that_aiohttp_makes_while_it_sends(face, told, stored):
    """R16: it reads and may not write, and the unit ends when it was sent."""

    async def parts():
        yield f"{await face.session.scalar(select(User.name))} "
        face.session.add(User(name="late"))
        try:
            await face.session.flush()
        except ReadOnlyUnit:
            face.session.expunge_all()
            yield "refused"

    async def add(request):
        face.session.add(User(name="ada"))
        return web.Response(body=(part.encode() async for part in parts()))

    async def work(client):
        answer = await answered(client)
        while not told.closed():
            await asyncio.sleep(0)
        return answer

    assert served(face, application(face, add), work) == (200, "ada refused")
    assert (stored(), told.closed(1), face.out()) == (["ada"], [("GET /", "committed", "status 200")], 0)


@alone
def test_a_body_that_fails_while_aiohttp_sends_it(face, told, stored):
    """R16: what was committed stands, and the unit ends."""

    async def parts():
        yield str(await face.session.scalar(select(User.name))).encode()
        raise LookupError

    async def add(request):
        face.session.add(User(name="ada"))
        return web.Response(body=parts())

    async def work(client):
        with pytest.raises(ClientPayloadError):
            await answered(client)
        while not told.closed():
            await asyncio.sleep(0)

    served(face, application(face, add), work)
    assert (stored(), told.closed(), face.out()) == (["ada"], [("GET /", "committed", "status 200")], 0)


@alone
@pytest.mark.parametrize("opens", ["before", "in the body"])
def test_a_body_that_is_left_is_not_taken_for_a_leak(make_face, told, opens):
    """R15: between the end of the task that sends a body and that of its unit, who waits for the connection finds no leak."""
    face = make_face(pool_size=1, max_overflow=0)
    boundary = LoopBoundary(face.db)

    async def sending():
        request = boundary.begin("GET /")
        if opens == "before":
            await face.db.session.scalar(select(1))
        await request.settle(200)
        request.finish_with(asyncio.current_task())
        rows = await face.db.session.stream(select(User.name), execution_options={"yield_per": 1})
        await rows.fetchone()  # and the client is gone

    async def left():
        await asyncio.create_task(sending())
        async with face.db.unit() as session:
            return await session.scalar(select(1))

    assert run(face, left()) == 1
    assert told.of(UnitLeaked) == []


@alone
def test_a_websocket_opens_units_of_its_own(face, stored, told):
    """R16: what the handler did before ends with the handshake, then each exchange has its own unit."""

    async def chat(request):
        face.session.add(User(name="handshake"))
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        assert told.closed() == [("GET /", "committed", "status 101")]
        async for message in socket:
            with pytest.raises(NoUnit):
                _ = face.db.session
            async with face.unit() as session:
                session.add(User(name=message.data))
            await socket.send_str(str(sorted(stored())))
        return socket

    async def work(client):
        async with client.ws_connect("/") as socket:
            said = []
            for name in ("ada", "eve"):
                await socket.send_str(name)
                said.append(await socket.receive_str())
            return said

    assert served(face, application(face, chat), work) == ["['ada', 'handshake']", "['ada', 'eve', 'handshake']"]


# ---------------------------------------------------------------------------------- registration


@alone
def test_bad_registrations(make_face):
    """R51: what is wrong is said where the middleware is made; the rest aiohttp says itself."""
    face = make_face()
    app = application(face)
    with pytest.raises(BadOption, match="Application is not a Database or AsyncDatabase"):
        middleware(app)
    app.freeze()
    with pytest.raises(RuntimeError, match="frozen"):
        app.middlewares.append(middleware(face.db))
    run(face, face.close())
    with pytest.raises(BadOption, match="'main' is closed"):
        middleware(face.db)


@alone
def test_none_is_registered(face):
    """R51: a handler that asks for a session is told what is missing."""

    async def ask(request):
        with pytest.raises(NoUnit, match="no unit of 'main' is open in task"):
            _ = face.db.session
        return web.Response()

    assert served(face, application(face, ask, middlewares=[]), answered)[0] == 200


@pytest.mark.drivers("sqlite", "aiosqlite")
def test_the_end_of_the_application(make_face):
    """R31, R55: shutdown hooks still have the database; then it is closed, and its threads have gone."""
    face = make_face()
    units = middleware(face.db)
    app = web.Application(middlewares=[units])
    app.cleanup_ctx.append(units.closing)
    seen = []

    async def last_words(app):
        async with face.unit() as session:
            seen.append(await session.scalar(select(User.name)))

    app.on_shutdown.append(last_words)

    async def add(request):
        async def write():
            face.session.add(User(name="ada"))

        await (write() if face.is_async else anyio.to_thread.run_sync(lambda: drive(write())))
        return web.Response()

    app.router.add_get("/", add)
    assert served(face, app, answered)[0] == 200
    assert (seen, face.db.supply.closed) == (["ada"], True)
    run(face, settle(face.close()))
