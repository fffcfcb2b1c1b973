import asyncio
import contextvars
import gc
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tenure.core import events
from tenure.core.plan import Outcome
from tenure.core.session import UnitSession
from tenure.exceptions import NoUnit, RollbackOnly, UnitEnded, WrongBlock

from support.models import Pledge, User
from support.probe import line, outside, stored

# Where only tenure's own part is in question, one driver of each kind is enough.
some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")
with_deferred_constraints = pytest.mark.dialects("sqlite", "postgresql")


@pytest.mark.parametrize("how", ["returns", "raises", "flush", "commit"])
async def test_a_hundred_units_on_one_connection(small, told, how):
    """R1: whatever a block does, its unit ends: 100 times, 0 are out after each, and only what returned is stored."""
    face = small()
    if how == "commit" and face.dialect == "mysql":
        pytest.skip("MySQL knows no deferred constraints")
    sessions = set()

    async def once(number):
        async with face.unit() as session:
            sessions.add(session.raw)
            session.add(User(name=f"user {number}"))
            await session.flush()
            if how == "raises":
                raise ZeroDivisionError
            if how == "flush":
                session.add(User(name=f"user {number}"))
                await session.flush()
            if how == "commit":
                session.add(Pledge(user_id=4711))

    error = {"raises": ZeroDivisionError, "flush": sa.exc.IntegrityError, "commit": sa.exc.IntegrityError}.get(how)
    for number in range(100):
        with pytest.raises(error) if error else ExitStack():
            await once(number)
        assert face.out() == 0

    assert len(stored(face)) == (0 if error else 100)
    assert told.outcomes() == ["rolled back" if error else "committed"] * 100
    assert len(sessions) == 100


@some
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
async def test_any_exception_rolls_back(face, told, error):
    """R1: every class of exception rolls back and reaches the caller as the same object."""
    thrown = error("thrown")
    with pytest.raises(error) as caught:
        async with face.unit() as session:
            session.add(User(name="ada"))
            await session.flush()
            raise thrown

    assert caught.value is thrown
    assert stored(face) == []
    assert told.outcomes() == ["rolled back"]
    assert getattr(thrown, "tenure_outcome", None) == (None if error is ValueError else Outcome.ROLLED_BACK)


@pytest.mark.drivers("sqlite", "aiosqlite")
@pytest.mark.parametrize("base", [Exception, BaseException])
async def test_an_exception_that_cannot_be_changed(face, base):
    """R1: an exception that takes neither notes nor attributes, such as a frozen dataclass, ends a unit like any other."""

    @dataclass(frozen=True, slots=True)
    class FrozenError(base):
        number: int = 1

    event.listen(face.sync_engine, "rollback", _fail)
    with pytest.raises(FrozenError):
        async with face.unit() as session:
            session.add(User(name="ada"))
            await session.flush()
            raise FrozenError

    assert face.out() == 0


def _fail(*args):
    raise RuntimeError("on purpose")


@with_deferred_constraints
async def test_a_failing_commit_is_the_databases_own_error(face, told):
    """R50: the error of COMMIT itself reaches the caller as what it is, and the work is rolled back."""
    ran = []
    with pytest.raises(sa.exc.IntegrityError) as caught:
        async with face.unit() as session:
            session.add(User(name="ada"))
            session.add(Pledge(user_id=4711))
            await session.flush()
            face.db.on_commit(ran.append, "commit")
            face.db.on_rollback(lambda: ran.append(("rollback", face.out())))

    assert type(caught.value) is sa.exc.IntegrityError
    assert stored(face) == []
    assert ran == [("rollback", 0)]
    assert told.outcomes() == ["rolled back"]


@some
async def test_a_failing_rollback_is_a_note(face, told):
    """R1: where ROLLBACK fails too, the caller sees the body's error with a note, and the connection is not pooled."""
    discarded = []
    event.listen(face.pool, "invalidate", lambda *args: discarded.append(1))
    event.listen(face.sync_engine, "rollback", _fail)
    with pytest.raises(ZeroDivisionError) as caught:
        async with face.unit() as session:
            session.add(User(name="ada"))
            await session.flush()
            raise ZeroDivisionError

    event.remove(face.sync_engine, "rollback", _fail)
    assert "ending the unit failed as well (RuntimeError: on purpose)" in caught.value.__notes__[0]
    assert discarded == [1]
    assert face.out() == 0
    assert stored(face) == []
    assert told.outcomes() == ["rolled back"]


async def test_a_connection_lost_in_the_body(face, told):
    """R1: when the server ends the connection the unit is rolled back, and the next one works."""
    if face.dialect == "sqlite":
        pytest.skip("SQLite has no server")
    with pytest.raises(sa.exc.DBAPIError):
        async with face.unit() as session:
            session.add(User(name="ada"))
            await session.flush()
            await _kill(face, session)
            await session.execute(sa.select(User))

    async with face.unit() as session:
        session.add(User(name="bob"))
    assert stored(face) == ["bob"]
    assert told.outcomes() == ["rolled back", "committed"]
    assert face.out() == 0


async def _kill(face, session):
    if face.dialect == "postgresql":
        backend = await session.scalar(sa.text("SELECT pg_backend_pid()"))
        outside(face, f"SELECT pg_terminate_backend({backend}, 5000)")
    else:
        outside(face, f"KILL {await session.scalar(sa.text('SELECT CONNECTION_ID()'))}")


@pytest.mark.dialects("postgresql", "mysql")
@pytest.mark.parametrize("way", ["a unit's", "SQLAlchemy's", "for another reason"])
async def test_a_connection_lost_in_a_savepoint_and_swallowed(face, told, way):
    """R7: what was lost with its connection is not passed over by catching the error, whoever made the savepoint: RollbackOnly has the
    loss as its cause, not SQLAlchemy's `PendingRollbackError`.
    """
    with pytest.raises(RollbackOnly) as caught:
        async with face.unit() as session:
            session.add(User(name="ada"))
            await session.flush()
            block = session.begin_nested() if way == "SQLAlchemy's" else face.unit(propagation="nested")
            with suppress(sa.exc.DBAPIError, KeyError):
                async with block:
                    await _kill(face, session)
                    if way == "for another reason":
                        raise KeyError  # only ROLLBACK TO SAVEPOINT finds that the connection is lost
                    await session.execute(sa.select(User))

    assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)
    assert stored(face) == []
    assert told.outcomes() == ["rolled back"]
    assert face.out() == 0


async def test_a_swallowed_flush_error_cannot_commit(face, told):
    """R7: a unit left normally after a failed flush rolls back and raises with the original line; the next one works."""
    with pytest.raises(RollbackOnly) as caught:
        async with face.unit(name="import") as session:
            session.add(User(name="ada"))
            await session.flush()
            session.add(User(name="ada"))
            with suppress(sa.exc.IntegrityError):
                failed = line(1)
                await session.flush()

    async with face.unit() as session:
        session.add(User(name="bob"))
    assert f"IntegrityError at {failed} was caught, not undone" in str(caught.value)
    assert "'import'" in str(caught.value)
    assert str(caught.value).endswith("[rollback-only]")
    assert isinstance(caught.value.__cause__, sa.exc.IntegrityError)
    assert stored(face) == ["bob"]
    assert told.outcomes() == ["rolled back", "committed"]


@some
async def test_a_swallowed_failure_of_a_joined_unit_cannot_commit(face):
    """R7: half the work of a joined function is never saved by catching its error."""

    async def give(session, name):
        session.add(User(name=name))
        await session.flush()
        raise ZeroDivisionError(name)

    failed = line(-2)
    give = face.decorated(give)
    with pytest.raises(RollbackOnly, match=f"ZeroDivisionError at {failed} was caught"):
        async with face.unit() as session:
            session.add(User(name="ada"))
            with suppress(ZeroDivisionError):
                await give(name="bob")

    assert stored(face) == []
    assert face.out() == 0


@pytest.mark.parametrize("heal", ["rollback", "begin_nested", "nested unit"])
async def test_an_undone_failure_may_be_forgotten(face, told, heal):
    """R7: a failure that was undone, by rollback() or in a savepoint, does not keep the unit from committing."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.commit()
        block = {"rollback": _Nothing, "begin_nested": session.begin_nested, "nested unit": _nested(face)}[heal]
        with suppress(sa.exc.IntegrityError):
            async with block():
                session.add(User(name="ada"))
                await session.flush()
        if heal == "rollback":
            await session.rollback()
        session.add(User(name="bob"))

    assert stored(face) == ["ada", "bob"]
    assert told.outcomes() == ["committed"]


def _nested(face):
    return lambda: face.unit(propagation="nested")


class _Nothing:
    async def __aenter__(self):
        return None

    async def __aexit__(self, *error):
        return None


@some
async def test_a_failure_swallowed_within_a_savepoint(face):
    """R7: a joined function that fails within a savepoint, and is caught within it, keeps that savepoint from being kept."""

    async def fail(session):
        session.add(User(name="bob"))
        await session.flush()
        raise ZeroDivisionError

    fail = face.decorated(fail)
    async with face.unit() as session:
        session.add(User(name="ada"))
        with pytest.raises(RollbackOnly):
            async with face.unit(propagation="nested"):
                with suppress(ZeroDivisionError):
                    await fail()

    assert stored(face) == ["ada"]


@some
async def test_a_failure_swallowed_within_a_savepoint_of_the_users(face):
    """R7: a savepoint that is kept keeps the failure within it, and the unit cannot commit."""

    async def fail(session):
        session.add(User(name="bob"))
        await session.flush()
        raise ZeroDivisionError

    fail = face.decorated(fail)
    with pytest.raises(RollbackOnly):
        async with face.unit() as session:
            async with session.begin_nested():
                with suppress(ZeroDivisionError):
                    await fail()
            session.add(User(name="ada"))

    assert stored(face) == []


@some
@pytest.mark.parametrize("way", ["commit", "begin"])
async def test_a_checkpoint_of_a_unit_that_may_not_commit(face, way):
    """R7: neither commit() nor `with session.begin()` saves what a swallowed failure has left half done."""

    async def fail(session):
        raise ZeroDivisionError

    fail = face.decorated(fail)
    with pytest.raises(RollbackOnly):
        async with face.unit() as session, _begun(session, way):
            session.add(User(name="ada"))
            await session.flush()
            with suppress(ZeroDivisionError):
                await fail()

    assert stored(face) == []
    assert face.out() == 0


@asynccontextmanager
async def _begun(session, way):
    if way == "begin":
        async with _block(session.raw.begin()):
            yield
    else:
        yield
        await session.commit()


@asynccontextmanager
async def _block(raw):
    if hasattr(raw, "__aenter__"):
        async with raw as value:
            yield value
    else:
        with raw as value:
            yield value


@some
async def test_rollback_on_purpose(face, told):
    """R7: after rollback_only() the caller sees the result as if the work had been kept."""
    ran = []

    async def rehearse(session):
        session.add(User(name="ada"))
        face.current.on_commit(ran.append, "commit")
        face.current.on_rollback(ran.append, "rollback")
        face.current.rollback_only("a rehearsal")
        await session.flush()
        return "done"

    result = await face.decorated(rehearse)()

    assert result == "done"
    assert stored(face) == []
    assert ran == ["rollback"]
    assert [(one.outcome.value, one.reason) for one in told] == [("rolled back", "a rehearsal")]


@some
@pytest.mark.parametrize("way", ["commit", "begin"])
async def test_a_rehearsal_cannot_commit(face, way):
    """R7: after rollback_only(), in whatever part of the unit, a checkpoint is refused and stores nothing."""

    async def rehearse(session):
        face.current.rollback_only("a rehearsal")

    rehearse = face.decorated(rehearse)
    with pytest.raises(RollbackOnly, match="a rehearsal") as caught:
        async with face.unit() as session, _begun(session, way):
            session.add(User(name="ada"))
            await rehearse()

    assert "test_endings.py" in str(caught.value)
    assert stored(face) == []


@some
async def test_rollback_only_in_a_savepoint_concerns_it_alone(face):
    """R7: a savepoint can be rolled back on purpose, and the unit around it commits."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        async with face.unit(propagation="nested"):
            session.add(User(name="bob"))
            await session.flush()
            face.current.rollback_only()

    assert stored(face) == ["ada"]


async def test_an_error_after_the_commit_does_not_undo_it(face, told):
    """R8: what raises after COMMIT, such as a listener of SQLAlchemy's, leaves the outcome what it is: committed."""
    ran = []
    with pytest.raises(RuntimeError, match="on purpose") as caught:
        async with face.unit() as session:
            event.listen(getattr(session.raw, "sync_session", session.raw), "after_commit", _fail)
            session.add(User(name="ada"))
            face.db.on_commit(ran.append, "commit")
            face.db.on_rollback(ran.append, "rollback")

    assert caught.value.__notes__ == ["tenure: this was raised after the COMMIT, which stands."]
    assert stored(face) == ["ada"]
    assert told.outcomes() == ["committed"]
    assert ran == ["commit"]
    assert face.out() == 0


@some
@pytest.mark.parametrize("listened", ["after_transaction_end", "after_flush_postexec", "before_commit", "after_rollback"])
async def test_listeners_that_raise(face, told, listened):
    """R1: a listener of SQLAlchemy's that raises in the ending leaves no connection out, and an outcome that is true."""
    with pytest.raises((RuntimeError, sa.exc.ResourceClosedError)):
        async with face.unit() as session:
            event.listen(getattr(session.raw, "sync_session", session.raw), listened, _fail)
            session.add(User(name="ada"))
            if listened == "after_rollback":
                face.current.rollback_only()

    kept = stored(face) == ["ada"]
    assert told.outcomes() == ["committed" if kept else "rolled back"]
    assert face.out() == 0


@some
async def test_an_error_in_closing_is_only_reported(face, told):
    """R1: what fails while a committed session is let go of changes nothing for the caller, and is told."""
    async with face.unit() as session:
        event.listen(getattr(session.raw, "sync_session", session.raw), "persistent_to_detached", _fail)
        ada = User(name="ada")
        session.add(ada)

    assert stored(face) == ["ada"]
    assert told.outcomes() == ["committed"]
    assert [str(one.error) for one in told.of(events.EndTroubled)] == ["on purpose"]
    assert face.out() == 0


async def test_reads_end_as_read_only(face, told):
    """R51: the outcome of a unit that wrote nothing is "read only", whatever it read and however."""
    async with face.unit() as session:
        await session.execute(sa.select(User))
    async with face.unit(readonly=True) as session:
        await session.execute(sa.text("SELECT 1"))
    async with face.unit():
        pass

    assert told.outcomes() == ["read only"] * 3


@some
async def test_a_checkpoint_counts(face, told):
    """R6: a unit whose checkpoint stored something is committed, although nothing is left to do at its end."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.commit()

    assert told.outcomes() == ["committed"]


@some
async def test_one_block_many_times(face, told):
    """R1: one `db.unit()` object can be entered again, within itself too: each entry is a unit."""
    block = face.unit()
    async with block as outer:
        outer.add(User(name="ada"))
        async with block as inner:
            assert inner.raw is outer.raw
    async with block as again:
        again.add(User(name="bob"))

    assert again.raw is not outer.raw
    assert stored(face) == ["ada", "bob"]
    assert told.outcomes() == ["committed", "committed"]


@some
async def test_one_block_in_many_workers(make_face):
    """R1: workers that share one `db.unit()` object each end their own unit."""
    face = make_face(pool_size=4, max_overflow=0)
    block = face.unit(propagation="new")
    barrier = face.barrier(4)

    async def work(number):
        for turn in range(5):
            async with block as session:
                if number % 2 and face.dialect != "sqlite":  # SQLite has one writer at a time
                    session.add(User(name=f"{number}.{turn}"))
                    await session.flush()
                await barrier.wait()
                assert face.session.raw is session.raw

    await face.spawn(*[lambda number=number: work(number) for number in range(4)])

    assert len(stored(face)) == (0 if face.dialect == "sqlite" else 10)
    assert face.out() == 0


@pytest.mark.faces("sync")
def test_an_exit_stack_ends_its_units(face):
    """R1: units in an ExitStack end in the order of the stack, at the user's line."""
    with ExitStack() as stack:
        opened = line(1)
        session = stack.enter_context(face.db.unit())
        site = face.current.site
        session.add(User(name="ada"))
        inner = stack.enter_context(face.db.unit(propagation="new"))
        assert face.db.session is inner

    assert f"{site[0].co_filename.rpartition('/')[2]}:{site[1]}" == opened
    assert stored(face) == ["ada"]


@pytest.mark.faces("sync")
@pytest.mark.parametrize("end", ["next", "close", "throw", "drop"])
def test_a_generator_around_a_unit(face, told, end):
    """R1: a generator that holds a unit, as fixtures and dependencies do, ends it however the generator ends."""

    def get_session():
        with face.db.unit() as session:
            yield session

    generator = get_session()
    next(generator).add(User(name="ada"))
    if end == "next":
        assert next(generator, None) is None
    elif end == "close":
        generator.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            generator.throw(KeyError)
    del generator
    gc.collect()

    assert stored(face) == (["ada"] if end == "next" else [])
    assert told.outcomes() == ["committed" if end == "next" else "rolled back"]
    with pytest.raises(NoUnit):
        face.current  # noqa: B018


@pytest.mark.faces("async")
async def test_a_unit_left_in_another_task(face, told):
    """R1: a unit may be left in another task and context than it was entered in, as fixtures of test runners do."""
    block, context = face.db.unit(), contextvars.copy_context()
    session = await asyncio.create_task(block.__aenter__(), context=context)
    context.run(session.add, User(name="ada"))
    await asyncio.create_task(session.flush(), context=context)
    await asyncio.create_task(block.__aexit__(None, None, None))

    assert stored(face) == ["ada"]
    assert told.outcomes() == ["committed"]


@pytest.mark.drivers("sqlite")
def test_a_block_shared_by_generators(make_face, told):
    """R1: generators that share one block, each entered in one context and left in another, as in a framework's pool of threads,
    end their own units only.
    """
    face = make_face()

    def dependency(name):
        with face.db.unit as session:
            session.add(User(name=name))
            yield

    first, second, third = (dependency(name) for name in ("ada", "bob", "cyd"))
    for one in (first, second, third):
        contextvars.copy_context().run(next, one)
    with pytest.raises(RuntimeError, match="on purpose"):
        contextvars.copy_context().run(first.throw, RuntimeError("on purpose"))
    for one in (second, third):
        contextvars.copy_context().run(next, one, None)

    assert told.outcomes() == ["rolled back", "committed", "committed"]
    assert stored(face) == ["bob", "cyd"]


@pytest.mark.drivers("sqlite")
def test_a_shared_block_left_by_nobody_known(make_face, told):
    """R1: where it cannot be told which of several entries is left, none is ended in another's place."""
    face = make_face()
    stacks = [(contextvars.copy_context(), ExitStack()) for _ in "ab"]
    for context, stack in stacks:
        context.run(stack.enter_context, face.db.unit)
    with pytest.raises(WrongBlock, match=r"left at test_endings\.py:\d+ was entered elsewhere, and 2 entries of it are open"):
        contextvars.copy_context().run(stacks[0][1].close)
    assert told.outcomes() == []

    stacks[1][0].run(stacks[1][1].close)  # in its own context it is known
    contextvars.copy_context().run(face.db.unit.__exit__, None, None, None)  # and this is the only one left
    assert told.outcomes() == ["read only", "read only"]


@some
async def test_units_left_out_of_order(face, told):
    """R1: when an outer unit is left before the one within it, both end, and nothing is current afterwards."""

    async def work():
        outer, inner = face.unit(), face.unit(propagation="new")
        first = await outer.__aenter__()
        await first.scalar(sa.select(User))
        second = await inner.__aenter__()
        second.add(User(name="bob"))
        await outer.__aexit__(None, None, None)
        await inner.__aexit__(None, None, None)
        with pytest.raises((NoUnit, UnitEnded)):
            face.current  # noqa: B018

    await face.spawn(work)

    assert told.outcomes() == ["read only", "committed"]
    assert stored(face) == ["bob"]


@some
async def test_a_session_that_cannot_be_made(make_face, told):
    """R1: when the session itself cannot be made, no unit stays current."""
    face = make_face(session_options={"info": 5})
    with pytest.raises(TypeError):
        async with face.unit() as session:
            await session.scalar(sa.select(User))
    with pytest.raises(NoUnit):
        face.current  # noqa: B018


@some
async def test_closing_the_session_by_hand(face):
    """R1: close() in the unit's own code undoes what is not committed and lets go of the connection; the unit goes on."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.flush()
        await session.close()
        assert face.out() == 0
        session.add(User(name="bob"))

    assert stored(face) == ["bob"]


@some
async def test_an_explicit_transaction(face):
    """R6: `with session.begin()` in the unit's own code is a checkpoint, and the unit goes on."""
    async with face.unit() as session:
        async with _block(session.raw.begin()):
            session.add(User(name="ada"))
        assert stored(face) == ["ada"]
        with suppress(ZeroDivisionError):
            async with _block(session.raw.begin()):
                session.add(User(name="bob"))
                raise ZeroDivisionError
        session.add(User(name="eve"))

    assert stored(face) == ["ada", "eve"]
    assert face.out() == 0


@pytest.mark.drivers("sqlite", "aiosqlite")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
async def test_a_failed_close_is_that_units_own(face, told, monkeypatch, error):
    """R1: when closing one unit fails or is interrupted, those that follow neither report it again nor raise it."""
    close = UnitSession.close

    def failing(session):
        close(session)
        raise error("closing")

    with monkeypatch.context() as patched:
        patched.setattr(UnitSession, "close", failing)
        with suppress(KeyboardInterrupt):
            async with face.unit() as session:
                await session.scalars(sa.select(User))
    async with face.unit() as session:
        await session.scalars(sa.select(User))

    assert len([one for one in told if isinstance(one, events.EndTroubled)]) == (error is RuntimeError)
    assert face.out() == 0


@pytest.mark.drivers("sqlite")
async def test_whether_a_session_is_clean(face):
    """R1: SQLAlchemy's private `_is_clean`, by which a unit of reads ends at once, knows what is new, changed and deleted."""
    async with face.unit() as session:
        session.add_all([User(name="ada"), User(name="bob")])
        assert not session.raw._is_clean()
    async with face.unit() as session:
        ada, bob = await session.scalars(sa.select(User).order_by(User.name))
        assert session.raw._is_clean()
        ada.name = "eve"
        assert not session.raw._is_clean()
        await session.flush()
        assert session.raw._is_clean()
        await session.delete(bob)
        assert not session.raw._is_clean()


@pytest.mark.drivers("psycopg", "asyncpg")
@pytest.mark.parametrize("detached", [False, True])
async def test_a_commit_is_known_to_be_sent(face, detached):
    """R4: the session knows that a COMMIT was on its way, also on a connection that was detached from the pool."""
    seen = []

    def prepare(session):
        session.add(User(name="ada"))
        session.flush()
        if detached:
            session.connection().detach()
        event.listen(session, "after_commit", lambda session: seen.append(session.commit_sent()))
        seen.append(session.commit_sent())

    async with face.unit() as session:
        await session.run_sync(prepare)

    assert seen == [False, True]
    assert stored(face) == ["ada"]
