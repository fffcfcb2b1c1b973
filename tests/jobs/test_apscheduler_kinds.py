"""APScheduler's other schedulers and executors, each in an interpreter of its own, and its persistent job stores."""

import datetime as dt
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import sqlalchemy as sa
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from redis import Redis

from tenure.jobs.apscheduler import in_units

from support import brokers, servers
from support.models import User

SOON = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)  # always due
FACES = []


@pytest.mark.drivers("psycopg")
@pytest.mark.parametrize("kind", ["blocking", "gevent", "tornado", "twisted"])
def test_each_scheduler_with_its_executor(face, kind, stored):
    """R24: firings at the same time have a session each, one that fails is rolled back, the units have the jobs' names, 0 are out."""
    assert _fire(face, kind) == {
        "ended": ["LookupError", "NoneType", "NoneType"],
        "units": [["fails", "rolled back"], ["stores ada", "committed"], ["stores bob", "committed"]],
        "sessions": 2,
        "out": 0,
    }
    assert stored() == ["ada", "bob"]


@pytest.mark.drivers("asyncpg")
def test_coroutines_under_tornado(face, stored):
    """R24: the same for `async def` jobs and an `AsyncDatabase` on Tornado's loop."""
    assert _fire(face, "tornado_async")["units"] == [
        ["fails", "rolled back"],
        ["stores ada", "committed"],
        ["stores bob", "committed"],
    ]
    assert stored() == ["ada", "bob"]


@pytest.mark.drivers("psycopg")
def test_decorated_jobs_in_a_process_pool(face, stored):
    """R24, R30: a job that brings its unit has it in the process that runs it, by the `Database` of that process."""
    found = _fire(face, "processes")
    assert (found["ended"], found["out"]) == (["LookupError", "NoneType", "NoneType"], 0)
    assert stored() == ["ada kept", "bob kept"]


def _fire(face, kind):
    library = kind.partition("_")[0]
    if library in ("gevent", "tornado", "twisted") and importlib.util.find_spec(library) is None:
        (pytest.fail if servers.required() else pytest.skip)(f"{library} is not installed. Install the dependency group 'test'.")
    command = [sys.executable, "-m", "jobs.workers.firings", kind, face.sync_engine.url.render_as_string(hide_password=False)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def keep(name):
    """A job that is found by its name."""
    FACES[-1].db.session.add(User(name=name))


def keep_in_its_unit(session, name):
    session.add(User(name=f"{name} {session.unit.name}"))


@pytest.fixture(params=["in the database of the units", "in Redis"])
def make_store(request, face):
    """``make_store()`` is a job store, each time on the same place."""
    name = brokers.queue().replace("-", "_")
    if request.param == "in Redis":
        address = brokers.found("Redis")
        yield lambda: RedisJobStore(
            jobs_key=f"{name}.jobs", run_times_key=f"{name}.times", connection_pool=Redis.from_url(address).connection_pool
        )
        with Redis.from_url(address) as client:
            client.delete(f"{name}.jobs", f"{name}.times")
    else:
        yield lambda: SQLAlchemyJobStore(engine=face.db.engine, tablename=name)
        sa.Table(name, sa.MetaData()).drop(face.db.engine)


@pytest.mark.drivers("sqlite", "psycopg")
def test_jobs_of_a_persistent_store(face, make_store, stored, told, monkeypatch):
    """R24: a job that one scheduler has stored, decorated or not, is fired in a unit by the next one, and the store knows nothing of tenure."""
    FACES[:] = [face]
    monkeypatch.setattr(sys.modules[__name__], "keep_in_its_unit", face.db.unit(keep_in_its_unit))
    first = _scheduler(face, make_store())
    first.start()
    for function in (keep, sys.modules[__name__].keep_in_its_unit):
        first.add_job(
            function, "date", run_date=SOON, misfire_grace_time=None, args=["ada"], id=function.__name__, next_run_time=None
        )
    first.get_jobs()  # waits for the pass that is under way
    first.shutdown()
    assert told.closed() == []

    second = _scheduler(face, make_store())
    second.start()
    for job in second.get_jobs():
        job.modify(next_run_time=SOON)
    assert sorted(told.closed(2)) == [("keep", "committed", "returned"), ("keep_in_its_unit", "committed", "returned")]
    second.get_jobs()  # waits for the pass that is under way
    second.shutdown()
    assert stored() == ["ada", "ada keep_in_its_unit"]
    assert face.out() == 0


def _scheduler(face, store):
    executor = in_units(ThreadPoolExecutor(2), face.db)
    return BackgroundScheduler(jobstores={"default": store}, executors={"default": executor}, timezone="UTC")
