"""What a unit within a unit means. The table itself is in docs/reference/propagation.md, tried out by tests/docs."""

import asyncio
from contextlib import suppress

import pytest
import sqlalchemy as sa

from tenure.exceptions import JoinRefused, NoUnit, RollbackOnly, UnexpectedUnit

from support.models import User
from support.probe import line, stored

some = pytest.mark.drivers("sqlite", "psycopg", "pymysql", "aiosqlite", "asyncpg")
# Two units that write at the same time: SQLite has one writer.
servers = pytest.mark.drivers("psycopg", "pymysql", "asyncpg")


async def add(face, *names):
    """Add users in the unit that is current."""
    face.session.add_all([User(name=name) for name in names])
    await face.session.flush()


@some
async def test_a_failed_savepoint_undoes_only_itself(face):
    """R5: after a SELECT, a nested unit that fails is undone, and what came before, after and around it is kept."""
    async with face.unit() as session:
        await session.scalar(sa.select(User))
        await add(face, "before")
        async with face.unit(propagation="nested"):
            await add(face, "kept")
        with suppress(ZeroDivisionError):
            async with face.unit(propagation="nested"):
                await add(face, "lost")
                raise ZeroDivisionError
        await add(face, "after")

    assert stored(face) == ["after", "before", "kept"]


@some
@pytest.mark.parametrize("fails", ["inner", "middle", "neither"])
async def test_savepoints_in_savepoints(face, fails):
    """R5: of nested units in nested units, a failed one takes with it exactly what is within it."""
    async with face.unit():
        with suppress(ZeroDivisionError):
            async with face.unit(propagation="nested"):
                await add(face, "middle")
                with suppress(KeyError):
                    async with face.unit(propagation="nested"):
                        await add(face, "inner")
                        if fails == "inner":
                            raise KeyError
                if fails == "middle":
                    raise ZeroDivisionError
        await add(face, "outer")

    assert stored(face) == {"inner": ["middle", "outer"], "middle": ["outer"], "neither": ["inner", "middle", "outer"]}[fails]


@some
async def test_a_savepoint_restores_objects(face):
    """R5: an object that was changed in a failed nested unit is again what it was before."""
    async with face.unit() as session:
        ada = User(name="ada", balance=1)
        session.add(ada)
        await session.flush()
        with suppress(ZeroDivisionError):
            async with face.unit(propagation="nested"):
                ada.balance = 2
                await session.flush()
                raise ZeroDivisionError
        await session.refresh(ada)
        assert ada.balance == 1

    assert stored(face, User.balance) == [1]


@some
async def test_units_and_savepoints_of_sqlalchemys_own_mix(face):
    """R5: nested units and `session.begin_nested()` can be put into each other in any order."""
    async with face.unit() as session:
        async with session.begin_nested():
            await add(face, "a")
            with suppress(ZeroDivisionError):
                async with face.unit(propagation="nested"):
                    await add(face, "b")
                    async with session.begin_nested():
                        await add(face, "c")
                    raise ZeroDivisionError
            async with face.unit():
                await add(face, "d")
        with suppress(ZeroDivisionError):
            async with session.begin_nested():
                async with face.unit(propagation="nested"):
                    await add(face, "e")
                raise ZeroDivisionError

    assert stored(face) == ["a", "d"]


@some
async def test_a_savepoint_that_is_left_open(face):
    """R5: a savepoint that is begun in a nested unit and not ended ends with it."""
    async with face.unit() as session:
        async with face.unit(propagation="nested"):
            nested = session.raw.begin_nested()
            if face.is_async:
                await nested
            await add(face, "ada")
        await add(face, "bob")

    assert stored(face) == ["ada", "bob"]
    assert face.out() == 0


@some
async def test_a_joined_unit_that_fails_in_a_savepoint_of_sqlalchemys(face):
    """R7: a joined function whose failure ends with the savepoint around it does not keep the unit from committing."""

    async def fail(session):
        await add(face, "lost")
        raise ZeroDivisionError

    fail = face.decorated(fail)
    async with face.unit() as session:
        with suppress(ZeroDivisionError):
            async with session.begin_nested():
                await fail()
        await add(face, "kept")

    assert stored(face) == ["kept"]


@some
async def test_the_savepoint_of_a_failed_flush(face):
    """R7: a flush that fails in a nested unit and is caught in it undoes the nested unit, not the unit around it."""
    async with face.unit():
        await add(face, "ada")
        with pytest.raises(RollbackOnly):
            async with face.unit(propagation="nested"):
                await add(face, "bob")
                with suppress(sa.exc.IntegrityError):
                    await add(face, "ada")
        await add(face, "eve")

    assert stored(face) == ["ada", "eve"]


@servers
async def test_a_new_unit_has_its_own_outcome(face):
    """R5: a unit with propagation="new" has its own session, connection and outcome, whatever is around it."""
    with suppress(ZeroDivisionError):
        async with face.unit() as outer:
            await add(face, "outer")
            async with face.unit(propagation="nested"):
                async with face.unit(propagation="new") as inner:
                    await add(face, "inner")
                    assert inner.raw is not outer.raw
                    assert face.out() == 2
                assert face.session.raw is outer.raw
                assert face.out() == 1
            raise ZeroDivisionError

    assert stored(face) == ["inner"]


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_a_failed_new_unit_leaves_the_outer_one_alone(face):
    """R5: a unit with propagation="new" that fails and is caught does not touch the one around it."""
    async with face.unit():
        await add(face, "outer")
        with suppress(ZeroDivisionError):
            async with face.unit(propagation="new"):
                await add(face, "inner")
                raise ZeroDivisionError

    assert stored(face) == ["outer"]


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_mandatory_needs_a_unit(face):
    """R5: propagation="mandatory" raises where no unit is open, and says where."""
    with pytest.raises(NoUnit) as caught:
        asked = line(1)
        async with face.unit(propagation="mandatory"):
            pass

    async with face.unit() as outer, face.unit(propagation="mandatory") as inner:
        assert inner.raw is outer.raw
    assert asked in str(caught.value)
    assert "propagation='mandatory' must join one" in str(caught.value)


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_never_may_not_be_within_a_unit(face):
    """R5: propagation="never" raises within a unit and names both lines; the unit around it goes on."""
    opened = line(1)
    async with face.unit(name="sync") as session:
        with pytest.raises(UnexpectedUnit) as caught:
            asked = line(1)
            async with face.unit(propagation="never"):
                pass
        session.add(User(name="ada"))

    assert str(caught.value) == (
        f"a unit ({asked}) has propagation='never', but is called within 'sync' ({opened}). Call it outside, or use"
        ' propagation="new". [unexpected-unit]'
    )
    assert stored(face) == ["ada"]


@pytest.mark.drivers("psycopg", "pymysql", "asyncpg")
@pytest.mark.parametrize(
    ("outer", "inner", "why"),
    [
        ({}, {"isolation": "SERIALIZABLE"}, "isolation='SERIALIZABLE', and the outer unit gives"),
        ({"isolation": "READ COMMITTED"}, {"isolation": "REPEATABLE READ"}, "the outer unit gives 'READ COMMITTED'"),
        ({}, {"hold": "transaction"}, "hold='transaction', and the outer unit holds by statement"),
        ({}, {"retry": 3}, "retry=, which runs the whole unit again"),
        ({}, {"isolation": "SERIALIZABLE", "propagation": "nested"}, "isolation='SERIALIZABLE'"),
        ({}, {"isolation": "SERIALIZABLE", "propagation": "mandatory"}, "isolation='SERIALIZABLE'"),
        ({"isolation": "SERIALIZABLE"}, {"isolation": "READ COMMITTED", "hold": "transaction"}, "hold='transaction'"),
    ],
)
async def test_joining_for_more_is_refused(face, outer, inner, why):
    """R5: joining for more than the outer unit gives is refused, with both lines; the outer unit goes on."""

    async def work(session):
        raise AssertionError("must not run")

    work = face.decorated(work, **inner)
    opened = line(1)
    async with face.unit(**outer, name="sync") as session:
        await session.scalar(sa.select(User))
        with pytest.raises(JoinRefused, match=why) as caught:
            await work()
        session.add(User(name="ada"))

    assert f"would join 'sync' ({opened})" in str(caught.value)
    assert stored(face) == ["ada"]


@pytest.mark.drivers("psycopg", "asyncpg")
@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({"isolation": "SERIALIZABLE"}, {"isolation": "REPEATABLE READ"}),
        ({"isolation": "SERIALIZABLE"}, {"isolation": "SERIALIZABLE"}),
        ({"hold": "transaction"}, {"hold": "auto"}),
        ({"settings": {"app.tenant": "a"}}, {"settings": {"app.tenant": "a"}}),
        ({"readonly": True}, {}),
        ({}, {"readonly": True}),
    ],
)
async def test_joining_for_less_is_fine(face, outer, inner):
    """R5: a unit may join one that gives as much as it asks for, or more."""
    async with face.unit(**outer) as session, face.unit(**inner) as joined:
        assert joined.raw is session.raw
        assert await joined.scalar(sa.select(sa.literal(1))) == 1


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_settings_are_those_of_the_outer_unit(face):
    """R60: a unit cannot join one whose settings are others."""
    async with face.unit(settings={"app.tenant": "a"}):
        for asked in ({"app.tenant": "b"}, {"app.tenant": "a", "app.other": "1"}):
            with pytest.raises(JoinRefused, match="settings= that the outer unit does not have"):
                async with face.unit(settings=asked):
                    pass


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_the_isolation_that_was_asked_for(face):
    """R5: a unit's transaction has the isolation it asked for, and the next one on that connection has not."""
    seen = []
    for isolation in ("SERIALIZABLE", None, "REPEATABLE READ", None):
        async with face.unit(isolation=isolation) as session:
            seen.append(await session.scalar(sa.text("SHOW transaction_isolation")))

    assert seen == ["serializable", "read committed", "repeatable read", "read committed"]


@some
async def test_children_join_the_unit_they_inherit(face):
    """R5: a worker that inherits the context joins the unit in it; one that does not opens its own."""

    async def work():
        async with face.unit() as session:
            return session.raw

    async with face.unit() as session:
        await session.scalar(sa.select(User))
        inherited = await face.spawn(work, inherit=True)
        bare = await face.spawn(work, inherit=False)

    assert inherited == [session.raw]
    assert bare != [session.raw]


@pytest.mark.drivers("aiosqlite", "asyncpg")
async def test_a_child_outlives_the_part_in_which_it_was_begun(face):
    """R28: a task that was begun in a nested unit goes on in the unit around it when the nested one has ended."""
    ended = asyncio.Event()

    async def child():
        await ended.wait()
        return face.session.raw

    async with face.unit() as session:
        async with face.unit(propagation="nested"):
            task = asyncio.create_task(child())
            await asyncio.sleep(0)
        ended.set()
        assert await task is session.raw
