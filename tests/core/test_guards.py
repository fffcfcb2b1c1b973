import asyncio
import contextvars
import re
import threading
from contextlib import suppress

import greenlet
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tenure.exceptions import ConcurrentUse, ForeignContext, TenureError, UnitEnded

from support.models import User
from support.probe import line, stored

one = pytest.mark.drivers("sqlite", "aiosqlite")
some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")


# -------------------------------------------------------------------------------------- concurrent use


class Paused:
    """A statement that waits on its way to the driver, so that another worker can come in between."""

    def __init__(self, face):
        self.face = face
        self.entered, self.go = threading.Event(), threading.Event()
        event.listen(face.sync_engine, "before_cursor_execute", self)

    def __call__(self, connection, cursor, statement, *more):
        if "42" not in statement or self.entered.is_set():
            return
        self.entered.set()
        if self.face.is_async:
            sa.util.await_only(self._wait())
        else:
            assert self.go.wait(10)

    async def _wait(self):
        while not self.go.is_set():
            await asyncio.sleep(0)

    async def inside(self):
        """Return when the statement is on its way."""
        if self.face.is_async:
            while not self.entered.is_set():
                await asyncio.sleep(0)
        else:
            assert self.entered.wait(10)


SLOW = sa.select(sa.literal_column("42"))


async def overlap(face, use):
    """Have `use(session)` called by a worker while another is within a statement; what each of both came to."""
    paused, lines = Paused(face), {}

    async def fetch_a():
        lines["a"] = line(1)
        return await session.scalar(SLOW)

    async def fetch_b():
        await paused.inside()
        try:
            lines["b"] = line(1)
            return await use(session)
        finally:
            paused.go.set()

    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.flush()
        results = await face.spawn(fetch_a, fetch_b, inherit=True, return_exceptions=True)
        assert await session.scalar(sa.select(User.name)) == "ada"
    return results, lines


async def test_overlapping_use(face):
    """R44: a second worker that comes while one is in a call raises with both lines, and the first is unharmed."""
    (first, second), lines = await overlap(face, USES["execute"])

    kind = "task" if face.is_async else "thread"
    text = re.sub(r"since \d+ ms", "since 3 ms", str(second))
    assert first == 42
    assert type(second) is ConcurrentUse
    assert text == (
        f"{kind} 'fetch_b' began execute() at {lines['b']} while {kind} 'fetch_a'"
        f" is still in scalar() ({lines['a']}, since 3 ms). One session is one conversation: give each its own unit,"
        f' {"async " if face.is_async else ""}with db.unit(propagation="new"). [concurrent-use]'
    )
    assert stored(face) == ["ada"]


USES = {
    "execute": lambda session: session.execute(sa.select(User)),
    "scalar": lambda session: session.scalar(sa.select(User)),
    "scalars": lambda session: session.scalars(sa.select(User)),
    "get": lambda session: session.get(User, 99),
    "get_one": lambda session: session.get_one(User, 99),
    "merge": lambda session: session.merge(User(id=99, name="bob")),
    "flush": lambda session: session.flush(),
    "commit": lambda session: session.commit(),
    "rollback": lambda session: session.rollback(),
    "connection": lambda session: session.connection(),
    "begin_nested": lambda session: session.begin_nested().__aenter__(),
    "invalidate": lambda session: session.invalidate(),
    "query": lambda session: session.run_sync(lambda raw: raw.query(User).all()),
    "bulk": lambda session: session.run_sync(lambda raw: raw.bulk_insert_mappings(User, [{"name": "bob"}])),
    "close": lambda session: session.close(),
}


@one
@pytest.mark.parametrize("use", USES)
async def test_every_way_into_a_session(face, use):
    """R44: each way into a session is checked, those that end its transaction too."""
    (first, second), _ = await overlap(face, USES[use])

    assert first == 42
    assert type(second) is ConcurrentUse
    assert stored(face) == ["ada"]
    assert face.out() == 0


@some
async def test_use_in_turn(face):
    """R44: workers that use a session one after the other raise nothing."""
    turn = threading.Lock() if not face.is_async else asyncio.Lock()

    async def add(name):
        if face.is_async:
            async with turn:
                session.add(User(name=name))
                await session.flush()
        else:
            with turn:
                session.add(User(name=name))
                await session.flush()

    async with face.unit() as session:
        await face.spawn(*[lambda name=f"user {number}": add(name) for number in range(8)], inherit=True)

    assert len(stored(face)) == 8


@pytest.mark.drivers("aiosqlite", "asyncpg")
async def test_gather_over_one_session(face):
    """R44: `asyncio.gather()` over one session is overlapping use, and the session works on afterwards."""
    async with face.unit() as session:
        await session.execute(sa.text("SELECT 1"))
        results = await asyncio.gather(*[session.scalar(sa.text("SELECT 1")) for _ in range(3)], return_exceptions=True)
        assert await session.scalar(sa.text("SELECT 1")) == 1

    assert sorted(type(one).__name__ for one in results) == ["ConcurrentUse", "ConcurrentUse", "int"]


@pytest.mark.drivers("aiosqlite")
async def test_the_line_of_a_bare_coroutine(face):
    """R50: a task that runs no code of the user's has the line at which it is waited for, not that of `asyncio.run()`."""

    async def gathered(session):
        return line(), await asyncio.gather(*[session.scalar(SLOW) for _ in range(2)], return_exceptions=True)

    async def grouped(session):
        opened = line(2)
        with pytest.raises(ExceptionGroup) as failed:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(session.scalar(SLOW))
        return opened, failed.value.exceptions

    async with face.unit() as session:
        opened, (value, error) = await gathered(session.raw)
        assert value == 42
        assert str(error).count(opened) == 2
    with suppress(ConcurrentUse):  # by the COMMIT, where the cancelled task is still in its call
        async with face.unit() as session:
            opened, (error,) = await grouped(session.raw)
    assert str(error).count(opened) == 2
    with pytest.raises(UnitEnded, match=r"was used again in task 'late'\. Later work"):
        await asyncio.create_task(session.raw.scalar(SLOW), name="late")


@pytest.mark.drivers("aiosqlite")
async def test_the_end_of_a_bare_coroutine(face):
    """R45: a decorated function that is itself a task has ended where it is written, not at `asyncio.run()`."""

    @face.db.unit
    async def job(session):
        kept.append(session)
        await session.scalar(SLOW)

    kept, written = [], line(-5)
    await asyncio.gather(job())

    with pytest.raises(UnitEnded, match=re.escape(f"({written}) ended, read only, at {written}, ")):
        await kept[0].scalar(SLOW)


@pytest.mark.drivers("sqlite")
def test_greenlets_in_one_session(face):
    """R44: two greenlets of one thread in one session overlap too."""
    seen = []

    def switch(*args):
        if "42" in args[2] and greenlet.getcurrent() is first:
            greenlet.getcurrent().parent.switch()

    event.listen(face.sync_engine, "before_cursor_execute", switch)

    def fetch(wanted):
        try:
            seen.append(session.scalar(wanted))
        except TenureError as error:
            seen.append(type(error))

    with face.db.unit() as session:
        first, second = greenlet.greenlet(fetch), greenlet.greenlet(fetch)
        first.gr_context, second.gr_context = contextvars.copy_context(), contextvars.copy_context()
        first.switch(SLOW)
        second.switch(SLOW)
        first.switch()

    assert seen == [ConcurrentUse, 42]
    assert face.out() == 0


@one
async def test_a_unit_that_ends_while_a_worker_is_in_its_session(small):
    """R44: when the unit ends meanwhile, the end says so, nothing is stored, and the connection comes back when the worker leaves."""
    face = small()
    paused = Paused(face)

    async def linger():
        with suppress(TenureError, sa.exc.SQLAlchemyError):
            await session.scalar(SLOW)

    async def end():
        await paused.inside()
        try:
            await block.__aexit__(None, None, None)
        finally:
            paused.go.set()

    async def case():
        nonlocal block, session
        block = face.unit()
        session = await block.__aenter__()
        session.add(User(name="ada"))
        await session.flush()
        return await face.spawn(linger, end, inherit=True, return_exceptions=True)

    block = session = None
    ((_, ended),) = await face.spawn(case)  # in a context of its own, for the block is left in yet another one

    assert type(ended) is ConcurrentUse
    assert face.out() == 0
    assert stored(face) == []


# ----------------------------------------------------------------------------------- use after the end


async def test_use_after_the_end(face):
    """R45: a session that was kept raises at the line that uses it, with the lines of its opening and its end; 0 are out."""
    opened = line(1)
    async with face.unit(name="GET /users/7") as session:
        session.add(User(name="ada"))
    with pytest.raises(UnitEnded) as caught:
        await session.scalar(sa.select(User))
    used = line(-1)

    text = re.sub(r"\d\.\d s", "0.8 s", str(caught.value))
    assert text == (
        f"the session of 'GET /users/7' ({opened}) ended, committed, at {opened}, 0.8 s ago, and was used again at {used}."
        " Later work needs its own unit: db.unit(function). [unit-ended]"
    )
    assert face.out() == 0


LATE = {
    **{name: use for name, use in USES.items() if name not in ("close", "invalidate", "rollback")},
    "add": lambda session: session.run_sync(lambda raw: raw.add(User(name="bob"))),
    "add_all": lambda session: session.run_sync(lambda raw: raw.add_all([User(name="bob")])),
    "delete": lambda session: session.delete(User(id=1, name="bob")),
    "refresh": lambda session: session.refresh(User(id=1, name="bob")),
    "begin": lambda session: session.run_sync(lambda raw: raw.begin()),
}


@one
@pytest.mark.parametrize("outcome", ["committed", "rolled back", "unused"])
async def test_every_late_use(face, outcome):
    """R45: whatever is tried on an ended session raises UnitEnded, nothing is dropped in silence, and no connection is taken."""
    async with face.unit() as session:
        if outcome != "unused":
            await session.scalar(sa.select(User))
        if outcome == "rolled back":
            face.current.rollback_only()
    wrong = {}
    for name, use in LATE.items():
        try:
            await use(session)
        except UnitEnded as error:
            if "test_guards.py" not in str(error).partition("used again at")[2]:
                wrong[name] = str(error)
        except Exception as error:
            wrong[name] = repr(error)
        else:
            wrong[name] = "went through"

    assert wrong == {}
    assert face.out() == 0


@one
async def test_closing_after_the_end(face):
    """R45: close(), rollback() and expunge_all() of an ended session, as in a `finally`, do no harm."""
    async with face.unit() as session:
        session.add(User(name="ada"))
    await session.close()
    with suppress(UnitEnded):
        await session.rollback()
    session.expunge_all()

    assert stored(face) == ["ada"]
    assert face.out() == 0


@pytest.mark.drivers("aiosqlite", "asyncpg")
async def test_a_background_task_with_the_units_session(face):
    """R45: a task that is still at work when the unit has ended gets UnitEnded at its own line."""
    ended = asyncio.Event()

    async def send_mail(session):
        await ended.wait()
        await session.raw.scalar(sa.select(User))

    async with face.unit() as session:
        task = asyncio.create_task(send_mail(session))
        await session.scalar(sa.select(User))
    ended.set()
    with pytest.raises(UnitEnded, match=f"used again at {re.escape(line(-6))}"):
        await task


@pytest.mark.drivers("sqlite")
def test_a_session_taken_out_of_a_generator(face):
    """R45: `next(get_db())` drops the generator, and with it the unit: the session it gave is over."""

    def get_db():
        with face.db.unit() as session:
            yield session

    session = next(get_db())
    with pytest.raises(UnitEnded):
        session.scalar(sa.select(User))

    assert face.out() == 0


@one
@pytest.mark.parametrize("used", [False, True])
async def test_a_session_taken_out_of_a_block(face, used):
    """R45: a block that is entered by hand and dropped takes its unit with it, used or not."""

    async def case():
        session = await _used(face) if used else await face.unit().__aenter__()
        if face.is_async:
            await asyncio.sleep(0.01)  # the connection goes home in a task of its own
        with pytest.raises(UnitEnded):
            await session.scalar(sa.select(User))

    await face.spawn(case)

    assert face.out() == 0
    assert stored(face) == []


async def _used(face):
    block = face.unit()
    session = await block.__aenter__()
    session.add(User(name="ada"))
    await session.flush()
    return session


# ------------------------------------------------------------------------------------- foreign context


async def test_a_bare_worker(face):
    """R46: a thread or task that does not descend from the unit's context is refused at its line, with the unit's."""
    used = None

    async def fetch_a():
        nonlocal used
        used = line(1)
        return await session.scalar(sa.select(User))

    opened = line(1)
    async with face.unit(name="GET /report") as session:
        await session.scalar(sa.select(User))
        with pytest.raises(ForeignContext) as caught:
            await face.spawn(fetch_a, inherit=False)
        assert await session.scalar(sa.select(sa.literal(1))) == 1

    assert str(caught.value) == (
        f"{'task' if face.is_async else 'thread'} 'fetch_a' ({used}) has no part in unit 'GET /report' ({opened}). Start it with"
        " db.unit(function), or hand over with asyncio.to_thread or contextvars.copy_context().run (loop.run_in_executor copies no"
        " context). [foreign-context]"
    )


@one
async def test_a_worker_with_a_unit_of_its_own(face):
    """R46: a worker that has a unit of its own has no part in another one's either."""

    async def fetch_a():
        async with face.unit() as own:
            await own.scalar(sa.select(User))
            with pytest.raises(ForeignContext):
                await session.scalar(sa.select(User))

    async with face.unit() as session:
        await face.spawn(fetch_a, inherit=False)


@one
async def test_an_outer_units_session_within_an_inner_one(face):
    """R46: a unit descends from those around it: their sessions can be used in it."""
    async with face.unit() as outer, face.unit(propagation="new"), face.unit(propagation="new") as inner:
        assert await outer.scalar(sa.select(sa.literal(1))) == 1
        assert await inner.scalar(sa.select(sa.literal(1))) == 1


@pytest.mark.drivers("sqlite", "psycopg")
def test_asyncio_and_threads(face):
    """R46: `asyncio.to_thread` hands the context over, and `loop.run_in_executor` does not."""

    def read():
        return session.scalar(sa.select(sa.literal(1)))

    async def main():
        assert await asyncio.to_thread(read) == 1
        with pytest.raises(ForeignContext, match="run_in_executor copies no context"):
            await asyncio.get_running_loop().run_in_executor(None, read)

    with face.db.unit() as session:
        asyncio.run(main())


# -------------------------------------------------------------------------------------- the guards' modes


@one
@pytest.mark.parametrize("mode", ["off", "warn", "raise"])
async def test_concurrent_use_can_be_switched(make_face, caplog, mode):
    """R49: the guard of overlapping use can be off, warn once for each, or raise."""
    face = make_face(guards={"concurrent-use": mode})
    (first, second), _ = await overlap(face, lambda session: session.run_sync(lambda raw: raw.flush()))

    assert first == 42
    assert (type(second) is ConcurrentUse) == (mode == "raise")
    assert caplog.text.count("[concurrent-use]") == (mode == "warn")
    assert face.out() == 0


@one
@pytest.mark.parametrize("mode", ["off", "warn", "raise"])
async def test_foreign_context_can_be_switched(make_face, caplog, mode):
    """R49: the guard of foreign contexts can be off, warn, or raise."""
    face = make_face(guards={"foreign-context": mode})

    async def fetch_a():
        return await session.scalar(sa.select(sa.literal(1)))

    async with face.unit() as session:
        (result,) = await face.spawn(fetch_a, inherit=False, return_exceptions=True)

    assert (type(result) is ForeignContext) == (mode == "raise")
    assert result == 1 or mode == "raise"
    assert ("[foreign-context]" in caplog.text) == (mode == "warn")


@one
@pytest.mark.parametrize("mode", ["off", "warn", "raise"])
async def test_use_after_the_end_can_be_switched(make_face, caplog, mode):
    """R49: with its guard off, an ended session is still closed for good: SQLAlchemy refuses in its own words."""
    face = make_face(guards={"unit-ended": mode})
    async with face.unit() as session:
        await session.scalar(sa.select(User))
    with pytest.raises(UnitEnded if mode == "raise" else sa.exc.InvalidRequestError):
        await session.scalar(sa.select(User))

    assert ("[unit-ended]" in caplog.text) == (mode == "warn")
    assert face.out() == 0


@one
async def test_a_session_that_raised_is_not_locked(face):
    """R44: a call that raises, in SQL, in the driver or before either, leaves the session free for the next one."""
    async with face.unit() as session:
        for bad in (sa.text("no SQL"), sa.select(sa.literal_column("missing")), "no statement"):
            with pytest.raises(Exception):
                await session.execute(bad)
            assert await session.scalar(sa.select(sa.literal(1))) == 1
        with pytest.raises(KeyError):
            await session.run_sync(_fail)
        assert await session.scalar(sa.select(sa.literal(1))) == 1


def _fail(raw):
    raise KeyError
