import asyncio
import contextvars
import re
import threading

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy import select

from tenure.core.current import nobody
from tenure.core.plan import Outcome
from tenure.engines import waiting
from tenure.exceptions import BadOption, NoUnit
from tenure.web import aio
from tenure.web.aio import LoopBoundary
from tenure.web.asgi import UnitMiddleware

from support.asgi import call, live, run
from support.face import PATIENCE
from support.models import Pledge, User

pytestmark = pytest.mark.dialects("sqlite", "postgresql")

blocking = pytest.mark.faces("sync")
alone = pytest.mark.drivers("sqlite", "aiosqlite")


@pytest.fixture
def wrap(make_face):
    """``wrap(app, db)`` is the middleware; its threads end with the test, as they do with the lifespan."""
    made = []

    def make(app, db, **options):
        made.append(UnitMiddleware(app, db, **options))
        return made[-1]

    yield make
    for one in made:
        one.boundary.ended()


async def off_loop(face, function):
    """What a ``def`` endpoint does on a `Database`, and an ``async def`` one on an `AsyncDatabase`."""
    return await function() if face.is_async else await anyio.to_thread.run_sync(lambda: _driven(function))


def _driven(function):
    coroutine = function()
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    return stop.value.value


async def write(face, name="ada"):
    async def work():
        face.session.add(User(name=name))
        await face.session.flush()

    await off_loop(face, work)


def start(status=200):
    return {"type": "http.response.start", "status": status, "headers": []}


BODY = {"type": "http.response.body", "body": b"done"}


def kinds(sent):
    return [(one["type"].rpartition(".")[2], one.get("status")) for one in sent]


@blocking
def test_a_handler_on_the_loop_does_not_stop_it(make_face, stored, wrap):
    """R18: an `async def` handler that uses a `Database` and would wait for a connection is refused at once, and the loop goes on."""
    face = make_face(pool_size=1, max_overflow=0)

    async def app(scope, receive, send):
        face.session.raw.execute(sa.insert(User).values(name=scope["path"]))
        await asyncio.sleep(0)
        await send(start(201))
        await send(BODY)

    async def both():
        served = wrap(app, face.db)
        calls = [asyncio.create_task(call(served, {"path": path})) for path in ("/first", "/second")]
        await asyncio.wait(calls)
        return [task.exception() or kinds(task.result())[0] for task in calls]

    first, second = run(face, both())

    assert first == ("start", 201)
    assert re.match(r"'GET /second' \(test_asgi\.py:\d+\) needs a connection of 'main', whose 1 are out", str(second))
    assert stored() == ["/first"]


# ---------------------------------------------------------------------------------- the first byte


def test_settled_before_the_first_message(face, stored, told, wrap):
    """R14: the row is there when the server is told to start, and the unit has ended when it is given the last of the body."""
    seen = []

    async def app(scope, receive, send):
        await write(face)
        await send(start(201))
        await send({**BODY, "more_body": True})
        await send(BODY)

    sent = run(face, call(wrap(app, face.db), seen=lambda _: seen.append((stored(), len(told.closed())))))

    assert kinds(sent) == [("start", 201), ("body", None), ("body", None)]
    assert seen == [(["ada"], 0), (["ada"], 0), (["ada"], 1)]
    assert told.closed() == [("GET /", "committed", "status 201")]


async def _fail(face):
    async def work():
        face.session.add(Pledge(user_id=4711))
        await face.session.flush()

    await write(face)
    await off_loop(face, work)


@pytest.mark.parametrize("answer", [None, 409, 200])
def test_a_failing_commit(face, stored, told, answer, wrap):
    """R14: nothing of the old answer leaves; an application that catches the error may answer with one, never with a success."""

    async def app(scope, receive, send):
        await _fail(face)
        try:
            await send(start(201))
        except sa.exc.IntegrityError:
            if answer is None:
                with pytest.raises(sa.exc.IntegrityError):
                    await send(BODY)
                return
            await send(start(answer))
        await send(BODY)

    sent = []
    middleware = wrap(app, face.db)
    if answer == 409:
        run(face, call(middleware, seen=sent.append))
    else:
        with pytest.raises(sa.exc.IntegrityError):
            run(face, call(middleware, seen=sent.append))

    assert kinds(sent) == ([("start", 409), ("body", None)] if answer == 409 else [])
    assert (stored(), stored(Pledge.id), face.out()) == ([], [], 0)
    assert told.closed() == [("GET /", "rolled back", "IntegrityError")]


def test_an_error_of_the_frameworks_does_not_hide_the_databases(face, wrap):
    """R50: Starlette wraps what is raised after it has begun to answer; the server is told of the database's error."""

    async def app(scope, receive, send):
        await _fail(face)
        try:
            await send(start(201))
        except sa.exc.IntegrityError as error:
            message = "Caught handled exception, but response already started."
            raise RuntimeError(message) from error

    with pytest.raises(sa.exc.IntegrityError):
        run(face, call(wrap(app, face.db)))


@alone
def test_an_application_that_does_not_answer(face, stored, told, wrap):
    """R16: its work is rolled back."""

    async def app(scope, receive, send):
        await write(face)

    assert run(face, call(wrap(app, face.db))) == []
    assert (stored(), told.closed()) == ([], [("GET /", "rolled back", "RuntimeError")])


# ------------------------------------------------------------------------------- where it is current


@alone
def test_the_servers_task_keeps_nothing(face, wrap):
    """R22: a task that serves one request after another, as test clients have it, finds nothing of the last one."""

    async def app(scope, receive, send):
        seen.append(face.db.session)
        await send(start())
        await send(BODY)

    async def twice():
        for _ in range(2):
            await call(wrap(app, face.db))
            assert face.db.current_place.var.get() is nobody
            assert waiting.BESIDE.get() is None

    seen = []
    run(face, twice())
    assert seen[0] is not seen[1]


@alone
def test_an_application_mounted_in_another_is_one_unit(face, told, wrap):
    """R22: an application mounted in another works in the same request."""

    async def app(scope, receive, send):
        await write(face)
        await send(start())
        await send(BODY)

    inner = wrap(app, face.db)

    async def mount(*given):
        await inner(*given)

    run(face, call(wrap(mount, face.db)))
    assert told.closed() == [("GET /", "committed", "status 200")]


@alone
def test_a_websocket_has_no_unit(face, stored, wrap):
    """R16: each exchange opens its own."""

    async def app(scope, receive, send):
        with pytest.raises(NoUnit):
            _ = face.db.session
        async with face.unit() as session:
            session.add(User(name="exchange"))
        await send({"type": "websocket.close"})

    assert run(face, call(wrap(app, face.db), {"type": "websocket"})) == [{"type": "websocket.close"}]
    assert stored() == ["exchange"]


@alone
@pytest.mark.parametrize("close", [False, True])
def test_the_lifespan(make_face, close, wrap):
    """R55: it is passed on, and closes the database only where that was asked for."""
    face = make_face()
    closed = []
    original = face.db.supply.close
    face.db.supply.close = lambda: (closed.append(True), original())

    async def app(scope, receive, send):
        await send({"type": "lifespan.startup.complete"})
        assert closed == []
        await send({"type": "lifespan.shutdown.complete"})

    sent = run(face, call(wrap(app, face.db, close=close), {"type": "lifespan"}))
    assert [one["type"] for one in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed == [True] * close


@alone
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_an_application_without_a_lifespan(make_face, wrap, how):
    """R31: the database is closed at the end also where the application knows of no lifespan."""
    face = make_face()

    async def app(scope, receive, send):
        assert scope["type"] == "http" or how == "returns"

    async def lived():
        async with live(wrap(app, face.db, close=True)):
            assert not face.db.supply.closed

    run(face, lived())
    assert face.db.supply.closed


@alone
@pytest.mark.parametrize("close", [False, True])
def test_an_application_that_does_not_start(make_face, wrap, close):
    """R31: its own error is the server's to see, and what was lent to it is closed."""
    face = make_face()

    async def app(scope, receive, send):
        await receive()
        raise LookupError

    with pytest.raises(LookupError):
        run(face, call(wrap(app, face.db, close=close), {"type": "lifespan"}))
    assert face.db.supply.closed is close


@alone
def test_the_end_of_the_lifespan_drains(make_face, wrap):
    """R31: work that outlives the requests has the seconds of `close=` to end, before the server is told that all is over."""
    face = make_face()

    async def work(session, free, done):
        await session.execute(select(User.name))
        await free.wait()
        session.add(User(name="ada"))
        done.append(True)

    async def app(scope, receive, send):
        done, free = [], face.event()
        task = asyncio.create_task(off_loop(face, lambda: face.decorated(work)(free, done)))
        await send({"type": "lifespan.startup.complete"})
        while not face.db.units.now():
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, free.set)
        await send({"type": "lifespan.shutdown.complete"})
        assert done == [True]
        await task

    run(face, call(wrap(app, face.db, close=PATIENCE), {"type": "lifespan"}))
    assert face.db.supply.closed


@pytest.mark.parametrize("options", [{"commit": "never"}, {"commit_if": 3}, {"close": -1}, {"close": "yes"}])
@alone
def test_bad_options(face, options):
    """R51: what is wrong is said when the middleware is made."""
    with pytest.raises(BadOption):
        UnitMiddleware(lambda scope, receive, send: None, face.db, **options)
    with pytest.raises(BadOption):
        UnitMiddleware(lambda scope, receive, send: None, "sqlite://")


@alone
def test_a_closed_database(make_face):
    """R51: a database that was closed is refused when the middleware is made."""
    face = make_face()
    run(face, face.close())
    with pytest.raises(BadOption, match="'main' is closed"):
        UnitMiddleware(lambda scope, receive, send: None, face.db)


# ------------------------------------------------------------------------------------ threads, R18


@blocking
@alone
def test_a_commit_does_not_block_the_loop(face, stored, wrap):
    """R18: the loop goes on while a `Database` commits."""
    begun, go_on = threading.Event(), threading.Event()

    @sa.event.listens_for(face.sync_engine, "commit")
    def slow(connection):
        begun.set()
        assert go_on.wait(PATIENCE)

    async def app(scope, receive, send):
        await write(face)
        await send(start())
        await send(BODY)

    async def beside():
        task = asyncio.create_task(call(wrap(app, face.db)))
        await asyncio.to_thread(begun.wait, PATIENCE)
        go_on.set()  # a loop that waits for the COMMIT never comes here
        return await task

    assert len(run(face, beside())) == 2
    assert stored() == ["ada"]


@blocking
@pytest.mark.drivers("psycopg")
def test_a_holder_never_queues_behind_those_who_wait(make_face, stored, monkeypatch):
    """R18: requests that must still get a connection to be settled take no thread from the one that holds it."""
    monkeypatch.setattr(aio, "_PERMITS", 2)
    face = make_face(pool_size=1, max_overflow=0)
    boundary = LoopBoundary(face.db)

    async def other(number):
        request = boundary.begin("GET /other")
        face.db.session.add(User(name=f"number {number}"))
        await request.settle(200)
        await request.finish()

    async def crowd():
        holder = boundary.begin("GET /holder")
        await write(face, "holder")
        fresh = contextvars.Context()
        others = [asyncio.get_running_loop().create_task(other(number), context=fresh.copy()) for number in range(8)]
        while face.db.status().waiting < 2:
            await asyncio.sleep(0.001)
        assert face.db.status().waiting == 2
        await holder.settle(200)
        await holder.finish()
        await asyncio.gather(*others)
        holder.gone()
        boundary.ended()

    run(face, crowd())
    assert len(stored()) == 9


@blocking
@pytest.mark.drivers("psycopg")
def test_a_thread_that_waits_for_a_connection_is_not_counted(make_face, stored, wrap):
    """R18: the holder finds a worker thread although all of them are full of those who wait for its connection."""
    face = make_face(pool_size=1, max_overflow=0)
    held = []

    async def app(scope, receive, send):
        await write(face, scope["path"])
        if not held:
            held.append(True)
            others.extend(
                asyncio.create_task(call(middleware, {"path": f"/{number}"}), context=contextvars.Context()) for number in (1, 2)
            )
            while face.db.status().waiting < 2:
                await asyncio.sleep(0.001)
            await off_loop(face, face.session.flush)  # a second trip to a worker thread, as for a response_model
        await send(start())
        await send(BODY)

    async def crowd():
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        await call(middleware)
        await asyncio.gather(*others)
        while limiter.total_tokens != 1:
            await asyncio.sleep(0.001)

    others = []
    middleware = wrap(app, face.db)
    run(face, crowd())
    assert stored() == ["/", "/1", "/2"]


@blocking
@alone
def test_a_helper_thread_may_end_while_the_request_goes_on(face, stored, wrap):
    """R48: a request is its task's; the worker thread that has worked for it first may be gone."""

    async def app(scope, receive, send):
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(_driven, face_write), name="helper")
        thread.start()
        thread.join()
        face.db.supply.gate.sweep()
        await send(start())
        await send(BODY)

    async def face_write():
        face.session.add(User(name="ada"))
        await face.session.flush()

    run(face, call(wrap(app, face.db)))
    assert stored() == ["ada"]


# ------------------------------------------------------------------------------------- cancellation


@alone
def test_a_cancellation_in_the_commit(face, stored, told, wrap):
    """R19: the COMMIT that has begun is finished, and the cancellation says what became of it."""
    begun, go_on = threading.Event(), threading.Event()

    @sa.event.listens_for(face.sync_engine, "commit")
    def cancelled_here(connection):
        if face.is_async:
            task.cancel()
        else:
            begun.set()
            assert go_on.wait(PATIENCE)

    async def app(scope, receive, send):
        await write(face)
        await send(start())

    async def beside():
        nonlocal task
        task = asyncio.create_task(call(wrap(app, face.db), seen=sent.append))
        if not face.is_async:
            await asyncio.to_thread(begun.wait, PATIENCE)
            task.cancel()
            await asyncio.sleep(0)
            go_on.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        return cancelled.value

    task, sent = None, []
    error = run(face, beside())
    assert error.tenure_outcome is Outcome.COMMITTED
    assert (stored(), face.out(), sent) == (["ada"], 0, [])
    assert told.closed() == [("GET /", "committed", "status 200")]


def test_a_client_that_leaves_in_the_handler(face, stored, told, wrap):
    """R19: a request that is cancelled before its answer is rolled back, and its connection is home."""
    reached = []

    async def app(scope, receive, send):
        await write(face)
        reached.append(True)
        await asyncio.Event().wait()

    async def beside():
        task = asyncio.create_task(call(wrap(app, face.db)))
        while not reached:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(face, beside())
    assert (stored(), face.out()) == ([], 0)
    assert told.closed() == [("GET /", "rolled back", "CancelledError")]


def test_reads_open_nothing_more(face, told, wrap):
    """R14: a request that only reads ends as read only."""

    async def app(scope, receive, send):
        async def read():
            return await face.session.scalar(select(User.name))

        assert await off_loop(face, read) is None
        await send(start())
        await send(BODY)

    run(face, call(wrap(app, face.db)))
    assert told.closed() == [("GET /", "read only", "status 200")]
    assert face.out() == 0
