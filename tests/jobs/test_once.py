import asyncio
import contextlib
import datetime as dt
import functools
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.orm import Session

import tenure
from tenure.core.events import JobSkipped, JobStillRuns, RunNotNoted
from tenure.exceptions import BadOption, UnexpectedUnit, UnsupportedCallable
from tenure.jobs import once as module
from tenure.jobs.apscheduler import in_units
from tenure.jobs.once import once
from tenure.jobs.ticks import Run, overdue, tick_of

from support import servers
from support.face import PATIENCE, settle
from support.models import User
from support.probe import outside

HOUR = 3600.0
alone = pytest.mark.drivers("sqlite")  # where the database plays no part
each = pytest.mark.drivers("sqlite", "aiosqlite", "psycopg", "psycopg_async", "asyncpg", "pymysql", "asyncmy")
some = pytest.mark.drivers("sqlite", "psycopg", "asyncpg", "pymysql")


@pytest.fixture
def name():
    """The name of a job that no other test has."""
    return f"nightly {uuid.uuid4().hex}"


@pytest.fixture
def passes(face, name):
    """``passes(seconds)`` lets that much time pass for the job, by what is remembered of its last run; or go back."""

    def pass_(seconds):
        seconds = float(seconds)
        outside(
            face,
            sa.text(
                "UPDATE tenure_once SET tick = tick - :s, started = started - :s, finished = finished - :s WHERE name = :name"
            ).bindparams(s=seconds, name=name),
        )

    return pass_


def made(face, name, fn, every=HOUR):
    """*fn* as a job, and the calls of it."""
    target = once(face.db, name, every=every)(face.plain(fn))

    async def call():
        return await settle(target())

    return call


# ------------------------------------------------------------------------------- the rule


def last(started=0.0, finished: float | None = 1.0, tick=None):
    return Run(started if tick is None else tick, started, finished, "node-1")


@pytest.mark.parametrize(
    ("before", "now", "tick"),
    [
        pytest.param(None, 7.0, 7.0, id="never run"),
        pytest.param(last(), 0.0, None, id="at the same time"),
        pytest.param(last(), 20.0, None, id="by a clock that is late"),
        pytest.param(last(), 74.9, None, id="just too early for the next"),
        pytest.param(last(), 75.0, 100.0, id="by a clock that is early"),
        pytest.param(last(), 100.0, 100.0, id="in time"),
        pytest.param(last(), 125.0, 100.0, id="late, for the same tick"),
        pytest.param(last(), 125.1, 125.1, id="later still, a new row of ticks"),
        pytest.param(last(), 1e9, 1e9, id="after a long time"),
        pytest.param(last(75.0, 76.0, tick=100.0), 150.0, None, id="the early one moved nothing"),
        pytest.param(last(75.0, 76.0, tick=100.0), 175.0, 200.0, id="nor the next"),
        pytest.param(last(finished=None), 3.0, 0.0, id="that run has died"),
        pytest.param(last(finished=None), 100.0, 100.0, id="it has died, and the next is due"),
        pytest.param(last(), -20.0, None, id="the database's clock was set back a little"),
        pytest.param(last(), -50.0, -50.0, id="set back by more"),
        pytest.param(last(), -1e9, -1e9, id="set back by years"),
    ],
)
def test_which_tick_a_firing_is_for(before, now, tick):
    """R27: by the database's clock, within a quarter of the interval; a run that died does not count, and steps of the clock pass."""
    assert tick_of(before, now, 100.0) == tick


@pytest.mark.parametrize("seed", range(5))
def test_machines_whose_clocks_differ(seed):
    """R27: firings of 16 machines whose clocks differ by up to a fifth of the interval, each tick's in any order, run it once."""
    dice = random.Random(seed)
    off = [dice.uniform(-10, 10) for _ in range(16)]
    run, runs = None, []
    for number in range(200):
        alive = [one for one in off if dice.random() < 0.7] or off
        for now in sorted(1000.0 + 100.0 * number + one + dice.uniform(0, 4) for one in alive):
            if (tick := tick_of(run, now, 100.0)) is not None:
                run = Run(tick, now, now, "")
                runs.append(number)
    assert runs == list(range(200))


def test_a_loop_that_fires_often():
    """R27: a job that is fired every second by a loop runs once an interval, whatever the play."""
    run, runs = None, []
    for now in range(10_000):
        if (tick := tick_of(run, float(now), 60.0)) is not None:
            run = Run(tick, float(now), float(now), "")
            runs.append(now)
    assert len(runs) == 10_000 // 60 + 1
    assert {later - earlier for earlier, later in itertools.pairwise(runs[1:])} == {60}


def test_a_run_that_goes_on():
    """R27: one that has come to its next tick keeps that from being run, and is told."""
    assert not overdue(last(finished=None), 74.0, 100.0)
    assert overdue(last(finished=None), 76.0, 100.0)
    assert not overdue(last(), 76.0, 100.0)


# ------------------------------------------------------------------------------- in the database


@each
async def test_it_runs_once_a_tick(face, name, passes, told):
    """R27: the first firing runs, the others of the tick are skipped and logged with who ran it, and the next tick's runs."""
    runs = []

    async def job():
        runs.append(1)
        return "done"

    fire = made(face, name, job)
    assert [await fire(), await fire()] == ["done", None]
    passes(HOUR - 2)  # a clock that is two seconds early
    assert [await fire(), await fire()] == ["done", None]
    passes(HOUR + 2)
    assert [await fire(), await fire(), len(runs)] == ["done", None, 3]
    passes(-HOUR)  # the database's clock is set back
    assert [await fire(), await fire(), len(runs)] == ["done", None, 4]
    skipped = told.of(JobSkipped)
    assert (len(skipped), face.out()) == (4, 0)
    assert all(f"pid {os.getpid()}, " in event.why for event in skipped)


@some
async def test_while_it_runs_no_other_begins(face, name, passes, told, caplog):
    """R27: not at its tick, nor at the next, which is lost with a warning; then the next firing runs."""
    caplog.set_level(logging.INFO, "tenure")
    runs = []

    async def job():
        runs.append(1)
        if len(runs) == 1:
            await fire()
            passes(HOUR)
            await fire()

    fire = made(face, name, job)
    await fire()
    await fire()
    assert len(runs) == 2
    assert [type(event) for event in told if isinstance(event, JobSkipped | JobStillRuns)] == [JobSkipped, JobStillRuns]
    assert "is skipped here: it runs since" in caplog.text
    assert "goes on" in caplog.text


@some
async def test_a_run_that_raises_has_run(face, name, passes):
    """R27: its error is the caller's; it is not run again before the next tick."""

    async def job():
        raise ZeroDivisionError

    fire = made(face, name, job)
    with pytest.raises(ZeroDivisionError):
        await fire()
    assert await fire() is None
    passes(HOUR)
    with pytest.raises(ZeroDivisionError):
        await fire()


@each
async def test_at_once_in_threads_and_tasks(face, name):
    """R27: 12 threads or tasks of one process fire at once, for the first time ever, and one runs."""
    runs, barrier = [], face.barrier(12)

    async def job():
        runs.append(1)

    fire = made(face, name, job)

    async def one():
        await barrier.wait()
        await fire()

    await face.spawn(*[one] * 12)
    assert len(runs) == 1


@some
async def test_the_lock_takes_no_connection_of_the_pool(make_face, name, told):
    """R27: with a pool of one, the job's own unit has it; and what the job stored is committed before the lock is given back."""
    face = make_face(pool_size=1, max_overflow=0)

    async def job(session):
        assert face.db.status().in_use == 0
        session.add(User(name=name[:50]))

    target = once(face.db, name, every=HOUR)(face.decorated(job).target)
    assert "session" not in target.__wrapped__.__signature__.parameters
    await settle(target())
    await settle(target())
    assert [Path(event.site[0].co_filename).name for event in told.of(JobSkipped)] == ["test_once.py"]
    assert (outside(face, sa.select(User.name)), face.db.status().in_use) == ([name[:50]], 0)


@pytest.mark.drivers("psycopg", "asyncpg", "pymysql")
async def test_nothing_is_left_on_the_server(face, name):
    """R27: while it runs there is one connection more, afterwards and after a skip none."""
    count = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database()",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()",
    }[face.dialect]
    before, during = outside(face, count)[0], []

    async def job():
        during.append(outside(face, count)[0])

    fire = made(face, name, job)
    await fire()
    await fire()
    assert during in ([before + 1], [before + 2])  # one that was closed may still be listed
    await face.until(lambda: outside(face, count)[0] == before)


@pytest.mark.drivers("asyncpg", "psycopg_async", "aiosqlite")
async def test_a_cancelled_job(face, name, passes):
    """R27: its lock is given back and its end noted, so that it has run; a firing cancelled earlier leaves nothing."""
    inside = asyncio.Event()

    @once(face.db, name, every=HOUR)
    async def job():
        inside.set()
        await asyncio.sleep(PATIENCE)

    task = asyncio.create_task(job())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await job() is None
    passes(HOUR)
    inside.clear()
    early = asyncio.create_task(job())
    await asyncio.sleep(0)
    early.cancel()
    with pytest.raises(asyncio.CancelledError):
        await early
    assert not inside.is_set()


@pytest.mark.drivers("psycopg")
def test_a_lock_that_was_lost(face, name, told):
    """R27: the job's result stands, the loss is logged, and nothing hangs."""

    @once(face.db, name, every=HOUR)
    def job():
        outside(face, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()")
        return "done"

    assert job() == "done"
    assert [event.job for event in told.of(RunNotNoted)] == [name]
    assert job() == "done"


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_behind_pgbouncer(url, driver, watch, name):
    """R27: in transaction mode, where a lock of a session would stay with whoever gets the connection next."""
    database = tenure.AsyncDatabase if servers.DRIVERS[driver].is_async else tenure.Database
    try:
        address = servers.found("pgbouncer").base.set(drivername=servers.DRIVERS[driver].drivername)
    except servers.ServerMissingError as error:
        servers.give_up(error)
    face = watch(database(address, pooler="pgbouncer"), driver)
    runs = []

    async def job():
        runs.append(1)
        if len(runs) == 1:
            await fire()

    fire = made(face, name, job)
    await fire()
    await fire()
    assert len(runs) == 1


# ------------------------------------------------------------------------------- processes

SIXTEEN = """
import multiprocessing, os, sys
import sqlalchemy as sa
import tenure
from tenure.jobs.once import once

url, name = sys.argv[1:]

def child(barrier, number):
    import time
    time.time = lambda: 1e9 + number * 5.0  # a clock of its own
    db = tenure.Database(url)

    @once(db, name, every=3600)
    @db.unit
    def job(session):
        session.execute(sa.text("INSERT INTO users (name, balance) VALUES (:name, 0)"), {"name": f"{tick} {number}"})

    for tick in range(3):
        barrier.wait(30)
        job()
        if barrier.wait(30) == 0:
            with db.unit() as session:
                session.execute(sa.text("UPDATE tenure_once SET tick = tick - 3600, started = started - 3600 WHERE name = :name"),
                    {"name": name})
    db.close()
    os._exit(0)

fork = multiprocessing.get_context("fork")
barrier = fork.Barrier(16)
children = [fork.Process(target=child, args=(barrier, number)) for number in range(16)]
for one in children:
    one.start()
for one in children:
    one.join()
sys.exit(max(one.exitcode for one in children))
"""


@pytest.mark.drivers("sqlite", "psycopg", "pymysql")
def test_sixteen_processes(face, name):
    """R27: 16 processes, whose clocks differ by seconds, fire three ticks at once, and each is run once."""
    address = face.sync_engine.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", SIXTEEN, address, name], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(one.split()[0] for one in outside(face, sa.select(User.name))) == ["0", "1", "2"]


HOLDER = """
import sys, time
import tenure
from tenure.jobs.once import once

db = tenure.Database(sys.argv[1])

@once(db, sys.argv[2], every=3600)
def job():
    print("runs", flush=True)
    time.sleep(600)

job()
"""


@pytest.mark.drivers("sqlite", "psycopg", "pymysql")
async def test_a_holder_that_is_killed(face, name, told):
    """R27: while its process lives the job is skipped, with its pid; once it is killed midway, the next firing runs."""
    address = face.sync_engine.url.render_as_string(hide_password=False)

    async def job():
        return "done"

    fire = made(face, name, job)
    with subprocess.Popen([sys.executable, "-c", HOLDER, address, name], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "runs\n"
            assert await fire() is None
        finally:
            holder.send_signal(signal.SIGKILL)
    assert [f", pid {holder.pid}, thread 'MainThread'" in event.why for event in told.of(JobSkipped)] == [True]
    ends = time.monotonic() + 1.0
    while (found := await fire()) is None:  # the server is about to see it
        assert time.monotonic() < ends
    assert found == "done"


# ------------------------------------------------------------------------------- with others


@alone
def test_four_schedulers(face, name, stored):
    """R27: four schedulers fire a job at the same time; APScheduler opens no unit around it, its own is within the lock."""
    barrier = threading.Barrier(4)
    ended = threading.Semaphore(0)

    @once(face.db, name, every=HOUR)
    @face.db.unit
    def job(session: Session):
        session.add(User(name=face.db.current.name[:50]))

    @functools.wraps(job)
    def at_once():
        try:
            barrier.wait(PATIENCE)
            job()
        finally:
            ended.release()

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            made = BackgroundScheduler(executors={"default": in_units(ThreadPoolExecutor(1), face.db)}, timezone="UTC")
            made.add_job(at_once, "date", run_date=dt.datetime(2020, 1, 1, tzinfo=dt.UTC), misfire_grace_time=None)
            made.start()
            stack.callback(made.shutdown)
        for _ in range(4):
            assert ended.acquire(timeout=PATIENCE)
    assert len(stored()) == 1


@alone
def test_a_unit_around_it_is_refused(face, name):
    """R27: its COMMIT would come after the lock is given back, so the call says where the unit belongs."""

    @once(face.db, name, every=HOUR)
    def job():
        raise AssertionError

    with face.db.unit(name="GET /"), pytest.raises(UnexpectedUnit, match=r"within 'GET /'.*@once\(…\), then @db.unit"):
        job()
    assert job.__name__ == "job"


@pytest.mark.drivers("psycopg")
def test_its_table_may_be_in_the_metadata(face, name):
    """R27: migrations create it by `once.table(metadata)`; one that is missing is created, where the role may do that."""
    metadata = sa.MetaData(schema="elsewhere")
    table = module.table(metadata)
    assert (table.schema, table.name) == (None, "tenure_once")
    found = sa.create_engine(face.sync_engine.url)
    fire = once(face.db, name, every=HOUR)(lambda: "done")
    fire()
    assert {one["name"] for one in sa.inspect(found).get_columns("tenure_once")} == {one.name for one in table.c}
    found.dispose()


# ------------------------------------------------------------------------------- bad input


@alone
@pytest.mark.parametrize("given", ["", "  ", None, 7, "x" * 191])
def test_no_name(face, given):
    """R27: refused when it is decorated."""
    with pytest.raises(BadOption, match="give the job's name"):
        once(face.db, given, every=60)


@alone
@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), True, "60", None])
def test_an_impossible_interval(face, every):
    """R27: refused when it is decorated."""
    with pytest.raises(BadOption, match=r"once\(every\)=.*more than 0"):
        once(face.db, "nightly", every=every)


@alone
def test_what_cannot_be_a_job(face):
    """R3: a generator, a coroutine function and a class are refused when they are decorated, and so is what is no database."""

    def rows():
        yield 1

    async def later():
        pass

    for one, said in ((rows, "is a generator"), (later, "async def"), (int, "a class")):
        with pytest.raises(UnsupportedCallable, match=said):
            once(face.db, "nightly", every=60)(one)
    with pytest.raises(BadOption, match="give the Database"):
        once(face.db.engine, "nightly", every=60)


def test_a_memory_that_is_not_shared(watch):
    """R27: an engine whose SQLite database is in one connection's memory has no lock; that of a `Database` has."""
    engine = sa.create_engine("sqlite://")
    with pytest.raises(BadOption, match="'sqlite://'"):
        once(watch(tenure.Database(engine)).db, "nightly", every=60)
    engine.dispose()
    runs = []
    fire = once(watch(tenure.Database("sqlite://")).db, "nightly", every=60)(lambda: runs.append(1))
    fire()
    fire()
    assert runs == [1]
