"""Units over a limit: what is told of them, when, and how often."""

import time

import pytest
from sqlalchemy import insert, select, text

from tenure import Limits
from tenure.core import events
from tenure.exceptions import BadOption

from support.face import settle
from support.models import User
from support.probe import line

OFF = {"idle": None, "age": None, "objects": None}
ADD = insert(User).values(name="ada")


def limits(**given):
    return {"limits": Limits(**{**OFF, **given})}


def pass_time(monkeypatch, seconds):
    """Let that much time go by at once."""
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + seconds)


async def test_a_connection_held_idle_is_named_with_its_lines(make_face, told, monkeypatch, caplog):
    """R34: a unit that holds a connection idle for 30 s is logged once, with the line of its last statement and the next one."""
    face = make_face()
    for _ in range(2):
        async with face.unit(name="POST /chat") as session:
            await session.execute(ADD), (since := line())
            pass_time(monkeypatch, 31)
            await session.execute(text("DELETE FROM users")), (until := line())
    (told_of,) = told.of(events.HeldIdle)

    assert (told_of.unit, 31 <= told_of.seconds < 40) == ("POST /chat", True)
    (message,) = caplog.messages
    assert message == (
        f"tenure: 'POST /chat' holds a connection of 'main', idle for {told_of.seconds:.0f} s since {since}."
        f" Commit and unit.release() before {until}. [held-idle]"
    )


async def test_what_is_not_held_idle(make_face, told, monkeypatch):
    """R34: plain reads, a commit in between and less than the limit are no news."""
    face = make_face(**limits(idle=30))
    async with face.unit(isolation="READ COMMITTED" if face.dialect == "mysql" else None) as session:
        await session.scalars(select(User))
        pass_time(monkeypatch, 31)
        await session.execute(ADD)
        pass_time(monkeypatch, 10)
        await session.commit()
        pass_time(monkeypatch, 31)
        await session.execute(text("DELETE FROM users"))
    assert told.of(events.HeldIdle) == []


@pytest.mark.parametrize("fails", [False, True])
async def test_held_idle_is_noticed_at_the_end(make_face, told, monkeypatch, fails):
    """R34: a unit that only waits after its write is named when it ends, committed or not."""
    face = make_face(**limits(idle=30))
    try:
        async with face.unit() as session:
            await session.execute(ADD), (since := line())
            pass_time(monkeypatch, 31)
            if fails:
                raise LookupError
    except LookupError:
        pass
    (told_of,) = told.of(events.HeldIdle)
    assert f"{told_of.since[0].co_filename}:{told_of.since[1]}".endswith(since)


async def test_held_idle_is_noticed_by_whoever_asks(make_face, told, monkeypatch):
    """R34, R37: `db.holders()` tells of it while it waits, and names the line at which it waits."""
    face = make_face(**limits(idle=30))
    written, asked, lines = face.event(), face.event(), []

    async def waits():
        async with face.unit() as session:
            await session.execute(ADD)
            written.set()
            lines.append(line(1))
            await asked.wait()

    async def asks():
        await written.wait()
        pass_time(monkeypatch, 31)
        face.db.holders()
        face.db.holders()
        asked.set()

    await face.spawn(waits, asks)
    (told_of,) = told.of(events.HeldIdle)
    assert f"{told_of.until[0].co_filename}:{told_of.until[1]}".endswith(lines[0])


async def test_a_unit_that_is_too_old(make_face, told, monkeypatch, caplog):
    """R47: it is named once, at its next statement or at its end."""
    face = make_face(**limits(age=600))
    for ends in (False, True, False):
        async with face.unit(name="sync") as session:
            opened = line(-1)
            pass_time(monkeypatch, 601)
            if not ends:
                await session.scalars(select(User)), (here := line())
                await session.scalars(select(User))
    (told_of,) = told.of(events.UnitTooOld)
    (message,) = caplog.messages
    assert message == (
        f"tenure: 'sync' ({opened}) on 'main' is open for {told_of.seconds:.0f} s, at {here}. Give each piece of work a unit of its own."
        " [unit-too-old]"
    )


async def test_a_unit_that_ends_too_late(make_face, told, monkeypatch):
    """R47: one that has run no statement since is named at its end, a joined part of it is not."""
    face = make_face(**limits(age=600))
    async with face.unit(name="outer"):
        async with face.unit(name="inner"):
            pass_time(monkeypatch, 601)
        assert told.of(events.UnitTooOld) == []
    assert [one.unit for one in told.of(events.UnitTooOld)] == ["outer"]


async def test_the_body_of_an_answer_may_take_its_time(make_face, told, monkeypatch):
    """R16, R47: a stream of events lives as long as its client listens."""
    face = make_face(**limits(age=600))
    async with face.unit() as session:
        await settle(face.db.settle(face.current, None))
        pass_time(monkeypatch, 601)
        await session.scalars(select(User))
    assert told.of(events.UnitTooOld) == []


async def test_too_many_objects(make_face, told, caplog):
    """R47: a session that holds more objects than the limit is named once."""
    face = make_face(**limits(objects=10))
    for _ in range(2):
        async with face.unit(name="import") as session:
            opened = line(-1)
            users = [User(name=f"u{n}") for n in range(11)]
            session.add_all(users)
            await session.flush(), (here := line())
            await session.rollback()
    (message,) = caplog.messages
    assert message == (
        f"tenure: 'import' ({opened}) on 'main' has 11 objects in its session at {here}. Give each part a unit of its own, or commit and"
        " expunge_all() in between. [too-many-objects]"
    )


@pytest.mark.parametrize("off", [None, 0])
async def test_limits_that_are_off(make_face, told, monkeypatch, off):
    """R47: None and 0 switch a limit off."""
    face = make_face(limits=Limits(idle=off, age=off, objects=off))
    async with face.unit() as session:
        session.add_all([User(name=f"u{n}") for n in range(3)])
        await session.flush()
        pass_time(monkeypatch, 1e6)
        face.db.holders()
        await session.scalars(select(User))
    assert [type(one) for one in told] == [events.UnitClosed]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"idle": -1}, r"Limits\(idle\)=-1: give seconds, at least 0"),
        ({"age": "10"}, r"Limits\(age\)='10': give seconds"),
        ({"objects": 1.5}, r"Limits\(objects=1.5\): give a whole number"),
        ({"objects": True}, r"Limits\(objects=True\): give a whole number"),
    ],
)
def test_bad_limits(given, said):
    """R50: what is no limit is refused when it is made."""
    with pytest.raises(BadOption, match=said):
        Limits(**given)


@pytest.mark.drivers("sqlite", "aiosqlite")
def test_something_else_than_limits(make_face):
    """R50: as is something else in the place of the limits."""
    with pytest.raises(BadOption, match="limits=30: give Limits"):
        make_face(limits=30)
