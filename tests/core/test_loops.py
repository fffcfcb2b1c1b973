"""Event loops, tasks and what is left of them."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

from tenure import AsyncDatabase
from tenure.core.session import UnitSession
from tenure.exceptions import UnitEnded

from support import probe, servers
from support.face import PATIENCE
from support.models import User

LOOP_BOUND = ("asyncpg", "psycopg_async", "aiomysql", "asyncmy", "aiosqlite")
ME = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()", "sqlite": "SELECT 0"}
ALIVE = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE pid IN ({})",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE id IN ({})",
}


@pytest.fixture(params=LOOP_BOUND)
def database(request, tmp_path):
    """``database(**options)`` gives a new `AsyncDatabase` whose loops the test runs itself."""
    if request.config.getoption("--drivers") and request.param not in request.config.getoption("--drivers").split(","):
        pytest.skip("not among --drivers")
    try:
        url = servers.url(request.param, tmp_path)
    except servers.ServerMissingError as error:
        servers.give_up(error)
    servers.clean(request.param)
    return lambda **options: AsyncDatabase(url, **options)


async def backend(db):
    async with db.unit() as session:
        return await session.scalar(text(ME[_dialect(db)]))


def _dialect(db):
    return db.engine.dialect.name


def gone(db, backends):
    """Whether the server has none of *backends* any more, within a moment."""
    if _dialect(db) == "sqlite":
        return True
    url = db.engine.url.set(drivername={"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}[_dialect(db)])
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        with engine.connect() as connection:
            if not connection.scalar(text(ALIVE[_dialect(db)].format(", ".join(map(str, backends))))):
                return True
        time.sleep(0.01)
    return False


def test_one_loop_after_another(database):
    """R28: three calls of `asyncio.run(job())` succeed, and no backend of the first two loops is left."""
    db = database(pool_size=2)

    async def job(name):
        async with db.unit() as session:
            session.add(User(name=name))
        found = await asyncio.gather(*(backend(db) for _ in range(4)))
        return set(found), db.status().capacity

    async def last():
        found = await job("cy")
        assert gone(db, set.union(*(backends for backends, _ in before)))
        async with db.unit() as session:
            names = (await session.scalars(select(User.name).order_by(User.name))).all()
        await db.close()
        return found, names

    before = [asyncio.run(job(name)) for name in ("ada", "bob")]
    (backends, capacity), names = asyncio.run(last())

    assert names == ["ada", "bob", "cy"]
    assert {one for _, one in before} == {capacity}
    assert gone(db, backends)
    assert db.status().in_use == db.status().idle == 0


def test_loops_at_once(database):
    """R28: loops in several threads have a pool each; nobody gets a connection of another loop's, and none is out at the end."""
    db = database(pool_size=2, max_overflow=0)
    meet = threading.Barrier(3)
    found, failed = {}, []

    async def work(name):
        meet.wait(PATIENCE)  # all three loops run
        backends = await asyncio.gather(*(backend(db) for _ in range(20)))
        async with db.unit() as session:
            session.add(User(name=name))
        status = db.status()
        meet.wait(PATIENCE)
        return set(backends), status.capacity

    def loop(name):
        try:
            found[name] = asyncio.run(work(name))
        except BaseException as error:
            failed.append(error)
            meet.abort()

    threads = [threading.Thread(target=loop, args=(name,)) for name in ("ada", "bob", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    sets = [backends for backends, _ in found.values()]
    if _dialect(db) != "sqlite":
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert all(1 <= len(one) <= 2 for one in sets)
    assert [capacity for _, capacity in found.values()] == [6, 6, 6]
    assert gone(db, set.union(*sets))
    assert (db.status().in_use, db.holders()) == (0, [])
    asyncio.run(db.close())


# Python and the driver tell of what the program has not closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_without_its_end(database):
    """R28: the backends of a loop that was closed just so are ended when the next loop comes."""
    db = database()
    loop = asyncio.new_event_loop()
    first = loop.run_until_complete(backend(db))
    loop.close()

    async def next_loop():
        async with db.unit() as session:
            session.add(User(name="ada"))
        number = await backend(db)
        assert gone(db, [first])
        await db.close()
        return number

    second = asyncio.run(next_loop())
    assert first != second or _dialect(db) == "sqlite"
    assert gone(db, [second])
    gc.collect()


def test_close_from_another_loop(database):
    """R28: `close()` ends the connections of all loops, each in its own."""
    db = database()
    ready, over = threading.Event(), threading.Event()
    numbers = []

    async def work():
        numbers.append(await backend(db))
        ready.set()
        await asyncio.to_thread(over.wait, PATIENCE)

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    assert ready.wait(PATIENCE)

    async def close():
        numbers.append(await backend(db))
        await db.close()
        return gone(db, numbers)

    try:
        assert asyncio.run(close())
    finally:
        over.set()
        thread.join()
    assert db.status().idle == 0


def sessions():
    return [one for one in gc.get_objects() if isinstance(one, UnitSession)]


def test_a_server_that_became_read_only(database):
    """R28, R38: a refused write empties the pool of the loop in which it was refused, the first loop's or another's."""
    db = database(pool_size=2)
    if _dialect(db) != "postgresql":
        pytest.skip("provoked by a statement of PostgreSQL's")

    async def two():
        async with db.unit() as session, db.unit(propagation="new") as other:
            for one in (session, other):
                await one.execute(text("UPDATE users SET balance = 0"))
            return {await one.scalar(text(ME["postgresql"])) for one in (session, other)}

    async def work():
        before = await two()
        with pytest.raises(sa.exc.DBAPIError, match="read-only"):
            async with db.unit() as session:
                await session.execute(text("SET TRANSACTION READ ONLY"))
                await session.execute(sa.insert(User).values(name="ada", balance=1))
        return before, await two()

    async def beside():
        results.append(await work())
        thread = threading.Thread(target=lambda: results.append(asyncio.run(work())))
        thread.start()
        await asyncio.to_thread(thread.join)
        await db.close()

    results = []
    asyncio.run(beside())

    assert [len(before & after) for before, after in results] == [0, 0]


@pytest.mark.drivers("asyncpg")
async def test_ten_thousand_tasks_leave_nothing(make_face):
    """R28: 10,000 tasks with a unit each are forgotten: no session, no unit, no entry of any kind."""
    face = make_face(pool_size=5, max_overflow=0)

    async def work(number):
        async with face.unit() as session:
            if number % 100 == 0:  # a statement for each takes too long for a test
                await session.scalar(text("SELECT 1"))
            else:
                session.add(User(name="ada"))
                session.expunge_all()

    async def thousand():
        await asyncio.gather(*(work(number) for number in range(1_000)))
        gc.collect()
        return len(gc.get_objects())

    before = sessions()  # a failed test may keep some
    await thousand()  # what SQLAlchemy and asyncio remember, they do now
    sizes = [await thousand() for _ in range(9)]

    assert max(sizes) - sizes[0] < 1_000
    assert [one for one in sessions() if not any(one is other for other in before)] == []
    assert (face.out(), face.db.holders(), face.db.units.now()) == (0, [], {})


@pytest.mark.faces("async")
async def test_child_tasks_use_their_parents_unit_in_turn(face):
    """R28: a child task may use its parent's unit, one after the other, until that has ended."""
    ended = asyncio.Event()

    async def add(name):
        face.session.add(User(name=name))
        await face.session.flush()

    async def late():
        session = face.session
        await ended.wait()
        with pytest.raises(UnitEnded):
            await session.scalar(select(User.id))

    async with face.unit():
        for name in ("ada", "bob"):
            await asyncio.create_task(add(name))
        task = asyncio.create_task(late())
        await asyncio.sleep(0)
    ended.set()
    await task

    assert probe.stored(face, User.name) == ["ada", "bob"]


@pytest.mark.faces("async")
async def test_task_groups_of_anyio(face):
    """R28: units in anyio's task groups commit each on its own; a scope that is cancelled rolls back what was open in it."""
    import anyio

    async def add(name, *, waits=False):
        async with face.unit() as session:
            session.add(User(name=name))
            await session.flush()
            if waits:
                reached.set()
                await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        for name in ("ada", "bob"):
            group.start_soon(add, name)
    reached = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: add("cy", waits=True))
        await reached.wait()
        group.cancel_scope.cancel()

    assert face.out() == 0
    assert probe.stored(face, User.name) == ["ada", "bob"]


TRIO = """
import sys, trio
from tenure import AsyncDatabase

db = AsyncDatabase(sys.argv[1])

async def main():
    async with db.unit() as session:
        session.add(None)

try:
    trio.run(main)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
try:
    trio.run(db.unit(main))
except Exception as error:
    print(type(error).__name__, db.status().in_use, db.units.now())
"""


def test_trio_is_refused(tmp_path):
    """R28: on trio's loop, which SQLAlchemy does not know, a unit says so at its line, and leaves nothing open."""
    file = tmp_path / "program.py"
    file.write_text(TRIO)
    ran = subprocess.run(
        [sys.executable, str(file), f"sqlite+aiosqlite:///{tmp_path}/app.db"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    first, second = ran.stdout.splitlines()
    assert first.startswith("WrongLoop: an AsyncDatabase was used at program.py:8 in a task of trio's"), ran.stderr
    assert first.endswith("[wrong-loop]")
    assert second == "WrongLoop 0 {}"
