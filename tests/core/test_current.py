import asyncio
import contextvars
import gc
import threading

import greenlet
import pytest
import sqlalchemy as sa

from tenure.exceptions import NoUnit, UnitEnded

from support.models import User
from support.probe import line, stored

one = pytest.mark.drivers("sqlite", "aiosqlite")
some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")


@some
async def test_the_current_unit_is_found_below_it(face):
    """R4: `db.session` and `db.current` give the innermost unit, in whatever is called below it, and then the outer one."""

    def below():
        return face.db.session, face.db.current

    async with face.unit() as outer:
        assert below() == (outer.raw, face.current)
        async with face.unit(propagation="new", name="inner") as inner:
            assert below()[0] is inner.raw
            assert face.current.name == "inner"
            async with face.unit(propagation="nested", name="nested"):
                assert below()[0] is inner.raw
                assert face.current.name == "nested"
        assert below()[0] is outer.raw


async def test_it_is_found_nowhere_else(face):
    """R4: without a unit `db.session`, `db.current` and hooks raise at the user's line, and never open one."""
    for ask in (lambda: face.db.session, lambda: face.db.current, lambda: face.db.on_commit(print)):
        with pytest.raises(NoUnit) as caught:
            ask()
        assert str(caught.value).startswith(f"no unit of 'main' is open in {_worker(face)} ({line(-3)}).")

    assert "Decorate the function with @db.unit, or open one:" in str(caught.value)
    assert f"{'async ' if face.is_async else ''}with db.unit() as session. " in str(caught.value)
    assert isinstance(caught.value, LookupError)
    assert face.out() == 0


def _worker(face):
    return f"task {asyncio.current_task().get_name()!r}" if face.is_async else f"thread {threading.current_thread().name!r}"


@some
async def test_a_worker_without_a_unit(face):
    """R4: a bare thread or task has no unit though one is open elsewhere; with `db.unit` around its function it has one."""

    async def send_mail(session=None):
        return face.session.raw

    async def fetch_a():
        with pytest.raises(NoUnit, match="'fetch_a'"):
            await send_mail()
        return await face.decorated(send_mail)()

    async with face.unit() as session:
        (own,) = await face.spawn(fetch_a, inherit=False)

    assert own is not session.raw


@one
async def test_two_databases(make_face):
    """R4: each database has its own current unit."""
    here, there = make_face(name="here"), make_face(name="there")
    async with here.unit() as session:
        with pytest.raises(NoUnit, match="no unit of 'there'"):
            there.current  # noqa: B018
        async with there.unit() as other:
            assert (here.session.raw, there.session.raw) == (session.raw, other.raw)


@one
async def test_nothing_is_current_after_an_end(face):
    """R4: after a unit has ended nothing is current, however it ended."""
    for error in (None, KeyError(), BaseException()):
        with pytest.raises(type(error)) if error else _nothing():
            async with face.unit():
                if error:
                    raise error
        with pytest.raises(NoUnit):
            face.current  # noqa: B018


class _nothing:  # noqa: N801 - as nullcontext
    def __enter__(self):
        return None

    def __exit__(self, *error):
        return None


@pytest.mark.drivers("aiosqlite", "asyncpg")
async def test_a_task_that_outlives_its_unit(face):
    """R4: a task that was begun in a unit has none when that has ended, and can open one."""
    ended = asyncio.Event()

    async def background():
        await ended.wait()
        with pytest.raises((UnitEnded, NoUnit)):
            face.session  # noqa: B018
        async with face.unit() as session:
            session.add(User(name="background"))

    async with face.unit() as session:
        task = asyncio.create_task(background())
        await session.scalar(sa.select(User))
    ended.set()
    await task

    assert stored(face) == ["background"]


@one
async def test_a_kept_context_keeps_no_unit_alive(face):
    """R4: a context that is kept, as callbacks and idle threads do, keeps neither the unit nor its session alive."""
    async with face.unit() as session:
        await session.scalar(sa.select(User))
        context = contextvars.copy_context()
        door = getattr(session.raw, "sync_session", session.raw)
        ref = greenlet_free_ref(door)
        del door, session
    gc.collect()

    assert ref() is None
    with pytest.raises(NoUnit):
        context.run(lambda: face.db.current)


def greenlet_free_ref(value):
    import weakref

    return weakref.ref(value)


@pytest.mark.drivers("sqlite")
def test_each_greenlet_has_its_own_unit(face):
    """R29: a greenlet starts without a unit and opens its own, though another one's is open in the same thread."""
    names = []

    def work(name):
        with pytest.raises(NoUnit):
            face.db.current  # noqa: B018
        with face.db.unit(name=name) as session:
            session.scalar(sa.select(User))
            greenlet.getcurrent().parent.switch()
            names.append((face.db.current.name, face.db.session is session))

    workers = [greenlet.greenlet(work) for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.switch(f"worker {number}")
    for worker in workers:
        worker.switch()

    assert names == [("worker 0", True), ("worker 1", True), ("worker 2", True)]
    assert face.out() == 0


@one
async def test_the_name_of_a_unit(face):
    """R51: a unit is called as it was told to, else after the decorated function, or the function around the block."""

    async def rename_all(session):
        return face.current.name

    async with face.unit():
        assert face.current.name == "test_the_name_of_a_unit"
        async with face.unit(name="POST /orders"):
            assert face.current.name == "POST /orders"
    names = [await face.decorated(rename_all)(), await face.decorated(rename_all, name="rename")()]

    assert names == ["rename_all", "rename"]


@pytest.mark.drivers("sqlite")
def test_the_name_of_a_unit_in_a_script(face):
    """R51: a block outside any function is called after its file."""
    names = {"db": face.db}
    exec(compile("with db.unit():\n    name = db.current.name", "/srv/report.py", "exec"), names)

    assert names["name"] == "report.py"
