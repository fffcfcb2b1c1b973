import re
from contextlib import suppress

import pytest
import sqlalchemy as sa

from tenure.exceptions import NotOwner, UnitEnded

from support.models import User
from support.probe import line, stored

some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")
one = pytest.mark.drivers("sqlite", "aiosqlite")


async def end(session, how):
    """Try to end the unit's transaction, at the line after this one."""
    return await session.run_sync(lambda raw: getattr(raw, how)())


TRIED = line(-3)


async def test_a_joined_function_cannot_commit(face):
    """R6: commit() in a joined function raises with both lines, and a later failure of the outer one leaves no row."""

    async def charge(session):
        session.add(User(name="inner"))
        with pytest.raises(NotOwner) as caught:
            await session.commit()
        return str(caught.value), line(-1)

    charge = face.decorated(charge)
    with pytest.raises(KeyError):
        opened = line(1)
        async with face.unit(name="POST /orders") as session:
            session.add(User(name="outer"))
            message, tried = await charge()
            raise KeyError

    assert message == (
        f"commit() at {tried} in 'test_a_joined_function_cannot_commit.<locals>.charge' would end its caller's unit 'POST /orders'"
        f' ({opened}). Leave the commit to it, or use propagation="new". [not-owner]'
    ).replace("test_a_joined_function_cannot_commit.<locals>.", "")
    assert stored(face) == []


@some
@pytest.mark.parametrize("how", ["commit", "rollback", "close", "reset", "begin", "invalidate", "prepare"])
@pytest.mark.parametrize("propagation", ["required", "nested", "mandatory"])
async def test_what_a_joined_function_may_not_do(face, how, propagation):
    """R6: no way to end its caller's transaction is open to a joined function; the unit goes on and commits."""

    async def inner(session):
        with pytest.raises(NotOwner, match=re.escape(f"{how}() at {TRIED} in 'inner' would end its caller's unit")):
            await end(session, how)

    inner = face.decorated(inner, propagation=propagation)
    async with face.unit() as session:
        session.add(User(name="ada"))
        await inner()

    assert stored(face) == ["ada"]
    assert face.out() == 0


@one
@pytest.mark.parametrize("how", ["commit", "rollback", "close"])
async def test_a_session_passed_by_hand_is_no_way_around(face, how):
    """R6: a joined function that was given its caller's session cannot end it either, whichever session object it uses."""

    async def inner(session):
        await end(session, how)

    inner = face.decorated(inner)
    async with face.unit() as session:
        session.add(User(name="ada"))
        with pytest.raises(NotOwner):
            await inner(session=session)
        with pytest.raises(NotOwner):
            await inner(session)
        face.current.rollback_only()


@one
async def test_the_owner_within_a_joined_unit(face):
    """R6: it counts whose code is running: the caller itself cannot commit from within a block that has joined."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        async with face.unit():
            with pytest.raises(NotOwner):
                await session.commit()
        await session.commit()

    assert stored(face) == ["ada"]


@some
async def test_a_checkpoint(face, told):
    """R6: commit() in the unit's own code stores what was done, and the unit goes on: a later failure undoes only the rest."""
    with pytest.raises(KeyError):
        async with face.unit() as session:
            session.add(User(name="ada"))
            await session.commit()
            assert stored(face) == ["ada"]
            assert face.out() == 0
            session.add(User(name="bob"))
            await session.flush()
            raise KeyError

    assert stored(face) == ["ada"]
    assert told.outcomes() == ["rolled back"]


@some
async def test_rollback_in_the_units_own_code(face):
    """R6: rollback() in the unit's own code undoes everything since the last commit, also what was not flushed yet."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.commit()
        session.add(User(name="bob"))
        await session.rollback()
        ada = await session.scalar(sa.select(User))
        ada.balance = 3
        session.add(User(name="eve"))
        await session.flush()
        await session.rollback()
        session.add(User(name="zoe"))

    assert stored(face) == ["ada", "zoe"]
    assert stored(face, User.balance) == [0, 0]


@some
async def test_a_checkpoint_that_fails(face):
    """R6: a commit() that fails and is caught leaves a unit that cannot commit until it has rolled back."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.commit()
        session.add(User(name="ada"))
        with suppress(sa.exc.IntegrityError):
            await session.commit()
        with pytest.raises(sa.exc.PendingRollbackError):
            await session.execute(sa.select(User))
        await session.rollback()
        session.add(User(name="bob"))

    assert stored(face) == ["ada", "bob"]


@some
async def test_a_savepoint_in_a_joined_function(face):
    """R6: a joined function may use savepoints of its own: they end nothing that it did not begin."""

    async def inner(session):
        async with session.begin_nested():
            session.add(User(name="kept"))
        with suppress(KeyError):
            async with session.begin_nested():
                session.add(User(name="lost"))
                await session.flush()
                raise KeyError

    async with face.unit() as session:
        await session.scalar(sa.select(User))
        await face.decorated(inner)()

    assert stored(face) == ["kept"]


@one
async def test_a_new_unit_within_is_owned(face):
    """R6: a unit with propagation="new" is its own code's to commit, and the outer unit is nobody's but its own."""
    async with face.unit() as outer:
        async with face.unit(propagation="new") as inner:
            inner.add(User(name="ada"))
            await inner.commit()
            assert stored(face) == ["ada"]
        outer.add(User(name="bob"))
        await outer.commit()

    assert stored(face) == ["ada", "bob"]


@pytest.mark.drivers("psycopg", "asyncpg", "psycopg_async", "pymysql")
async def test_two_that_end_the_same_unit(make_face, proxy, told):
    """R45: given a unit whose COMMIT is under way, when another thread or task leaves its block too, then that one is refused, and the
    outcome is that of the first.
    """
    face, hooks = make_face(through=proxy), []
    block = face.unit(name="shared")
    proxied = face.event()

    async def first():
        session = await block.__aenter__()
        face.current.on_commit(hooks.append, "commit")
        face.current.on_rollback(hooks.append, "rollback")
        session.add(User(name="ada"))
        await session.flush()
        proxy.delay(0.1)
        proxied.set()
        await block.__aexit__(None, None, None)

    async def second():
        await proxied.wait()
        await face.until(lambda: not block.raw._open)
        with pytest.raises(UnitEnded) as caught:
            await block.__aexit__(None, None, None)
        late = KeyError()
        await block.__aexit__(KeyError, late, None)  # an error goes on as it is
        return [str(caught.value)]

    _, (message,) = await face.spawn(first, second, inherit=False)

    assert stored(face) == ["ada"]
    assert hooks == ["commit"]
    assert told.outcomes() == ["committed"]
    assert message.startswith("the block left at test_owner.py:")
    assert face.out() == 0
