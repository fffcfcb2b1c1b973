"""The end of a program: no new units, a time for those that are open, an end for the rest, and no connection left."""

import contextvars
import gc
import logging
import threading
import time

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from tenure import Database
from tenure.core import events
from tenure.core.options import UnitOptions
from tenure.core.plan import Outcome
from tenure.exceptions import BadOption, DatabaseClosed, DatabaseDraining, UnitEnded

from support.face import settle
from support.models import User
from support.probe import line, outside, stored

pytestmark = pytest.mark.drivers("sqlite", "aiosqlite", "psycopg", "psycopg_async", "asyncpg", "pymysql")

BACKENDS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    " AND datname = current_database()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
}
SLEEP = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(60)",
    # Not benchmark(), which when it is killed gives a result on some versions, and no error.
    "mysql": "SELECT count(*) FROM information_schema.columns a, information_schema.columns b, information_schema.columns c",
}


async def nobody_on_the_server(face):
    """Wait until the server has no connection of the test's any more; it takes a moment to notice that one was closed."""
    if face.dialect in BACKENDS:
        await face.until(lambda: outside(face, BACKENDS[face.dialect]) == [])


def drain(face, timeout):
    return settle(face.db.drain(timeout))


def holding(face):
    """Options of a unit that is to hold a connection in a transaction; on SQLite in one that lets the others write."""
    return {"hold": "transaction", "readonly": face.dialect == "sqlite"}


async def hold(face, session):
    """Have *session* of such a unit hold one."""
    await session.execute(select(User) if face.dialect == "sqlite" else insert(User).values(name="stuck"))


async def test_of_five_in_flight_one_is_stuck(make_face, told, caplog):
    """R31: within the grace time all are committed or rolled back, the stuck one is named with its line, and no backend is left."""
    face = make_face()
    ready, free, found = face.barrier(6), face.event(), {}
    names = iter("abcd")

    async def work():
        async with face.unit() as session:
            await session.scalars(select(User))
            await ready.wait()
            await face.until(lambda: face.db.units.draining)
            session.add(User(name=next(names)))

    async def stuck():
        with pytest.raises(UnitEnded):
            async with face.unit(name="stuck", **holding(face)) as session:
                found["site"] = line(-1)
                await hold(face, session)
                await ready.wait()
                found["line"] = line(1)
                await free.wait()

    async def end():
        await ready.wait()
        began = time.monotonic()
        found["drained"] = await drain(face, 1.0)
        await face.close()
        found["took"] = time.monotonic() - began
        await nobody_on_the_server(face)
        free.set()

    with caplog.at_level(logging.WARNING, "tenure"):
        await face.spawn(work, work, work, work, stuck, end)
    (one,) = found["drained"].stuck

    assert found["took"] < 3
    assert found["drained"].ended == 4
    assert (one.unit, one.site, one.outcome) == ("stuck", found["site"], Outcome.ROLLED_BACK)
    assert one.owner == ("task 'stuck'" if face.is_async else "thread 'stuck'")
    assert one.line == found["line"]
    assert 0.9 < one.age < 3
    assert stored(face) == list("abcd")
    assert [event[1:] for event in told.of(events.UnitDrained)] == [tuple(one)]
    (message,) = caplog.messages
    assert message == (
        f"tenure: 'stuck' ({found['site']}) on 'main' was open for {one.age:.1f} s, in {one.owner} at {found['line']}, when the drain ran"
        " out of time; it was stopped and is rolled back. Give it a timeout=, or the drain more time. [drained-unit]"
    )


async def test_a_statement_under_way_is_stopped(face):
    """R31: a unit that is stuck in the database is stopped there: its own thread or task gets the error, and rolls back."""
    raised, found = [], {}

    async def stuck():
        try:
            async with face.unit() as session:
                await session.execute(text(SLEEP[face.dialect]))
        except DBAPIError as error:
            raised.append(error)

    async def end():
        await face.until(lambda: any(one.running for one in face.db.holders()))
        found["drained"] = await drain(face, 0.0)
        await face.close()
        await nobody_on_the_server(face)

    await face.spawn(stuck, end)

    assert [one.outcome for one in found["drained"].stuck] == [Outcome.ROLLED_BACK]
    assert found["drained"].seconds < 1.5
    assert len(raised) == 1


async def test_only_units_within_others_begin(face):
    """R31: new units are refused from the first moment on; those that are open join, nest and open others as ever."""
    ready, asked = face.barrier(2), face.event()

    async def work():
        async with face.unit(), face.unit():
            await ready.wait()
            await asked.wait()
            async with face.unit(propagation="new") as session:
                session.add(User(name="own"))
            async with face.unit(propagation="nested") as session:
                session.add(User(name="nested"))

    async def refused():
        await face.until(lambda: face.db.units.draining)
        with pytest.raises(DatabaseDraining) as raised:
            async with face.unit(name="late"):
                pass
        asked.set()
        return str(raised.value)

    async def end():
        await ready.wait()
        return await drain(face, 5.0)

    _, message, drained = await face.spawn(work, refused, end)

    assert message.startswith("late (test_drain.py:")
    assert drained[1:] == (1, ())
    assert stored(face) == ["nested", "own"]


async def test_who_waits_for_a_connection_is_served(make_face):
    """R31: a drain changes nothing for those who wait: they get their connection in turn, and end."""
    face = make_face(pool_size=1, max_overflow=0)
    free = face.event()

    async def first():
        async with face.unit() as session:
            await session.execute(insert(User).values(name="first"))
            await face.until(lambda: face.db.status().waiting == 1)
            free.set()
            await face.until(lambda: face.db.units.draining)

    async def second():
        async with face.unit() as session:
            await face.until(lambda: face.db.status().in_use == 1)
            await session.execute(insert(User).values(name="second"))

    async def end():
        await free.wait()
        return await drain(face, 5.0)

    *_, drained = await face.spawn(first, second, end)

    assert (drained.ended, drained.stuck) == (2, ())
    assert stored(face) == ["first", "second"]


async def test_who_waits_when_the_time_is_up_is_sent_away(make_face):
    """R31: nobody is left waiting for a connection that will not come."""
    face = make_face(pool_size=1, max_overflow=0)
    free = face.event()

    async def first():
        with pytest.raises(UnitEnded):
            async with face.unit() as session:
                await session.execute(insert(User).values(name="first"))
                await free.wait()

    async def second():
        async with face.unit() as session:
            await face.until(lambda: face.db.status().in_use == 1)
            await session.execute(insert(User).values(name="second"))

    async def end():
        await face.until(lambda: face.db.status().waiting == 1)
        drained = await drain(face, 0.0)
        free.set()
        return sorted(one.unit for one in drained.stuck)

    _, refused, names = await face.spawn(first, second, end, return_exceptions=True)

    assert isinstance(refused, DatabaseDraining)
    assert str(refused).startswith("'second' (test_drain.py:")
    assert names == ["first", "second"]
    assert (stored(face), face.out(), face.db.status().waiting) == ([], 0, 0)


async def test_a_unit_without_a_connection_ends_as_well(face):
    """R31: units are known from their begin on, not from their first statement."""
    ready, free = face.barrier(2), face.event()

    async def idle():
        async with face.unit() as session:
            session.add(User(name="ada"))
            await ready.wait()
            await free.wait()

    async def end():
        await ready.wait()
        drained = await drain(face, 0.0)
        free.set()
        return [one.unit for one in drained.stuck]

    ended, names = await face.spawn(idle, end, return_exceptions=True)

    assert isinstance(ended, UnitEnded)
    assert names == ["idle"]
    assert stored(face) == []


async def test_a_unit_that_has_not_asked_for_its_session(face):
    """R31: what a host has opened, and nobody has used yet, is ended too; it cannot begin to work afterwards."""
    unit = await settle(face.db.enter(UnitOptions(), None, name="GET /"))
    drained = await drain(face, 0.0)
    with pytest.raises(UnitEnded):
        unit.session  # noqa: B018
    with pytest.raises(UnitEnded):
        await settle(face.db.leave(unit, None, None))
    assert [one.unit for one in drained.stuck] == ["GET /"]


async def test_hooks_belong_to_the_work(face):
    """R31: what is to be done after a commit is done, in units of its own, before the drain is over."""
    ready = face.barrier(2)

    async def note():
        async with face.unit() as session:
            session.add(User(name="noted"))

    async def work():
        async with face.unit() as session:
            session.add(User(name="work"))
            face.db.on_commit(face.plain(note) if face.is_async else lambda: face.run(note()))
            await ready.wait()
            await face.until(lambda: face.db.units.draining)

    async def end():
        await ready.wait()
        drained = await drain(face, 5.0)
        return drained.stuck, stored(face)

    _, (stuck, rows) = await face.spawn(work, end)

    assert stuck == ()
    assert rows == ["noted", "work"]


async def test_close_leaves_nobody_on_the_server(make_face):
    """R31: `close()` gives open units a moment, ends them, and closes every connection; where none is open it does not wait."""
    face, idle = make_face(), make_face()
    ready, free = face.barrier(2), face.event()
    began = time.monotonic()
    await idle.close()
    assert time.monotonic() - began < 0.5

    async def stuck():
        async with face.unit(**holding(face)) as session:
            await hold(face, session)
            await ready.wait()
            await free.wait()

    async def end():
        await ready.wait()
        await face.close()
        await nobody_on_the_server(face)
        free.set()

    ended, _ = await face.spawn(stuck, end, return_exceptions=True)

    assert isinstance(ended, UnitEnded)
    assert stored(face) == []
    with pytest.raises(DatabaseClosed):
        async with face.unit() as session:
            await session.scalars(select(User))


async def test_a_drain_within_a_unit_does_not_wait_for_itself(face):
    """R31: the unit from which a drain is asked for cannot end before it."""
    with pytest.raises(UnitEnded):
        async with face.unit(name="mine") as session:
            await session.execute(insert(User).values(name="ada"))
            drained = await drain(face, 30.0)
    assert ([one.unit for one in drained.stuck], drained.seconds < 5, stored(face)) == (["mine"], True, [])


async def test_it_can_be_done_twice(face):
    """R31: the second time there is nothing to do."""
    assert [(await drain(face, 1.0))[1:] for _ in range(2)] == [(0, ())] * 2
    with pytest.raises(BadOption):
        await drain(face, -1)


@pytest.mark.drivers("asyncpg", "aiosqlite")
async def test_a_unit_of_another_loop(make_face):
    """R31: a unit of another event loop is ended there."""
    import asyncio

    face = make_face()
    ready, raised = threading.Event(), []

    async def stuck():
        free = asyncio.Event()
        try:
            async with face.unit(**holding(face)) as session:
                await hold(face, session)
                ready.set()
                await asyncio.wait_for(free.wait(), 1.0)
        except (TimeoutError, UnitEnded) as error:
            raised.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(stuck()))
    thread.start()
    await asyncio.to_thread(ready.wait)
    drained = await drain(face, 0.0)
    await asyncio.to_thread(thread.join)

    assert [one.outcome for one in drained.stuck] == [Outcome.ROLLED_BACK]
    assert len(raised) == 1
    await nobody_on_the_server(face)


async def test_nobody_is_kept(face):
    """R28: what is known of open units keeps none alive, and nothing is known of those that have ended."""
    for _ in range(100):
        async with face.unit() as session:
            await session.scalars(select(User))
    blocks = [face.db.unit() for _ in range(10)]
    if not face.is_async:
        blocks = [block.__enter__() for block in blocks]
    del session, blocks
    gc.collect()
    assert face.db.units.now() == {}


def test_ten_thousand_leave_nothing(tmp_path):
    """R28: the register does not grow with use, whether units end or are dropped."""
    db = Database(f"sqlite:///{tmp_path / 'a.db'}")
    for _ in range(10_000):
        with db.unit():
            pass
    kept = [contextvars.Context().run(db.enter, UnitOptions(), None) for _ in range(1000)]  # none has another's id
    assert len(db.units._units) == 1000
    kept.clear()
    gc.collect()
    assert len(db.units._units) == 0
    db.close()
