import asyncio
import contextlib
import logging
import re
import string
import typing

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tenure.core import events
from tenure.watch import logs

from support.models import User
from support.probe import Told, line, outside, reading, stored

one = pytest.mark.drivers("sqlite", "aiosqlite")
some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")


class Raises:
    """A reader that raises where it is told to."""

    def __init__(self, where):
        self.where = where
        self.times = 0

    def wants(self, kind):
        if self.where == "wants":
            self.times += 1
            raise ZeroDivisionError
        return True

    def __call__(self, told):
        self.times += 1
        raise ZeroDivisionError


class Conflict(Exception):
    sqlstate = "40001"


class Units:
    """Units that end in every way; each has a name of its own, and says how it must have been told."""

    def __init__(self, face):
        self.face = face

    async def add(self, session, name):
        session.add(User(name=name))
        await session.flush()

    async def commits(self, name):
        async with self.face.unit(name=name) as session:
            await self.add(session, name)
        return [("committed", "returned")]

    async def reads(self, name):
        async with self.face.unit(name=name) as session:
            await session.scalar(sa.select(User.id))
        return [("read only", "returned")]

    async def fails(self, name):
        error = ValueError(name)
        with pytest.raises(ValueError) as caught:
            async with self.face.unit(name=name) as session:
                await self.add(session, name)
                raise error
        assert caught.value is error
        return [("rolled back", "ValueError")]

    async def is_undone(self, name):
        async with self.face.unit(name=name) as session:
            await self.add(session, name)
            self.face.current.rollback_only("on purpose")
        return [("rolled back", "on purpose")]

    async def is_retried(self, name):
        runs = []

        async def work(session):
            await self.add(session, name)
            runs.append(session)
            if len(runs) == 1:
                raise sa.exc.OperationalError("", {}, Conflict())
            return "done"

        assert await self.face.decorated(work, name=name, retry=2)() == "done"
        return [("rolled back", "OperationalError"), ("committed", "returned")]

    async def is_cancelled(self, name):
        if not self.face.is_async:
            with pytest.raises(KeyboardInterrupt):
                async with self.face.unit(name=name) as session:
                    await self.add(session, name)
                    raise KeyboardInterrupt
            return [("rolled back", "KeyboardInterrupt")]

        async def work():
            async with self.face.unit(name=name) as session:
                await self.add(session, name)
                written.set()
                await asyncio.Event().wait()

        written = asyncio.Event()
        task = asyncio.create_task(work())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [("rolled back", "CancelledError")]

    async def times_out(self, name):
        with pytest.raises(sa.exc.TimeoutError) as caught:
            async with self.face.unit(name=f"holder of {name}") as session:
                await self.add(session, f"holder of {name}")
                async with self.face.unit(name=name, propagation="new") as second:
                    await self.add(second, name)
        return [("rolled back", type(caught.value).__name__)]


WAYS = [name for name in vars(Units) if not name.startswith("_") and name != "add"]
KEPT = ("commits", "is_retried")


@some
@pytest.mark.parametrize("where", ["wants", "the call"])
async def test_a_reader_that_raises_disturbs_nothing(make_face, where, caplog):
    """R51: with a reader that raises, 100 units in every way of ending have one end event each, right, and notice nothing."""
    caplog.set_level(logging.CRITICAL, "tenure")
    units = Units(make_face(pool_size=1, max_overflow=0, pool_timeout=0.05, guards={"second-connection": "off"}))
    wanted = {}
    with reading(Raises(where)) as broken, reading(Told()) as told:
        for number in range(100):
            way = WAYS[number % len(WAYS)]
            name = f"{way} {number}"
            wanted[name] = await getattr(units, way)(name)
            assert units.face.out() == 0

    closed = [one for one in told.of(events.UnitClosed) if one.unit in wanted]
    assert {name: [(one.outcome.value, one.reason) for one in closed if one.unit == name] for name in wanted} == wanted
    assert all(0 <= one.seconds < 30 and one.database == "main" for one in closed)
    assert stored(units.face) == sorted(name for name in wanted if name.startswith(KEPT))
    assert len(told.of(events.Retried)) == sum(name.startswith("is_retried") for name in wanted)
    assert broken.times >= 100


@one
@pytest.mark.parametrize("where", ["wants", "the call"])
async def test_a_reader_that_raises_is_told_of(face, where, caplog):
    """R51: a failing reader is logged at ERROR, with its class and line; once for each event that it failed to take."""
    with reading(Raises(where)):
        async with face.unit(name="reads") as session:
            await session.scalar(sa.select(User.id))

    said = [record for record in caplog.records if record.name == "tenure"]
    assert said
    assert {record.levelno for record in said} == {logging.ERROR}
    assert all(
        re.fullmatch(
            r"tenure: the event reader Raises failed \(test_events\.py:\d+\): ZeroDivisionError\. \[reader-failed\]",
            record.getMessage(),
        )
        for record in said
    )


@one
async def test_hooks_run_whatever_readers_do(face, caplog):
    """R51: a reader that raises keeps no hook from running and changes no outcome."""
    ran = []
    with reading(Raises("the call")):
        async with face.unit() as session:
            session.add(User(name="ada"))
            face.db.on_commit(ran.append, "commit")

    assert ran == ["commit"]
    assert stored(face) == ["ada"]


# --------------------------------------------------------------------------------------------- the log


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "tenure"]


@one
async def test_one_line_for_each_unit(face, caplog):
    """R51: at DEBUG the log has one line for each unit: its name, line, database, outcome, reason and time."""
    caplog.set_level(logging.DEBUG, "tenure")
    opened = []
    opened.append(line(1))
    async with face.unit(name="writes") as session:
        session.add(User(name="ada"))
        await session.flush()
        async with face.unit(propagation="nested"):
            await session.scalar(sa.select(User.id))
    opened.append(line(1))
    async with face.unit(name="reads") as session:
        await session.scalar(sa.select(User.id))
    with contextlib.suppress(ValueError):
        opened.append(line(1))
        async with face.unit(name="fails"):
            raise ValueError

    wanted = [("writes", "committed, returned"), ("reads", "read only, returned"), ("fails", "rolled back, ValueError")]
    assert [(level, re.sub(r"\d+\.\d ms", "3.0 ms", text)) for level, text in lines(caplog)] == [
        ("DEBUG", f"tenure: '{name}' ({where}) on 'main': {end}, 3.0 ms")
        for (name, end), where in zip(wanted, opened, strict=True)
    ]


@one
async def test_nothing_is_made_for_nobody(face, caplog, monkeypatch):
    """R51: where the log does not take DEBUG and nobody else listens, a unit that ends well is not put into an event."""
    made, type_told = [], events.UnitClosed
    monkeypatch.setattr(events, "UnitClosed", lambda *given: made.append(given))
    monkeypatch.setitem(logs.SAID, events.UnitClosed, logs.SAID[type_told])
    caplog.set_level(logging.INFO, "tenure")
    async with face.unit() as session:
        session.add(User(name="ada"))

    assert made == []
    assert lines(caplog) == []


@pytest.mark.drivers("psycopg", "asyncpg", "pymysql")
async def test_an_unknown_outcome_is_always_logged(face, told, caplog):
    """R51: an outcome that is not known is logged at ERROR, also where the lines of other units are not."""
    caplog.set_level(logging.WARNING, "tenure")
    postgresql = face.dialect == "postgresql"
    backend = []

    def lost(connection):
        outside(face, f"SELECT pg_terminate_backend({backend[0]}, 5000)" if postgresql else f"KILL {backend[0]}")

    with pytest.raises(Exception) as caught:
        opened = line(1)
        async with face.unit(name="pay") as session:
            session.add(User(name="ada"))
            await session.flush()
            backend.append(await session.scalar(sa.text("SELECT pg_backend_pid()" if postgresql else "SELECT CONNECTION_ID()")))
            event.listen(face.sync_engine, "commit", lost)

    assert told.outcomes() == ["unknown"]
    why = type(caught.value).__name__
    ((level, said),) = lines(caplog)
    assert level == "ERROR"
    assert said == (
        f"tenure: it is not known whether 'pay' ({opened}) on 'main' was committed: {why}. Check before a rerun. [commit-unknown]"
    )


def test_every_event_has_its_level():
    """R51: there is no event that the log does not know: its level goes by what it tells."""
    levels = {kind: level for kind, (level, _) in logs.SAID.items()}
    by_level = {level: {kind.__name__ for kind in levels if levels[kind] == level} for level in levels.values()}

    assert set(levels) == set(typing.get_args(events.Event))
    assert by_level[logging.DEBUG] >= {"UnitClosed"}
    assert by_level[logging.INFO] >= {"Retried"}
    assert by_level[logging.WARNING] >= {"GuardTripped", "UnitLeaked", "WorkLost"}
    assert by_level[logging.ERROR] >= {"InDoubt", "HookFailed", "EndTroubled"}


def test_every_event_has_its_sentence():
    """R51: the line of an event speaks of its fields, all of which it has; no other shows a site, an outcome or an error as it is."""
    for kind, (_, sentence) in logs.SAID.items():
        types = typing.get_type_hints(kind)
        for _, name, words, _ in string.Formatter().parse(sentence):
            if name is None:
                continue
            assert name in kind._fields, kind
            plain = str(types[name]) in {"<class 'str'>", "<class 'int'>", "<class 'float'>"}
            assert plain == (words not in {"line", "outcome", "became", "error"}), (kind, name)


def test_events_are_frozen():
    """R51: no reader can change what the next one is told."""
    for kind in typing.get_args(events.Event):
        made = kind(*range(len(kind._fields)))
        with pytest.raises(AttributeError):
            setattr(made, kind._fields[0], "changed")
