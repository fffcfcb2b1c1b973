"""Why nobody gets a connection: each verdict, with a pool in that state."""

import asyncio
import contextvars
import queue
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import text

from tenure import Admission
from tenure.engines.verdict import REMEDIES
from tenure.exceptions import PoolExhausted, SecondConnection

from support.models import User

some = pytest.mark.drivers("sqlite", "psycopg", "asyncpg", "aiosqlite")
SLEEP = text("SELECT pg_sleep(30)")


def full(make_face, size=2, wait=0.1, **options):
    return make_face(pool_size=size, max_overflow=0, admission=Admission(max_wait=wait), **options)


async def hold(face, name, held, may_end, work=None):
    """A unit that has a connection in a transaction until it may end."""
    async with face.unit(name=name) as session:
        await session.connection()
        if work is not None:
            await work(session)
        held.append(name)
        await may_end.wait()


async def ask(face, count, held, may_end):
    """The error of a unit that finds all connections held."""
    await face.until(lambda: len(held) == count)
    try:
        with pytest.raises(PoolExhausted) as caught:
            async with face.unit(name="asks") as session:
                await session.connection()
    finally:
        may_end.set()
    return [caught.value]


def notes(error):
    return "\n".join(error.__notes__)


@some
async def test_held_idle(make_face):
    """R37: units that hold connections and do something else are named with their lines, and a larger pool is not advised."""
    face, held = full(make_face, size=1), []
    may_end = face.event()

    async def value(session):
        await session.execute(text("SELECT 'patient-0815'"))

    _, (error,) = await face.spawn(lambda: hold(face, "GET /chat", held, may_end, value), lambda: ask(face, 1, held, may_end))

    assert error.verdict == "held idle"
    assert str(error).startswith("'main': none of 1 free in 0.1 s, 1 wait. Held idle: 1 by 'GET /chat' (test_verdict.py:")
    assert str(error).endswith("before slow work that is no SQL. [pool-exhausted]")
    assert "'GET /chat' (test_verdict.py:" in notes(error)
    assert "idle for" in notes(error)
    assert "patient-0815" not in str(error) + notes(error)
    assert [one.unit for one in error.holders] == ["GET /chat"]
    assert isinstance(error, sa.exc.TimeoutError)
    assert face.out() == 0


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_too_small(make_face):
    """R37: statements that run in all connections are work: the pool may be too small."""
    face, held = full(make_face), []
    may_end = face.event()

    async def runs():
        with pytest.raises(sa.exc.DBAPIError):
            async with face.unit(name="report") as session:
                await session.connection()
                held.append(1)
                await session.execute(SLEEP)

    async def asks():
        await face.until(lambda: sum(one.running for one in face.db.holders()) == 2 and len(held) == 2)
        try:
            return await ask(face, 2, held, may_end)
        finally:
            await terminate(face)

    *_, (error,) = await face.spawn(runs, runs, asks)

    assert error.verdict == "too small"
    assert "Running: 2 by 'report'" in str(error)
    assert face.out() == 0


async def terminate(face):
    """End every statement that sleeps, from outside."""
    engine = sa.create_engine(face.sync_engine.url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep%'"
                 " AND pid <> pg_backend_pid()")
        )  # fmt: skip
    engine.dispose()


@pytest.mark.drivers("sqlite", "psycopg")
def test_leaked(make_face):
    """R37: connections that were taken by threads which have ended are leaks."""
    face = full(make_face, size=1)
    kept = []
    thread = threading.Thread(target=lambda: kept.append(face.db.engine.connect()))
    thread.start()
    thread.join()
    with pytest.raises(PoolExhausted) as caught, face.db.unit() as session:
        session.connection()
    kept.pop().close()

    assert caught.value.verdict == "leaked"
    assert "Leaked: 1 by 'engine.connect()' (test_verdict.py:" in str(caught.value)


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_hold_and_wait(make_face):
    """R37, R48: units that hold one connection and wait for a second are told from those that are idle."""
    face, errors = full(make_face, wait=0.3, guards={"second-connection": "off"}), []
    both = face.barrier(2)

    async def outer():
        async with face.unit(name="outer") as session:
            await session.connection()
            await both.wait()
            try:
                async with face.unit(propagation="new", name="inner") as second:
                    await second.connection()
            except PoolExhausted as error:
                errors.append(error)

    await face.spawn(outer, outer)

    assert errors[0].verdict == "hold and wait"
    assert "old and wait: " in str(errors[0])
    assert face.out() == 0


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_a_second_connection_is_refused_where_nobody_could_go_on(make_face):
    """R48: of two units that each hold one of two connections and ask for one more, the one that would close the ring is refused."""
    face = full(make_face, wait=10)
    both, refused = face.barrier(2), []

    async def unit():
        async with face.unit(name="outer") as session:
            await session.connection()
            await both.wait()
            try:
                async with face.unit(propagation="new", name="inner") as second:
                    await second.connection()
            except SecondConnection as error:
                refused.append(str(error))

    await face.spawn(unit, unit)

    assert len(refused) == 1
    assert "'outer' holds a connection of 'main' (test_verdict.py:" in refused[0]
    assert "the pool has 2, and all of them are held by units that wait like this one" in refused[0]
    assert face.db.status().timed_out == 0
    assert face.out() == 0


@some
async def test_a_second_connection_of_a_pool_of_one(make_face):
    """R48: with a pool of one the first unit that asks for a second connection is told at once."""
    face = full(make_face, size=1, wait=10)
    async with face.unit(name="GET /x") as session:
        await session.connection()
        with pytest.raises(SecondConnection, match=r"the pool has 1\. Join the unit"):
            async with face.unit(propagation="new") as second:
                await second.connection()

    assert face.out() == 0


@some
async def test_fifty_units_with_an_inner_one(make_face):
    """R48: inner units join, so fifty of them on three connections never wait for each other."""
    face = full(make_face, size=3, wait=20)

    async def inner(session, number):
        session.add(User(name=f"inner {number}"))

    work = face.decorated(inner)

    def outer(number):
        async def unit():
            async with face.unit() as session:
                session.add(User(name=f"outer {number}"))
                await session.flush()
                await work(number)

        return unit

    await face.spawn(*(outer(number) for number in range(50)))

    assert face.db.status().timed_out == 0
    assert face.db.status().peak <= 3


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_database_locked(make_face):
    """R37: statements that wait for the lock of a unit that is idle in its transaction: the lock is the matter."""
    face, held = full(make_face, wait=0.2), []
    may_end = face.event()
    async with face.unit() as session:
        session.add(User(name="ada"))

    async def update(session):
        await session.execute(sa.update(User).values(name="eve"))

    async def waits():
        await face.until(lambda: held == ["import"])
        async with face.unit(name="waits") as session:
            await update(session)

    async def asks():
        await face.until(lambda: any(one.running for one in face.db.holders()) and held == ["import"])
        await face.sleep(0.3)  # long enough to be more than a short wait
        return await ask(face, 1, held, may_end)

    *_, (error,) = await face.spawn(lambda: hold(face, "import", held, may_end, update), waits, asks)

    assert error.verdict == "database locked"
    assert "'import' (test_verdict.py:" in str(error)
    assert face.out() == 0


@pytest.mark.drivers("psycopg")
def test_threads_starved(make_face):
    """R37: units that wait for a thread, while all threads wait for a connection."""
    face = full(make_face, size=2, wait=0.3)
    errors, second_halves = [], queue.SimpleQueue()
    all_hold = threading.Barrier(2)

    def first_half():
        block = face.db.unit(name="GET /x")
        try:
            block.__enter__().connection()
        except PoolExhausted as error:
            block.__exit__(type(error), error, None)
            raise
        context = contextvars.copy_context()
        second_halves.put(lambda: context.run(block.__exit__, None, None, None))

    def worker():
        # As a framework with two threads does: the first halves of two requests, then of two more, before any second half.
        contextvars.Context().run(first_half)
        all_hold.wait(10)
        try:
            contextvars.Context().run(first_half)
        except PoolExhausted as error:
            errors.append(error)
        all_hold.wait(10)
        second_halves.get()()

    threads = [threading.Thread(target=worker) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    assert errors[0].verdict == "threads starved"
    assert "hreads starved: " in str(errors[0])
    assert face.out() == 0


@some
async def test_admission_of_those_who_are_cancelled(make_face):
    """R52: the counters tell how waits ended."""
    face, held = full(make_face, size=1, wait=10), []
    may_end = face.event()
    if not face.is_async:
        pytest.skip("a thread cannot be cancelled")

    async def cancelled():
        await face.until(lambda: held)
        task = asyncio.create_task(ask_forever(face))
        await face.until(lambda: face.db.status().waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_end.set()

    await face.spawn(lambda: hold(face, "holder", held, may_end), cancelled)

    status = face.db.status()
    assert (status.cancelled, status.waiting, status.in_use, status.timed_out) == (1, 0, 0, 0)


async def ask_forever(face):
    async with face.unit() as session:
        await session.connection()


def test_each_verdict_has_a_remedy():
    """R37: there are six verdicts, each with what to do."""
    assert list(REMEDIES) == ["leaked", "hold and wait", "threads starved", "database locked", "held idle", "too small"]
    assert all(REMEDIES.values())
