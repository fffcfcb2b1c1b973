import asyncio
import contextlib
import datetime as dt
import functools
import logging
import pickle
import re
import threading
import time

import pytest
import sqlalchemy as sa
from apscheduler import events as aps
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

import tenure
from tenure.core.current import nobody
from tenure.core.events import UnitClosed
from tenure.exceptions import BadOption, NoUnit, UnitEnded
from tenure.jobs.apscheduler import in_units
from tenure.web.wsgi import UnitMiddleware

from support import http
from support.face import PATIENCE
from support.models import Base, Order, User

alone = pytest.mark.drivers("sqlite")  # where the database plays no part

ENDED = aps.EVENT_JOB_EXECUTED | aps.EVENT_JOB_ERROR
SOON = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)  # always due


@contextlib.contextmanager
def scheduler(face, threads=4, **options):
    """A scheduler whose threads run each firing in a unit; it is shut down at the end, when all jobs have returned."""
    executor = options.pop("executor", None) or in_units(ThreadPoolExecutor(threads), face.db)
    made = BackgroundScheduler(executors={"default": executor}, timezone="UTC", **options)
    made.start()
    try:
        yield made
    finally:
        made.get_jobs()  # waits for the pass that is under way; APScheduler cannot be shut down in the midst of one
        made.shutdown()


class Ended:
    """Waits for firings to end, by what the scheduler tells of them."""

    def __init__(self, made):
        self.events = []
        self._news = threading.Condition()
        made.add_listener(self, aps.EVENT_JOB_EXECUTED | aps.EVENT_JOB_ERROR | aps.EVENT_JOB_MISSED | aps.EVENT_JOB_MAX_INSTANCES)

    def __call__(self, event):
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait(self, count):
        with self._news:
            assert self._news.wait_for(lambda: len(self.events) >= count, PATIENCE), self.events
        return [getattr(event, "exception", None) for event in self.events]


def once(made, function, **options):
    """Run *function* as a job, now, once, whatever the time is."""
    return made.add_job(function, "date", run_date=SOON, misfire_grace_time=None, **options)


# ------------------------------------------------------------------------- R24 as it is written


def _shop(face):
    """A web application beside the jobs: each request reads and writes."""

    def app(environ, start_response):
        session = face.db.session
        session.add(Order(user=User(name=environ["PATH_INFO"]), note="web"))
        session.flush()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(session.scalar(select(func.count()).select_from(Order))).encode()]

    return UnitMiddleware(app, face.db)


@pytest.mark.faces("sync")
@pytest.mark.dialects("sqlite", "postgresql")
def test_five_jobs_on_four_threads_beside_a_web_server(make_face, stored, told):
    """R24: after 200 runs only rows of successful runs are stored, 0 are out, and every web request has succeeded."""
    face = make_face(pool_size=5, max_overflow=0)
    runs, enough = [], threading.Event()

    def job(which):
        session = face.db.session
        runs.append((which, face.db.current.name, session.scalar(select(func.count()).select_from(User)), id(session)))
        session.add(User(name=f"{which} {len(runs)} {threading.get_ident()} {time.monotonic_ns()}"))
        session.flush()
        if len(runs) >= 200:
            enough.set()
        if which == "bad":
            raise LookupError(which)

    names = ["a", "b", "c", "d", "bad"]
    with http.cheroot(_shop(face), threads=4) as address, scheduler(face) as made:
        for name in names:
            made.add_job(job, "interval", [name], seconds=0.05, name=f"job {name}", max_instances=2, coalesce=False)
        statuses = []
        while not enough.is_set():
            statuses.append(http.fetch(address, f"/{len(statuses)}").status)

    ended = [(unit, outcome) for unit, outcome, _ in told.closed() if not unit.startswith("GET")]
    assert (len(runs) >= 200, len(ended)) == (True, len(runs))
    assert set(statuses) == {200}
    assert {(which, name) for which, name, *_ in runs} == {(name, f"job {name}") for name in names}
    assert set(ended) == {(f"job {name}", "rolled back" if name == "bad" else "committed") for name in names}
    of_jobs = [name for name in stored() if not name.startswith("/")]
    assert len(of_jobs) == sum(which != "bad" for which, *_ in runs)
    assert not [name for name in of_jobs if name.startswith("bad")]
    assert (len(stored(Order.note)), face.out(), face.db.holders()) == (len(statuses), 0, [])


# ------------------------------------------------------------------------------- each firing


@alone
def test_a_unit_is_named_after_its_job(face, told):
    """R24: by the name that the job was given, else by its function's."""
    seen = []

    def tidy_up():
        seen.append(face.db.current.name)

    with scheduler(face) as made:
        ended = Ended(made)
        once(made, tidy_up)
        once(made, tidy_up, name="sweep the floor")
        assert ended.wait(2) == [None, None]
    names = sorted(name.rpartition(".")[2] for name, _, _ in told.closed(2))
    assert names == sorted(name.rpartition(".")[2] for name in seen) == ["sweep the floor", "tidy_up"]


@alone
def test_overlapping_firings_are_separate(face, told, stored):
    """R24: two runs of one job at the same time have a session each; beyond `max_instances` none is begun."""
    sessions, barrier = [], threading.Barrier(2)

    def job():
        sessions.append(face.db.session)
        barrier.wait(PATIENCE)
        face.db.session.add(User(name=f"user {len(sessions)} {id(face.db.session)}"))
        go_on.wait(PATIENCE)

    go_on = threading.Event()
    with scheduler(face) as made:
        ended = Ended(made)
        made.add_job(job, "interval", seconds=0.01, max_instances=2, id="one")
        while not [event for event in ended.events if event.code == aps.EVENT_JOB_MAX_INSTANCES]:
            ended.wait(len(ended.events) + 1)
        made.remove_job("one")
        go_on.set()
    assert (len(sessions), sessions[0] is not sessions[1], len(stored())) == (2, True, 2)
    assert [outcome for _, outcome, _ in told.closed(2)] == ["committed"] * 2


@pytest.mark.faces("sync")
@pytest.mark.dialects("sqlite", "postgresql")
def test_a_failed_firing_leaves_nothing_for_the_next(face, stored):
    """R24: on the same thread, after a failed flush, the next firing starts clean; the scheduler reports the error as ever."""
    places = []

    def bad():
        face.db.session.add_all([User(name="twice"), User(name="twice")])
        face.db.session.flush()

    def good():
        face.db.session.add(User(name="good"))

    with scheduler(face, threads=1) as made:
        ended = Ended(made)
        for turn, function in enumerate((bad, good, bad), 1):
            once(made, function)
            errors = ended.wait(turn)
        made._executors["default"]._pool.submit(lambda: places.append(face.db.current_place.var.get())).result()

    assert [type(error) for error in errors] == [sa.exc.IntegrityError, type(None), sa.exc.IntegrityError]
    assert (stored(), places, face.out()) == (["good"], [nobody], 0)


@alone
def test_a_job_that_swallows_a_failure(face, told):
    """R7: its firing is reported as failed, with the line of what it swallowed."""

    def job():
        face.db.session.add_all([User(name="twice"), User(name="twice")])
        with contextlib.suppress(sa.exc.IntegrityError):
            face.db.session.flush()

    with scheduler(face) as made:
        ended = Ended(made)
        once(made, job, name="job")
        (error,) = ended.wait(1)

    assert re.match(r"'job' \(test_apscheduler.py:\d+\) was rolled back: IntegrityError at test_apscheduler.py:\d+", str(error))
    assert told.closed() == [("job", "rolled back", "RollbackOnly")]


@alone
def test_what_a_job_returns_and_is_given(face, stored):
    """R24: arguments go in and the result comes out as without tenure; hooks run after the commit."""
    seen = []

    def job(name, *, times):
        face.db.session.add(User(name=name))
        face.db.on_commit(lambda: seen.append(stored()))
        return name * times

    with scheduler(face) as made:
        ended = Ended(made)
        once(made, job, args=["ada"], kwargs={"times": 2})
        ended.wait(1)
    assert (ended.events[0].retval, seen) == ("adaada", [["ada"]])


@alone
def test_missed_firings(face, told, caplog):
    """R24: one that comes too late opens no unit; those that are made up for have a unit each."""
    past = [SOON, SOON + dt.timedelta(seconds=1), dt.datetime.now(dt.UTC)]

    def job():
        _ = face.db.session

    executor = in_units(DebugExecutor(), face.db)
    with scheduler(face) as made:
        executor.start(made, "debug")
        late = made.add_job(job, "interval", weeks=9, misfire_grace_time=60, name="late", max_instances=3)
        executor.submit_job(late, past)
        assert [name for name, _, _ in told.closed()] == ["late"]
        every = made.add_job(job, "interval", weeks=9, misfire_grace_time=None, name="every", max_instances=3)
        executor.submit_job(every, past)
    assert [name for name, _, _ in told.closed()] == ["late", "every", "every", "every"]
    assert caplog.text.count("was missed by") == 2


@alone
def test_the_log_of_the_scheduler_names_the_job(face, caplog):
    """R51: APScheduler's own lines show the job as they would without tenure."""

    def job():
        raise LookupError

    with caplog.at_level(logging.INFO, "apscheduler"), scheduler(face) as made:
        ended = Ended(made)
        once(made, job, name="sweep the floor")
        ended.wait(1)
    assert re.search(r'Running job "sweep the floor \(trigger: date\[2020-01-01 00:00:00 UTC\], ', caplog.text)
    assert re.search(r'Job "sweep the floor \(trigger: date\[2020-01-01 00:00:00 UTC\], .* raised an exception', caplog.text)
    assert "_JobInUnit" not in caplog.text


# -------------------------------------------------------------------------- what may be a job


def plain_job():
    """A job that can be stored: found by its name."""


@alone
def test_the_stored_job_stays_as_it_is(face):
    """R24: what is in the job store, and what it pickles to, knows nothing of tenure."""
    store = MemoryJobStore()
    with scheduler(face, jobstores={"default": store}) as made:
        ended = Ended(made)
        job = made.add_job(plain_job, "interval", weeks=9, next_run_time=SOON, misfire_grace_time=None)
        ended.wait(1)
        kept = store.lookup_job(job.id)
        assert (kept.func, kept.func_ref) == (plain_job, f"{__name__}:plain_job")
        state = kept.__getstate__()
    assert b"tenure.jobs" not in pickle.dumps({name: value for name, value in state.items() if name != "trigger"})


@alone
def test_a_decorated_job_with_a_session(face, stored, told):
    """R24: `@db.unit` fills in the session; its unit is the firing's, and has the name that it would have anywhere."""

    @face.db.unit
    def store(session, name):
        session.add(User(name=f"{name} {session.unit.name}"))

    with scheduler(face) as made:
        ended = Ended(made)
        once(made, store, args=["ada"], name="storing")
        assert ended.wait(1) == [None]
    name = store.__qualname__.rpartition(".")[2]
    assert (stored(), told.closed()) == ([f"ada {name}"], [(name, "committed", "returned")])


@alone
def test_a_decorated_job_alone(face, stored, told):
    """R23: without `in_units` the decorator is enough."""

    @face.db.unit
    def store(session, name):
        session.add(User(name=name))

    with scheduler(face, executor=ThreadPoolExecutor(1)) as made:
        ended = Ended(made)
        once(made, store, args=["ada"])
        assert ended.wait(1) == [None]
    assert (stored(), [name for name, _, _ in told.closed()]) == (["ada"], [store.__qualname__.rpartition(".")[2]])


class Nightly:
    """Jobs that are decorated, as methods and objects."""

    def __init__(self, db):
        self.db = db

        @db.unit(isolation="SERIALIZABLE", retry=2, name="a method")
        def method(self, session, name="method"):
            session.add(User(name=f"{name} {session.unit.name}"))

        type(self).method = type(self).__call__ = method


@alone
@pytest.mark.parametrize("form", ["function", "method", "object", "partial", "wrapped"])
def test_a_decorated_job_has_its_own_options(face, stored, told, form):
    """R24, R39: a job that brings its unit has no other around it, and so may ask for what it would ask for anywhere."""
    runs = []

    @face.db.unit(retry=3, isolation="SERIALIZABLE", propagation="never", name="its own")
    def function(session):
        runs.append(face.db.current.parent)
        session.add(User(name=f"run {len(runs)}"))
        session.flush()
        if len(runs) < 3:
            raise sa.exc.OperationalError("", {}, sqlite_busy())

    @functools.wraps(function)
    def wrapped():
        return function()

    nightly = Nightly(face.db)
    forms = {"method": nightly.method, "object": nightly, "partial": functools.partial(nightly.method, name="partial")}
    with scheduler(face, threads=1) as made:
        ended = Ended(made)
        once(made, {"function": function, "wrapped": wrapped, **forms}[form], name="job")
        assert ended.wait(1) == [None]
    if form in forms:
        assert stored() == [f"{'partial' if form == 'partial' else 'method'} a method"]
    else:
        assert (runs, stored()) == ([None] * 3, ["run 3"])
        assert [one[:2] for one in told.closed()] == [("its own", "rolled back")] * 2 + [("its own", "committed")]


@alone
def test_a_job_decorated_for_another_database(face, watch, tmp_path, told):
    """R24: what it brings is no unit of this one."""
    other = watch(tenure.Database(f"sqlite:///{tmp_path / 'other.db'}"))

    @other.db.unit
    def job(session):
        return face.db.session, session

    @other.db.unit
    @face.db.unit
    def both(session):
        return face.db.current.parent

    with scheduler(face, threads=1) as made:
        ended = Ended(made)
        once(made, job, name="job")
        ended.wait(1)
        once(made, both, name="both")
        assert ended.wait(2) == [None, None]
    assert sorted(name for name, _, _ in told.closed()).count("job") == 2
    assert "both" in [name.rpartition(".")[2] for name, _, _ in told.closed()]


@alone
def test_a_job_that_must_join(face, stored):
    """R24, R5: it brings no unit, and joins the firing's."""

    @face.db.unit(propagation="mandatory")
    def joins(session):
        session.add(User(name=session.unit.name))

    with scheduler(face, threads=1) as made:
        ended = Ended(made)
        once(made, joins, name="the firing")
        assert ended.wait(1) == [None]
    assert stored() == ["the firing"]


def sqlite_busy():
    error = sa.create_engine("sqlite://").dialect.loaded_dbapi.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    return error


class Cleaner:
    def __init__(self, face):
        self.face = face

    def clean(self):
        self.face.db.session.add(User(name=f"method {self.face.db.current.name}"))

    def __call__(self):
        self.face.db.session.add(User(name=f"object {self.face.db.current.name}"))


@alone
def test_methods_objects_and_partials(face, stored):
    """R24: whatever APScheduler can call, also a builtin whose arguments nobody can ask for."""
    cleaner = Cleaner(face)

    def add(name):
        face.db.session.add(User(name=name))

    with scheduler(face, threads=1) as made:
        ended = Ended(made)
        once(made, cleaner.clean, name="m")
        once(made, cleaner, name="o")
        once(made, functools.partial(add, "partial"), name="p")
        once(made, time.sleep, args=[0], name="b")
        errors = ended.wait(4)
    assert errors == [None] * 4
    assert stored() == ["method m", "object o", "partial"]


@alone
def test_what_cannot_carry_a_unit(face, caplog):
    """R3: a generator or `async def` under a `Database` is refused by name, and does not stop the other jobs."""

    def rows():
        yield 1

    async def fetch():
        """Never run."""

    with scheduler(face) as made:
        ended = Ended(made)
        once(made, rows)
        once(made, fetch)
        once(made, plain_job)
        assert ended.wait(1) == [None]
    assert re.search(r"'rows' \(test_apscheduler.py:\d+\) is a generator", caplog.text)
    assert re.search(
        r"'fetch' \(test_apscheduler.py:\d+\) is async def under a Database; .* Give in_units\(…\) an AsyncDatabase", caplog.text
    )


@alone
def test_bad_input(face):
    """R50: an executor whose jobs leave this process, or something else than an executor or a database, is refused at once."""
    processes = ProcessPoolExecutor(1)
    with pytest.raises(BadOption, match="a unit does not reach another process"):
        in_units(processes, face.db)
    processes.shutdown()
    for wrong in (face.db, BackgroundScheduler()):
        with pytest.raises(
            BadOption, match=rf"in_units\(executor, db\): {type(wrong).__name__} is no BaseExecutor\. Give that first"
        ):
            in_units(wrong, face.db)
    threads = ThreadPoolExecutor(1)
    with pytest.raises(BadOption, match=r"Engine\): give the Database or AsyncDatabase"):
        in_units(threads, face.db.engine)
    threads.shutdown()


@alone
def test_two_databases(face, watch, tmp_path, stored):
    """R12: an executor may be given the units of two databases; both commit, or neither does."""
    other = watch(tenure.Database(f"sqlite:///{tmp_path}/other.db", name="other"))
    Base.metadata.create_all(other.db.engine, tables=[User.__table__])
    executor = in_units(in_units(ThreadPoolExecutor(1), face.db), other.db)

    def job(name, error=None):
        face.db.session.add(User(name=name))
        other.db.session.add(User(name=name))
        if error:
            raise error

    with scheduler(face, executor=executor) as made:
        ended = Ended(made)
        once(made, job, args=["kept"])
        ended.wait(1)
        once(made, job, args=["lost", LookupError()])
        assert [type(error) for error in ended.wait(2)] == [type(None), LookupError]
    with other.db.unit() as session:
        assert session.scalars(select(User.name)).all() == stored() == ["kept"]


@alone
def test_a_session_that_outlives_its_firing(face):
    """R45: kept in a global, it raises at the next firing."""
    kept = []

    def job():
        if kept:
            kept[0].scalar(select(User.name))
        kept.append(face.db.session)

    with scheduler(face, threads=1) as made:
        ended = Ended(made)
        once(made, job, name="first")
        ended.wait(1)
        once(made, job, name="second")
        errors = ended.wait(2)
    assert isinstance(errors[1], UnitEnded)
    assert re.match(
        r"the session of 'first' \(\S+:\d+\) ended, read only, [\d.]+ s ago, and was used again at \S+:\d+", str(errors[1])
    )


# ------------------------------------------------------------------------------------ asyncio


@contextlib.asynccontextmanager
async def aioscheduler(database):
    made = AsyncIOScheduler(executors={"default": in_units(AsyncIOExecutor(), database)}, timezone="UTC")
    made.start()
    try:
        yield made
    finally:
        made.shutdown()


@pytest.mark.faces("async")
@pytest.mark.dialects("sqlite", "postgresql")
async def test_jobs_on_an_event_loop(face, stored, told):
    """R24: under AsyncIOScheduler a coroutine's firing is a unit; a failed one rolls back, one with a session is given it."""
    done = asyncio.Queue()

    async def good(name):
        face.db.session.add(User(name=f"{name} {face.db.current.name}"))

    async def bad():
        face.db.session.add(User(name="bad"))
        await face.db.session.flush()
        raise LookupError

    @face.db.unit(retry=2, isolation="SERIALIZABLE")
    async def given(session: AsyncSession, name):
        session.add(User(name=f"{name} {session.sync_session.unit.name}"))

    async with aioscheduler(face.db) as made:
        made.add_listener(done.put_nowait, ENDED)
        once(made, good, args=["ada"], name="g")
        once(made, bad, name="bad")
        once(made, given, args=["bob"], name="given")
        ended = [await asyncio.wait_for(done.get(), PATIENCE) for _ in range(3)]
        with pytest.raises(NoUnit):
            _ = face.db.session

    assert sorted(type(event.exception).__name__ for event in ended) == ["LookupError", "NoneType", "NoneType"]
    assert stored() == ["ada g", "bob given"]
    assert sorted(told.closed()) == [
        ("bad", "rolled back", "LookupError"),
        ("g", "committed", "returned"),
        ("given", "committed", "returned"),
    ]
    assert face.out() == 0


@pytest.mark.drivers("aiosqlite")
async def test_overlapping_firings_on_an_event_loop(face, stored, told):
    """R24: two firings of one coroutine at a time have a session each."""
    sessions, both, done = [], asyncio.Barrier(2), asyncio.Queue()

    async def job():
        sessions.append(face.db.session)
        await asyncio.wait_for(both.wait(), PATIENCE)
        face.db.session.add(User(name=f"user {id(face.db.session)}"))

    async with aioscheduler(face.db) as made:
        made.add_listener(done.put_nowait, ENDED)
        for _ in range(2):
            once(made, job)
        assert [(await asyncio.wait_for(done.get(), PATIENCE)).exception for _ in range(2)] == [None, None]
    assert (sessions[0] is not sessions[1], len(stored()), len(told.of(UnitClosed))) == (True, 2, 2)


@alone
def test_plain_functions_on_an_event_loop(face, stored):
    """R24: under AsyncIOScheduler a plain function runs in a thread, and in a unit of a `Database`."""

    def job():
        face.db.session.add(User(name=threading.current_thread().name))

    async def run():
        done = asyncio.Queue()
        loop = asyncio.get_running_loop()
        async with aioscheduler(face.db) as made:
            made.add_listener(lambda event: loop.call_soon_threadsafe(done.put_nowait, event), ENDED)
            once(made, job)
            return (await asyncio.wait_for(done.get(), PATIENCE)).exception

    assert asyncio.run(run()) is None
    assert stored()[0].startswith("asyncio_")


@pytest.mark.faces("async")
@pytest.mark.dialects("sqlite", "postgresql")
async def test_a_firing_that_is_cancelled(face, stored, told):
    """R19, R24: a scheduler that is shut down cancels its jobs; what they had written is rolled back and 0 are out."""
    waiting = asyncio.Event()

    async def job():
        face.db.session.add(User(name="ada"))
        await face.db.session.flush()
        waiting.set()
        await asyncio.Event().wait()

    async with aioscheduler(face.db) as made:
        once(made, job, name="endless")
        await asyncio.wait_for(waiting.wait(), PATIENCE)
        firing = next(iter(made._executors["default"]._pending_futures))
    await asyncio.wait([firing], timeout=PATIENCE)

    assert (stored(), told.closed(), face.out()) == ([], [("endless", "rolled back", "CancelledError")], 0)


@pytest.mark.drivers("aiosqlite")
async def test_a_plain_function_under_an_asyncdatabase(face, caplog):
    """R3: nobody could await its COMMIT, so it is refused by name, and its neighbours run."""
    done = asyncio.Queue()

    async def good():
        """Runs."""

    async with aioscheduler(face.db) as made:
        made.add_listener(done.put_nowait, ENDED)
        once(made, plain_job)
        once(made, good)
        assert (await asyncio.wait_for(done.get(), PATIENCE)).exception is None
    assert re.search(r"'plain_job' \(test_apscheduler.py:\d+\) is a plain function under an AsyncDatabase", caplog.text)
