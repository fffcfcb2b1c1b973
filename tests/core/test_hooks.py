import asyncio
import logging
from contextlib import suppress

import pytest
import sqlalchemy as sa

from tenure.core import events
from tenure.exceptions import BadOption, NoUnit, UnitEnded

from support.models import Pledge, User
from support.probe import line, stored

some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")
one = pytest.mark.drivers("sqlite", "aiosqlite")


async def add(face, *names):
    face.session.add_all([User(name=name) for name in names])
    await face.session.flush()


def on_both(face, ran, name):
    """Register a hook for each outcome."""
    face.db.on_commit(ran.append, f"{name} committed")
    face.db.on_rollback(ran.append, f"{name} rolled back")


async def test_hooks_run_after_the_outcome(small, told):
    """R8: hooks run once, in order, when another connection can see the rows and no connection is out; one that raises
    changes nothing, stops no other, and the caller sees success.
    """
    face, ran = small(), []

    def look(*names, **more):
        ran.append((names, more, stored(face), face.out()))

    async def fail():
        raise ZeroDivisionError

    async with face.unit() as session:
        face.db.on_commit(look, 1, 2, key=3)
        face.current.on_commit(face.plain(fail))
        face.current.on_commit(look, 4)
        face.current.on_rollback(look, 5)
        session.add(User(name="ada"))
        assert ran == []

    assert ran == [((1, 2), {"key": 3}, ["ada"], 0), ((4,), {}, ["ada"], 0)]
    assert told.outcomes() == ["committed"]
    assert [type(one.error) for one in told.of(events.HookFailed)] == [ZeroDivisionError]


@some
async def test_rollback_hooks(face):
    """R8: when a unit rolls back its rollback hooks run, with the connection returned, and its commit hooks are dropped."""
    ran = []
    with pytest.raises(KeyError):
        async with face.unit():
            on_both(face, ran, "unit")
            face.db.on_rollback(lambda: ran.append(face.out()))
            await add(face, "ada")
            raise KeyError

    assert ran == ["unit rolled back", 0]
    assert stored(face) == []


@pytest.mark.dialects("sqlite", "postgresql")
async def test_hooks_when_commit_fails(face):
    """R8: a COMMIT that fails is a rollback."""
    ran = []
    with pytest.raises(sa.exc.IntegrityError):
        async with face.unit() as session:
            on_both(face, ran, "unit")
            session.add(Pledge(user_id=4711))

    assert ran == ["unit rolled back"]


@some
@pytest.mark.parametrize("savepoint", ["nested unit", "begin_nested", "failed flush in begin_nested"])
async def test_a_failed_savepoint_takes_its_hooks_with_it(face, savepoint):
    """R8: commit hooks of a failed savepoint are dropped; its rollback hooks run after the outcome of the unit."""
    ran = []
    async with face.unit() as session:
        on_both(face, ran, "before")
        await add(face, "ada")
        with suppress(ZeroDivisionError, sa.exc.IntegrityError):
            async with face.unit(propagation="nested") if savepoint == "nested unit" else session.begin_nested():
                on_both(face, ran, "within")
                await add(face, "bob")
                if savepoint.startswith("failed"):
                    await add(face, "ada")
                raise ZeroDivisionError
        on_both(face, ran, "after")
        assert ran == []

    assert sorted(ran) == ["after committed", "before committed", "within rolled back"]
    assert stored(face) == ["ada"]


@some
@pytest.mark.parametrize("outcome", ["committed", "rolled back"])
async def test_hooks_of_a_savepoint_that_is_kept(face, outcome):
    """R8: the hooks of a savepoint that is kept share the outcome of the unit."""
    ran = []
    with suppress(KeyError):
        async with face.unit() as session:
            async with face.unit(propagation="nested"):
                on_both(face, ran, "nested unit")
                await add(face, "ada")
            async with session.begin_nested():
                on_both(face, ran, "begin_nested")
                await add(face, "bob")
            if outcome == "rolled back":
                raise KeyError

    assert ran == [f"nested unit {outcome}", f"begin_nested {outcome}"]


@some
async def test_hooks_within_savepoints_within_savepoints(face):
    """R8: a savepoint that fails takes with it the hooks of those within it that were kept."""
    ran = []
    async with face.unit():
        with suppress(KeyError):
            async with face.unit(propagation="nested"):
                async with face.unit(propagation="nested"):
                    on_both(face, ran, "inner")
                    await add(face, "ada")
                raise KeyError
        await add(face, "bob")

    assert ran == ["inner rolled back"]
    assert stored(face) == ["bob"]


@some
async def test_hooks_of_a_joined_unit_wait_for_its_owner(face):
    """R8: what a joined function registers runs after the outcome of the unit that it has joined."""
    ran = []

    async def work(session):
        on_both(face, ran, "joined")
        await add(face, "ada")

    async with face.unit():
        await face.decorated(work)()
        assert ran == []

    assert ran == ["joined committed"]


@some
async def test_a_new_unit_has_its_own_hooks(make_face):
    """R8: the hooks of a unit with propagation="new" run at its own end."""
    face, ran = make_face(), []
    async with face.unit():
        on_both(face, ran, "outer")
        async with face.unit(propagation="new") as session:
            on_both(face, ran, "inner")
            await session.scalar(sa.select(User))
        assert ran == ["inner committed"]

    assert ran == ["inner committed", "outer committed"]


@some
async def test_hooks_of_checkpoints(face):
    """R6: each checkpoint runs the hooks registered so far, with the connection returned, and the unit goes on."""
    ran = []
    with pytest.raises(KeyError):
        async with face.unit() as session:
            face.db.on_commit(lambda: ran.append(("first", stored(face), face.out())))
            await add(face, "ada")
            await session.commit()
            assert ran == [("first", ["ada"], 0)]
            on_both(face, ran, "second")
            await add(face, "bob")
            await session.rollback()
            assert ran[1:] == ["second rolled back"]
            on_both(face, ran, "third")
            await add(face, "eve")
            raise KeyError

    assert ran[2:] == ["third rolled back"]
    assert stored(face) == ["ada"]


@some
@pytest.mark.parametrize("way", ["returns", "raises", "failed flush"])
async def test_hooks_of_an_explicit_transaction(face, way):
    """R6: `with session.begin()` in a unit is a checkpoint or a rollback for its hooks, however it ends."""
    ran = []
    async with face.unit() as session:
        with suppress(KeyError, sa.exc.IntegrityError):
            async with _block(session.raw.begin()):
                on_both(face, ran, "explicit")
                await add(face, "ada")
                if way == "failed flush":
                    await add(face, "ada")
                if way == "raises":
                    raise KeyError
        assert ran == [f"explicit {'committed' if way == 'returns' else 'rolled back'}"]
        on_both(face, ran, "rest")
        await add(face, "bob")

    assert ran[1:] == ["rest committed"]
    assert stored(face) == (["ada", "bob"] if way == "returns" else ["bob"])


class _block:  # noqa: N801 - a function in all but name
    def __init__(self, raw):
        self.raw = raw

    async def __aenter__(self):
        return await self.raw.__aenter__() if hasattr(self.raw, "__aenter__") else self.raw.__enter__()

    async def __aexit__(self, *error):
        return await self.raw.__aexit__(*error) if hasattr(self.raw, "__aexit__") else self.raw.__exit__(*error)


@some
async def test_hooks_of_reads(face):
    """R8: the hooks of a unit that only read, or did nothing at all, run as after a commit."""
    ran = []
    async with face.unit() as session:
        on_both(face, ran, "read")
        await session.scalar(sa.select(User))
    async with face.unit(readonly=True) as session:
        on_both(face, ran, "readonly")
        await session.execute(sa.text("SELECT 1"))
    async with face.unit():
        on_both(face, ran, "nothing")
    with suppress(KeyError):
        async with face.unit():
            on_both(face, ran, "failed")
            raise KeyError

    assert ran == ["read committed", "readonly committed", "nothing committed", "failed rolled back"]


@some
async def test_a_hook_may_open_a_unit(small):
    """R8: a hook runs with no unit current, and with the connection free for a unit of its own."""
    face = small()

    async def work(session):
        session.add(User(name="from the hook"))

    async def look():
        with pytest.raises(NoUnit):
            face.current  # noqa: B018
        await face.decorated(work)()

    async with face.unit():
        await add(face, "ada")
        face.db.on_commit(face.plain(look))

    assert stored(face) == ["ada", "from the hook"]


@one
async def test_a_failing_hook_is_logged_with_its_line(face, caplog):
    """R8: the log names the hook, the line at which it raised, and the outcome, which stands."""

    def send_mail():
        raise ZeroDivisionError("no server")

    raised = line(-2)
    async with face.unit(name="POST /orders"):
        face.db.on_commit(send_mail)
        await add(face, "ada")

    (record,) = [one for one in caplog.records if one.name == "tenure" and one.levelno >= logging.WARNING]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        f"tenure: hook 'test_a_failing_hook_is_logged_with_its_line.<locals>.send_mail' ({raised}) of 'POST /orders' failed after"
        " the outcome was known (committed), which stands: ZeroDivisionError: no server. [hook-failed]"
    )


@one
async def test_an_interruption_in_a_hook(face, told):
    """R8: an interruption in a hook goes on after all hooks have run, and changes no outcome."""
    ran = []

    class Interruption(BaseException):
        pass

    def interrupt():
        raise Interruption

    with pytest.raises(Interruption):
        async with face.unit():
            await add(face, "ada")
            face.db.on_commit(interrupt)
            face.db.on_commit(ran.append, "next")

    assert ran == ["next"]
    assert told.outcomes() == ["committed"]
    assert stored(face) == ["ada"]


@pytest.mark.drivers("sqlite")
async def test_a_coroutine_function_as_a_hook_of_a_database(face, caplog):
    """R8: a Database cannot await a hook, and says so in the log, with the remedy."""

    async def send_mail():
        pass

    async with face.unit():
        face.db.on_commit(send_mail)

    assert "is async def, and a Database cannot await it. Use AsyncDatabase." in caplog.text


@pytest.mark.drivers("aiosqlite")
async def test_hooks_of_an_async_database(face):
    """R8: an AsyncDatabase awaits hooks that are coroutine functions, one after the other, and calls the others."""
    ran = []

    async def slowly():
        await asyncio.sleep(0)
        ran.append("awaited")

    async with face.unit() as session:
        face.db.on_commit(slowly)
        face.db.on_commit(ran.append, "called")
        await add(face, "ada")
        await session.commit()
        assert ran == ["awaited", "called"]
        face.db.on_commit(slowly)

    assert ran == ["awaited", "called", "awaited"]


@one
async def test_what_cannot_be_a_hook(face):
    """R8: a hook that cannot be called is refused where it is registered; so is one that comes too late."""
    async with face.unit() as session:
        unit = face.current
        with pytest.raises(BadOption, match="give a function and its arguments, not the result of calling it"):
            face.db.on_commit(print("sent"))
        with pytest.raises(BadOption, match="on_rollback"):
            face.db.on_rollback("send_mail")
        await session.scalar(sa.select(User))
    with pytest.raises(UnitEnded):
        unit.on_commit(print)
    with pytest.raises(NoUnit):
        face.db.on_commit(print)
