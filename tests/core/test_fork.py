"""Forked children: what they start with, what they may not touch, and that the parent goes on as if there were none."""

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

from tenure.engines.sockets import socket_of
from tenure.exceptions import ForkedUnit, NoUnit

from support import probe, servers
from support.face import PATIENCE
from support.forked import Child
from support.models import User

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
DRIVERS = pytest.mark.drivers("sqlite", "psycopg", "pymysql", "asyncpg", "aiosqlite")
BACKEND = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()", "sqlite": "SELECT 0"}


async def backend(session, face):
    return await session.scalar(text(BACKEND[face.dialect]))


def said(error):
    return f"{type(error).__name__}: {error}"


@DRIVERS
async def test_children_query_while_the_parents_unit_goes_on(face):
    """R30: of a parent with an open unit that has written, 4 children get 240 right answers; its row is stored, by the same backend."""

    async def query():
        answers = []
        for number in range(60):
            async with face.unit() as mine:
                answers.append(await mine.scalar(text(f"SELECT {number}")) == number)
        async with face.unit() as mine:
            answers.append(await backend(mine, face))
        return answers, face.out(), face.db.holders(), face.db.status().acquired

    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.flush()
        before = await backend(session, face)
        children = [Child(face, query) for _ in range(4)]
        found = [child.result() for child in children]
        session.add(User(name="bob"))
        after = await backend(session, face)

    assert before == after
    assert [sum(answers[:60]) for answers, *_ in found] == [60] * 4
    assert [(out, held) for _, out, held, _ in found] == [(0, [])] * 4
    assert all(0 < acquired <= 61 for *_, acquired in found)  # it counts from nothing
    backends = [answers[60] for answers, *_ in found] + [before]
    assert len(set(backends)) == (5 if face.dialect != "sqlite" else 1)
    assert sorted(probe.stored(face, User.name)) == ["ada", "bob"]


@DRIVERS
async def test_the_inherited_unit_is_dead_in_the_child(face):
    """R30: in the child no unit is current; the parent's session, unit and connection raise `ForkedUnit`, which names the processes."""
    parent = os.getpid()

    async def use():
        found = []
        try:
            face.current  # noqa: B018
        except NoUnit:
            found.append("no unit")
        for use in (
            lambda: session.scalar(select(User.id)),
            session.flush,
            session.commit,
            session.rollback,
            lambda: connection.execute(text("SELECT 1")),
        ):
            try:
                result = use()
                if hasattr(result, "__await__"):
                    await result
                found.append("nothing")
            except ForkedUnit as error:
                found.append(str(error))
        for use in (lambda: unit.session, lambda: unit.on_commit(print)):
            try:
                use()
            except ForkedUnit as error:
                found.append(str(error))
        await session.close()  # what is in a finally: says nothing
        return found

    async with face.unit(name="import") as session:
        session.add(User(name="ada"))
        connection = await session.connection()
        await session.flush()
        unit = face.current
        first, *others = Child(face, use).result()
        session.add(User(name="bob"))

    assert first == "no unit"
    assert len(others) == 7
    assert all(f"in process {parent}" in one and one.endswith("[forked-unit]") for one in others), others
    assert "'import' was opened in process" in others[0]
    assert "test_fork.py:" in others[0]
    assert sorted(probe.stored(face, User.name)) == ["ada", "bob"]


@DRIVERS
async def test_a_child_that_leaves_the_block_is_told(face):
    """R30: a child that falls out of its parent's with-block stores nothing, and does not take that for success."""
    results = []

    async def work():
        async with face.unit() as session, face.unit(), face.unit(propagation="nested"):
            session.add(User(name="ada"))
            await session.flush()
            read, write = os.pipe()
            if pid := _fork():
                os.close(write)
                results.append(os.read(read, 4096).decode())
                os.waitpid(pid, 0)
            else:
                results.append(write)

    try:
        await work()
    except BaseException as error:
        if isinstance(results[0], str):
            raise
        os.write(results[0], said(error).encode())
    if results and isinstance(results[0], int):
        os._exit(0)

    assert results[0].startswith("ForkedUnit: ")
    assert probe.stored(face, User.name) == ["ada"]


def _fork():
    import warnings

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return os.fork()


@pytest.mark.drivers("psycopg", "asyncpg", "pymysql")
async def test_an_inherited_cursor_leads_nowhere(face):
    """R30: the driver's own connection is cut off in the child: what it says there does not reach the parent's server."""

    async def use():
        return os.path.samestat(os.fstat(number), Path(os.devnull).stat())

    async with face.unit() as session:
        session.add(User(name="ada"))
        connection = await session.connection()
        sync = getattr(connection, "sync_connection", connection)
        number = socket_of(face.sync_engine)(sync.connection.driver_connection)
        assert Child(face, use).result() is True
        session.add(User(name="bob"))

    assert probe.stored(face, User.name) == ["ada", "bob"]


@DRIVERS
async def test_what_the_pool_and_a_read_keep_stays_the_parents(face):
    """R30: pooled and parked connections, and those of `engine.connect()`, are the parent's own also after the child has used its."""

    async def query():
        async with face.unit() as mine:
            number = await backend(mine, face)
            gc.collect()
            return number, face.pool.checkedin() + face.out()

    async with face.unit() as session:
        pooled = await backend(session, face)
    raw = face.sync_engine.raw_connection() if not face.is_async else None
    try:
        async with face.unit() as session:
            parked = await backend(session, face)  # kept for its next read
            numbers = [Child(face, query).result() for _ in range(2)]
            assert await backend(session, face) == parked
    finally:
        if raw is not None:
            raw.cursor().execute("SELECT 1")
            raw.close()
    async with face.unit() as session:
        assert await backend(session, face) in (pooled, parked)

    if face.dialect != "sqlite":
        assert not {number for number, _ in numbers} & {pooled, parked}


@DRIVERS
async def test_locks_that_other_threads_held(face):
    """R30: a lock of tenure's that another thread held at the fork is free in the child, and no one waits in line there."""

    async def query():
        async with face.unit() as mine:
            await mine.scalar(select(User.id))
        return face.db.status().waiting

    held, free = threading.Event(), threading.Event()
    locks = [face.db.supply.gate.queue._lock, face.db.supply.gate.sweep.lock, face.db.plain._lock]

    def hold():
        for lock in locks:
            lock.acquire()
        held.set()
        free.wait(PATIENCE)
        for lock in locks:
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE)
    try:
        child = Child(face, query)
        assert child.result() == 0
    finally:
        free.set()
        holder.join()


# --------------------------------------------------------------------------- processes of their own

PROGRAM = """
import gc, os, signal, sys, time
from sqlalchemy import text
from tenure import Database

db = Database(sys.argv[1], pool_size=2)
with db.unit() as session:
    session.execute(text("SELECT 1"))
block = db.unit()
session = block.__enter__()
session.execute(text("INSERT INTO users (name, balance) VALUES ('ada', 0)"))
"""
EXITS = """
raw = db.engine.raw_connection()
if not (pid := os.fork()):
    with db.unit() as mine:
        mine.execute(text("SELECT 1"))
    del raw, block, session
    gc.collect()
    sys.exit(0)  # as a program does: with atexit, finalizers and all
assert os.waitpid(pid, 0)[1] == 0
raw.cursor().execute("SELECT 1")
raw.close()
session.execute(text("INSERT INTO users (name, balance) VALUES ('bob', 0)"))
block.__exit__(None, None, None)
print(db.status().discarded, flush=True)
"""
DIES = """
read, write = os.pipe()
if not os.fork():
    os.close(write)
    os.setsid()
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


@pytest.fixture(params=["sqlite", "psycopg", "pymysql"])
def program(request, tmp_path):
    """``program(source)`` runs it in a process of its own on a database with empty tables."""
    try:
        url = servers.url(request.param, tmp_path)
    except servers.ServerMissingError as error:
        servers.give_up(error)
    servers.clean(request.param)

    def run(source):
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(source))
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", str(file), url.render_as_string(hide_password=False)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    run.url = url
    return run


def ask(url, statement):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.execute(text(statement)).scalars().all()


def test_a_child_that_exits_as_programs_do(program):
    """R30: neither the garbage collector nor the end of the child closes or rolls back what is the parent's."""
    with program(PROGRAM + EXITS) as process:
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out.strip()) == (0, "0"), err
    assert err == ""
    assert sorted(ask(program.url, "SELECT name FROM users")) == ["ada", "bob"]


@pytest.mark.parametrize("program", ["psycopg"], indirect=True)
def test_the_server_notices_that_the_parent_was_killed(program):
    """R30: a child does not keep the sockets of a dead parent open: its transaction is rolled back at once."""
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO users%%' AND state = 'idle in transaction'"
    with program(PROGRAM + DIES) as process:
        child = int(process.stdout.readline())
        try:
            assert ask(program.url, busy) == [1]
            process.kill()
            process.wait()
            ends = time.monotonic() + PATIENCE
            while ask(program.url, busy) != [0]:
                assert time.monotonic() < ends, "the transaction of the dead parent is still open"
                time.sleep(0.01)
        finally:
            os.kill(child, signal.SIGKILL)


GUNICORN = """
import os, sys
from sqlalchemy import text
from tenure import Database
from tenure.web.wsgi import UnitMiddleware

db = Database(os.environ["DATABASE"], pool_size=2)
with db.unit() as session:
    MASTER = session.scalar(text("SELECT pg_backend_pid()"))

def page(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        db.session.execute(text("INSERT INTO users (name, balance) VALUES (:name, 0)"), {"name": environ["PATH_INFO"]})
    backend = db.session.scalar(text("SELECT pg_backend_pid()"))
    start_response("200 OK", [])
    return [f"{os.getpid()} {backend} {MASTER}".encode()]

app = UnitMiddleware(page, db)
"""


@pytest.mark.parametrize("program", ["psycopg"], indirect=True)
def test_gunicorn_with_a_preloaded_application(program, tmp_path):
    """R30: two workers of gunicorn, forked from a master that has used the database, have backends of their own; none is left."""
    from support.http import fetch

    (tmp_path / "shop.py").write_text(GUNICORN)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        os.set_inheritable(listening.fileno(), True)
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"fd://{listening.fileno()}", "shop:app"],
            cwd=tmp_path, pass_fds=[listening.fileno()], stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
                "DATABASE": program.url.render_as_string(hide_password=False),
            },
        )  # fmt: skip
    try:
        seen = [fetch(address, f"/{number}", "POST") for number in range(40)]
        found = [one.text.split() for one in seen]
        (master,) = {int(one[2]) for one in found}
        alive = ask(program.url, f"SELECT count(*) FROM pg_stat_activity WHERE pid = {master}")
    finally:
        process.terminate()
        err = process.communicate(timeout=60)[1]

    assert {one.status for one in seen} == {200}, err
    assert len(ask(program.url, "SELECT name FROM users")) == 40
    assert alive == [1]
    assert master not in {int(backend) for _, backend, _ in found}
    workers = {pid: {backend for who, backend, _ in found if who == pid} for pid, *_ in found}
    assert 1 <= len(workers) <= 2
    assert sum(map(len, workers.values())) == len(set.union(*workers.values()))
    assert process.returncode == 0, err
    left = f"SELECT count(*) FROM pg_stat_activity WHERE pid IN ({', '.join([str(master), *set.union(*workers.values())])})"
    ends = time.monotonic() + PATIENCE
    while ask(program.url, left) != [0]:
        assert time.monotonic() < ends, "a backend of gunicorn is left"
        time.sleep(0.01)
