import asyncio
import contextvars
import gc
import logging
import threading
from contextlib import suppress

import pytest
import sqlalchemy as sa

from tenure.core import events
from tenure.exceptions import NoUnit, UnitEnded

from support.models import User
from support.probe import stored

some = pytest.mark.drivers("sqlite", "psycopg", "pymysql", "aiosqlite", "asyncpg", "psycopg_async")


async def leave_open(face, kept, name="left"):
    """Write in a unit, and leave it open."""
    block = face.unit(name=name)
    session = await block.__aenter__()
    session.add(User(name=name))
    await session.flush()
    kept.append(block)
    kept.append(session.raw)


async def next_one(face):
    """A unit that needs the connection, within the pool's own patience."""
    async with face.unit() as session:
        session.add(User(name="next"))
        await session.flush()
        assert face.out() == 1


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_a_write_lock_left_by_a_worker_that_ended(make_face, told):
    """R47: SQLite's write lock, left by a unit whose thread or task has ended, is got though connections are free and nobody stands in
    line for one.
    """
    face, kept = make_face(pool_size=3), []
    await face.spawn(lambda: leave_open(face, kept), inherit=False)
    async with face.unit(timeout=3) as session:
        session.add(User(name="next"))
        await session.flush()

    assert stored(face) == ["next"]
    assert told.outcomes() == ["rolled back", "committed"]
    assert face.out() == 0


@some
async def test_a_unit_left_open_by_a_worker_that_ended(small, told, caplog):
    """R47: the only connection, held by a unit whose thread or task has ended, is got without a timeout; nothing of it is stored."""
    face, kept = small(), []
    opened = None

    async def fetch_a():
        nonlocal opened
        opened = f"test_leaks.py:{leave_open.__code__.co_firstlineno + 3}"
        await leave_open(face, kept)

    await face.spawn(fetch_a, inherit=False)
    assert face.out() == 1
    await next_one(face)

    kind = "task" if face.is_async else "thread"
    (record,) = [one for one in caplog.records if "[leaked-unit]" in one.getMessage()]
    assert stored(face) == ["next"]
    assert told.outcomes() == ["rolled back", "committed"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"tenure: rolled back 'left' ({opened}): its {kind}")
    assert face.out() == 0


@some
async def test_a_leaked_unit_says_so_when_it_is_used(small):
    """R45: what comes back to a unit that was rolled back in its absence gets UnitEnded, and its end does no harm."""
    face, kept = small(), []
    await face.spawn(lambda: leave_open(face, kept), inherit=False)
    await next_one(face)
    block, session = kept

    async def back():
        with pytest.raises(UnitEnded, match="the session of 'left'"):
            result = session.scalar(sa.select(User))
            if face.is_async:
                await result
        with suppress(UnitEnded):
            await block.__aexit__(None, None, None)

    await face.spawn(back, inherit=False)

    assert stored(face) == ["next"]
    assert face.out() == 0


@some
async def test_the_end_of_a_leaked_unit_is_told_once(small, told):
    """R51: a unit that was reclaimed and then ended by its own block has one end event."""
    face, kept = small(), []
    await face.spawn(lambda: leave_open(face, kept), inherit=False)
    await next_one(face)

    async def back():
        with suppress(UnitEnded):
            await kept[0].__aexit__(None, None, None)

    await face.spawn(back, inherit=False)

    assert told.outcomes() == ["rolled back", "committed"]
    assert len(told.of(events.UnitLeaked)) == 1


@some
async def test_a_unit_that_was_dropped(small, told):
    """R47: units that are dropped with their blocks, one right after the other, give the only connection back at once."""
    face = small()

    async def drop():
        for number in range(3):
            await leave_open(face, [], name=f"dropped {number}")
            if face.is_async:
                await asyncio.sleep(0.05)  # the connection goes home in a task of its own

    await face.spawn(drop, inherit=False)
    await next_one(face)

    assert stored(face) == ["next"]
    assert told.outcomes() == ["rolled back"] * 3 + ["committed"]
    assert [one.unit for one in told.of(events.UnitLeaked)] == ["dropped 0", "dropped 1", "dropped 2"]


@some
async def test_a_dropped_unit_is_not_joined(small, told):
    """R47: the code that dropped a unit and opens another has one of its own, and what that writes is stored."""
    face = small()
    block = face.unit(name="dropped")
    session = await block.__aenter__()
    await session.scalar(sa.select(User.id))
    del block, session
    gc.collect()  # under asyncio the unit is rolled back in a later turn of the loop
    await next_one(face)

    assert stored(face) == ["next"]
    assert sorted(told.outcomes()) == ["committed", "rolled back"]


@some
async def test_a_dropped_unit_in_a_cycle(small, told):
    """R47: a unit that only the garbage collector can find is found when its connection is needed."""
    face = small()

    async def drop():
        kept = []
        kept.append(kept)
        await leave_open(face, kept)

    gc.disable()
    try:
        await face.spawn(drop, inherit=False)
        assert face.out() == 1
        gc.collect()
        if face.is_async:
            await asyncio.sleep(0.05)
        await next_one(face)
    finally:
        gc.enable()

    assert stored(face) == ["next"]
    assert [one.unit for one in told.of(events.UnitLeaked)] == ["left"]


@some
async def test_a_worker_that_ended_without_using_the_connection(small):
    """R47: a unit that holds no connection is left alone, whoever opened it."""
    face, kept = small(), []

    async def fetch_a():
        block = face.unit()
        await block.__aenter__()
        kept.append(block)

    await face.spawn(fetch_a, inherit=False)
    await next_one(face)

    assert stored(face) == ["next"]
    assert face.out() == 0


@some
async def test_helpers_that_ended_do_not_end_the_unit(small, told):
    """R47: a unit whose helper thread or task has ended lives on, for the one that opened it does."""
    face = small(pool_timeout=0.2)

    async def write():
        session.add(User(name="ada"))
        await session.flush()

    async def needs_the_connection():
        with pytest.raises(sa.exc.TimeoutError):
            await next_one(face)

    async with face.unit() as session:
        await face.spawn(write, inherit=True)
        await face.spawn(needs_the_connection, inherit=False)
        assert (await session.scalars(sa.select(User.name))).all() == ["ada"]

    assert stored(face) == ["ada"]
    assert told.of(events.UnitLeaked) == []


@pytest.mark.drivers("aiosqlite", "asyncpg")
async def test_wait_for_does_not_end_the_unit(small, told):
    """R47: `asyncio.wait_for()`, which may run its statement in a task of its own, leaves the unit alone."""
    face = small(pool_timeout=0.2)

    async def needs_the_connection():
        with pytest.raises(sa.exc.TimeoutError):
            await next_one(face)

    async with face.unit() as session:
        session.add(User(name="ada"))
        await asyncio.wait_for(session.flush(), 5)
        await asyncio.create_task(needs_the_connection(), context=contextvars.Context())
        await session.scalar(sa.select(User))

    assert stored(face) == ["ada"]
    assert told.of(events.UnitLeaked) == []


@pytest.mark.drivers("sqlite", "psycopg")
def test_a_unit_that_was_handed_over_for_good(small):
    """R47: a unit whose opener has ended lives on in the thread that works in it now."""
    face, box = small(pool_timeout=0.2), {}

    def open_it():
        box["block"] = face.db.unit()
        box["session"] = box["block"].__enter__()
        box["context"] = contextvars.copy_context()

    opener = threading.Thread(target=open_it)
    opener.start()
    opener.join()

    def go_on():
        session = box["session"]
        session.add(User(name="ada"))
        session.flush()
        with pytest.raises(sa.exc.TimeoutError):
            contextvars.Context().run(_take, face)
        box["block"].__exit__(None, None, None)

    box["context"].run(go_on)

    assert stored(face) == ["ada"]


def _take(face):
    with face.db.unit() as session:
        session.add(User(name="next"))
        session.flush()


@some
async def test_the_guard_can_be_switched_off(small, told, caplog):
    """R49: with its guard off a leaked unit is rolled back all the same, without a word."""
    face, kept = small(guards={"leaked-unit": "off"}), []
    await face.spawn(lambda: leave_open(face, kept), inherit=False)
    await next_one(face)

    assert stored(face) == ["next"]
    assert told.of(events.UnitLeaked) == []
    assert "[leaked-unit]" not in caplog.text


@pytest.mark.drivers("sqlite", "psycopg")
def test_many_threads_that_die_in_their_units(make_face):
    """R47: on a small pool, threads that die in open units one after the other never make the next one wait."""
    face, kept = make_face(pool_size=2, max_overflow=0, pool_timeout=5), []

    def die():
        block = face.db.unit()
        session = block.__enter__()
        session.execute(sa.text("SELECT 1"))
        kept.append(block)

    for _ in range(20):
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()
    with face.db.unit() as session:
        session.add(User(name="ada"))
    face.db.supply.gate.sweep()

    assert stored(face) == ["ada"]
    assert face.out() == 0
    with pytest.raises(NoUnit):
        face.db.current  # noqa: B018


@pytest.mark.drivers("sqlite")
def test_dropped_units_leave_nothing_in_the_context(face):
    """R23: however many units were dropped in a thread, its context remembers none of them."""
    for _ in range(50):
        face.db.unit().__enter__()
    with face.db.unit():
        place = face.db.current_place.var.get()
        assert place.around() is None
        assert not hasattr(place.around, "around")


@pytest.mark.drivers("asyncpg", "psycopg_async")
async def test_reclaiming_that_is_cancelled(make_face, proxy):
    """R36, R47: who waits takes back what an owner that is gone has held; cancelled in the middle of that, nothing is left over."""
    face, kept = make_face(through=proxy, pool_size=1, max_overflow=0), []
    await face.spawn(lambda: leave_open(face, kept), inherit=False)
    proxy.freeze()  # ROLLBACK is on its way, and stays there
    waits = asyncio.create_task(next_one(face))
    await face.until(lambda: kept[0].raw._open[0][0].ending)
    waits.cancel()
    await asyncio.sleep(0)
    proxy.thaw()
    await asyncio.wait([waits])

    gate = face.db.supply.gate
    assert (face.out(), gate.queue.used, face.db.holders()) == (0, 0, [])
    await next_one(face)
    assert stored(face) == ["next"]


@pytest.mark.drivers("psycopg", "asyncpg", "psycopg_async", "pymysql")
async def test_reclaiming_a_connection_that_is_broken(small, told, proxy):
    """R36: the unit of an owner that is gone had lost its connection as well; who waits is served, and sees no error of it."""
    face, kept = small(through=proxy), []
    await face.spawn(lambda: leave_open(face, kept), inherit=False)
    proxy.cut()
    await next_one(face)

    assert stored(face) == ["next"]
    assert told.outcomes() == ["rolled back", "committed"]
    assert (face.out(), face.db.supply.gate.queue.used) == (0, 0)
