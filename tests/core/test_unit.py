import pytest
import sqlalchemy as sa

from tenure.core.plan import Outcome
from tenure.exceptions import ReleaseRefused, UnitEnded

from support.models import User
from support.probe import line, stored

one = pytest.mark.drivers("sqlite", "aiosqlite")
some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")


async def release(face):
    result = face.current.release()
    if face.is_async:
        await result


@some
async def test_what_a_unit_says_of_itself(face):
    """R51: `db.current` tells name, session and outcome of its unit, while it is open and afterwards."""
    opened = line(1)
    async with face.unit(name="sync") as session:
        unit = face.current
        assert (unit.name, unit.session, unit.outcome) == ("sync", session.raw, None)
        session.add(User(name="ada"))

    assert unit.outcome is Outcome.COMMITTED
    assert (unit.name, unit.reason) == ("sync", "returned")
    assert f"{unit.site[1]}" == opened.partition(":")[2]


@one
async def test_the_session_of_an_ended_unit(face):
    """R45: an ended unit gives no session, takes no hook and no wish, and says where and how it ended."""
    opened = line(1)
    async with face.unit(name="sync") as session:
        unit = face.current
        session.add(User(name="ada"))
    uses = [lambda: unit.session, lambda: unit.on_commit(print), lambda: unit.on_rollback(print), lambda: unit.rollback_only("x")]
    for use in uses:
        with pytest.raises(UnitEnded) as caught:
            use()
        assert f"the session of 'sync' ({opened}) ended, committed, at " in str(caught.value)
        assert f"was used again at {line(-5)}. Later work needs its own unit" in str(caught.value)


@some
@pytest.mark.parametrize("how", ["joined", "nested"])
async def test_a_unit_within_shares_the_session(face, how):
    """R5: a unit that has joined, or is a savepoint, has its own name and the session of the unit around it."""
    async with face.unit(name="outer") as session:
        outer = face.current
        async with face.unit(name="inner", propagation="nested" if how == "nested" else "required") as same:
            inner = face.current
            assert (inner.name, inner.session, inner.parent) == ("inner", session.raw, outer)
            assert same.raw is session.raw
        assert inner.outcome is not None
        assert face.current is outer


@some
async def test_each_unit_has_a_new_session(face):
    """R1: no unit sees the session, or an object, of the one before it."""
    sessions = []
    for _ in range(3):
        async with face.unit() as session:
            assert not session.identity_map
            session.add(User(name=f"user {len(sessions)}"))
            sessions.append(session.raw)

    assert len({id(one) for one in sessions}) == 3


@some
async def test_releasing_the_connection(face):
    """R34: release() gives the connection back after reads and commits, and the next statement takes one again."""
    async with face.unit(hold="transaction") as session:
        await release(face)
        await session.scalar(sa.select(User))
        assert face.out() == 1
        await release(face)
        assert face.out() == 0
        session.add(User(name="ada"))
        await session.commit()
        await release(face)
        ada = await session.scalar(sa.select(User))
        await release(face)
        assert ada.name == "ada"

    assert face.out() == 0


@one
@pytest.mark.parametrize("work", ["added", "changed", "deleted", "flushed", "executed", "savepoint"])
async def test_release_is_refused_while_something_would_be_lost(face, work):
    """R34: release() refuses while anything is unwritten or uncommitted, and says what and where; the unit goes on."""
    async with face.unit() as session:
        session.add(User(name="ada"))
    opened = line(1)
    async with face.unit(name="POST /chat") as session:
        ada = await session.scalar(sa.select(User))
        if work == "added":
            session.add(User(name="bob"))
        elif work == "changed":
            ada.balance = 3
        elif work == "deleted":
            await session.delete(ada)
        elif work == "flushed":
            ada.balance = 3
            await session.flush()
        elif work == "executed":
            await session.execute(sa.update(User).values(balance=3))
        else:
            nested = session.raw.begin_nested()
            if face.is_async:
                await nested
        with pytest.raises(ReleaseRefused) as caught:
            await release(face)

    assert str(caught.value).startswith(f"unit 'POST /chat' ({opened}) has ")
    assert "test_unit.py:" in str(caught.value).partition(" has ")[2]
    assert str(caught.value).endswith("[release-refused]")
    assert stored(face, User.balance) == {"added": [0, 0], "deleted": [], "savepoint": [0]}.get(work, [3])


@one
async def test_options_of_every_session(make_face):
    """R50: `session_options` reach every session; expire_on_commit is off unless it says otherwise."""
    face = make_face(session_options={"autoflush": False, "info": {"tenant": 1}})
    async with face.unit() as session:
        assert (session.raw.info["tenant"], session.autoflush) == (1, False)
        ada = User(name="ada")
        session.add(ada)
        await session.commit()
        assert "name" in sa.inspect(ada).dict


@some
async def test_what_is_loaded_outlives_the_unit(face):
    """R11: objects that a unit has made or loaded stay readable after it, also after a rollback."""
    ada = User(name="ada")
    async with face.unit() as session:
        session.add(ada)
    async with face.unit() as session:
        found = await session.scalar(sa.select(User))
        session.add(User(name="bob"))
        face.current.rollback_only()

    assert (ada.name, ada.id) == ("ada", 1)
    assert sa.inspect(found).detached
