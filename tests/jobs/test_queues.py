"""RQ, Dramatiq and taskiq without workers: what runs in its caller, what is refused, and what is sent too early."""

import asyncio
import contextlib
import logging
import sys

import dramatiq
import pytest
import rq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import MiddlewareError
from redis import Redis
from sqlalchemy import select
from taskiq import InMemoryBroker

from tenure import Database
from tenure.core.events import GuardTripped
from tenure.exceptions import BadOption, NoUnit, UnsupportedCallable
from tenure.jobs import dramatiq as units_dramatiq
from tenure.jobs import taskiq as units_taskiq
from tenure.jobs.rq import unit_job

from support import brokers
from support.models import Order, User
from support.probe import line

alone = pytest.mark.drivers("sqlite")
FACES = []


def read_and_fail(fails):
    """A job that reads, and fails if it is told to."""
    unit = FACES[-1].db.current
    unit.session.scalars(select(User)).all()
    if fails:
        raise LookupError
    return unit.name


def generator():
    yield 1


async def coroutine():
    """Nobody awaits it under a `Database`."""


async def keep_later(session, name):
    session.add(User(name=name))


BEFORE = "its unit would end before the body runs."
PLAIN = "Make it a plain def, or decorate it with @db.unit of an AsyncDatabase."


# ------------------------------------------------------------------------------------------------ RQ


@contextlib.contextmanager
def in_place(db):
    """A queue of RQ that runs its jobs where they are enqueued."""
    connection = Redis.from_url(brokers.found("Redis"))
    made = rq.Queue(brokers.queue(), connection=connection, is_async=False, job_class=unit_job(db))
    yield made
    made.delete(delete_jobs=True)
    for key in connection.scan_iter(f"rq:*{made.name}*"):
        connection.delete(key)
    connection.close()


@pytest.fixture
def queue(face):
    FACES[:] = [face]
    with in_place(face.db) as made:
        yield made


@pytest.mark.faces("sync")
def test_rq_in_its_caller(face, queue, told, stored):
    """R25: with `is_async=False` a job has a unit of its own, named after it, and its caller's goes on: its objects still load."""
    with face.db.unit() as session:
        session.add(User(name="ada", orders=[Order(note="first")]))
    with face.db.unit(name="view") as session:
        ada = session.scalars(select(User)).one()
        done = queue.enqueue(read_and_fail, False)
        failed = queue.enqueue(read_and_fail, True)
        assert face.db.current.session is session
        assert [order.note for order in ada.orders] == ["first"]
        ada.balance = 5

    name = f"{__name__}.read_and_fail"
    assert (done.return_value(), failed.get_status()) == (name, rq.job.JobStatus.FAILED)
    assert told.closed()[1:] == [
        (name, "read only", "returned"), (name, "rolled back", "LookupError"), ("view", "committed", "returned"),
    ]  # fmt: skip
    assert stored(User.balance) == [5]


@alone
def test_rq_refuses(face, queue, watch):
    """R50: a generator, a coroutine, something that is no `Database`, and a closed one."""
    for function, words in ((coroutine, f"is async def under a Database; {BEFORE} {PLAIN}"), (generator, "is a generator")):
        assert words in queue.enqueue(function).latest_result().exc_string
    with pytest.raises(BadOption, match=r"unit_job\(…\): NoneType is not a Database"):
        unit_job(None)
    face.db.close()
    with pytest.raises(BadOption, match="'main' is closed"):
        unit_job(face.db)


@pytest.mark.drivers("aiosqlite")
def test_rq_runs_a_coroutine(face, watch, monkeypatch, stored, told):
    """R25: an `async def` job that is decorated with `@db.unit` of an `AsyncDatabase` runs in that unit, in the loop that RQ gives it."""
    monkeypatch.setattr(sys.modules[__name__], "keep_later", face.db.unit(keep_later))
    with in_place(watch(Database("sqlite://")).db) as queue:
        done = queue.enqueue(f"{__name__}.keep_later", "ada")

    assert done.get_status() == rq.job.JobStatus.FINISHED, done.latest_result().exc_string
    assert (stored(), told.closed()) == (["ada"], [("keep_later", "committed", "returned")])


@alone
def test_rq_sends_too_early(face, queue, caplog):
    """R26: one warning names the line where a job was enqueued before the commit."""
    with caplog.at_level(logging.WARNING, "tenure"), face.db.unit(name="POST /orders") as session:
        queue.enqueue(generator)
        session.add(User(name="ada"))
        sent = line(1)
        queue.enqueue(f"{__name__}.read_and_fail", False)
        expected = f"tenure: job '{__name__}.read_and_fail' was sent at {sent} by unit 'POST /orders' ("
        session.expunge_all()

    (record,) = [one for one in caplog.records if one.name == "tenure"]
    assert record.getMessage().startswith(expected)
    assert record.getMessage().endswith("Use db.on_commit(queue.enqueue, read_and_fail, …). [early-enqueue]")


# ------------------------------------------------------------------------------------------ Dramatiq


@pytest.fixture
def stub(face):
    """A Dramatiq broker in memory, with a worker in a thread."""
    FACES[:] = [face]
    broker = StubBroker(middleware=[dramatiq.middleware.Retries()])
    units_dramatiq.install(broker, face.db)
    yield broker
    broker.close()


@pytest.mark.faces("sync")
@pytest.mark.dialects("sqlite", "postgresql")
def test_dramatiq_in_a_thread(face, stub, told, stored):
    """R25: each run and retry is a unit named after the actor, also of one declared before `install`; called as a function it joins."""
    runs = []

    @dramatiq.actor(broker=stub, actor_name="keep", max_retries=2, min_backoff=1, max_backoff=1)
    def keep(name):
        runs.append(id(face.db.session))
        face.db.session.add(User(name=f"{name} {len(runs)}"))
        if len(runs) < 3:
            raise LookupError

    worker = dramatiq.Worker(stub, worker_timeout=10, worker_threads=1)
    worker.start()
    try:
        with face.db.unit() as session:
            session.add(User(name="sender"))
            face.db.on_commit(keep.send, "ada")
        stub.join(keep.queue_name)
        worker.join()
    finally:
        worker.stop()
    with pytest.raises(LookupError), face.db.unit():
        keep("joined")
        raise LookupError

    assert [one for one in told.closed() if one[0] == "keep"] == [
        ("keep", "rolled back", "LookupError"), ("keep", "rolled back", "LookupError"), ("keep", "committed", "returned"),
    ]  # fmt: skip
    assert (stored(), told.of(GuardTripped)) == (["ada 3", "sender"], [])


@alone
def test_dramatiq_refuses(face, stub):
    """R50: a generator, a coroutine, a second call, swapped arguments, no `Database`. A coroutine with a unit of its own is let be."""
    with pytest.raises(MiddlewareError, match=r"is a generator; .* \[unsupported-callable\]"):
        dramatiq.actor(generator, broker=stub)
    bare = StubBroker(middleware=[dramatiq.middleware.AsyncIO()])
    try:
        declared = dramatiq.actor(coroutine, broker=bare)
        with pytest.raises(
            UnsupportedCallable, match=r"'coroutine' .* is async def under a Database; .* Make it a plain def, or decorate it"
        ):
            units_dramatiq.install(bare, face.db)
    finally:
        bare.close()
    with pytest.raises(BadOption, match="called before"):
        units_dramatiq.install(stub, face.db)
    with pytest.raises(
        BadOption, match=r"install\(broker, db\): Database is no Broker\. Give that first, and the database after it"
    ):
        units_dramatiq.install(face.db, stub)
    with pytest.raises(BadOption, match="NoneType is not a Database"):
        units_dramatiq.install(stub, None)
    assert declared.actor_name == "coroutine"


@alone
def test_dramatiq_sends_too_early(face, stub, caplog):
    """R26: one warning names the line where a message was sent before the commit."""
    actor = dramatiq.actor(read_and_fail, broker=stub, actor_name="receipt")
    with caplog.at_level(logging.WARNING, "tenure"), face.db.unit(name="POST /orders") as session:
        actor.send(1)
        session.add(User(name="ada"))
        sent = line(1)
        actor.send_with_options(args=(2,))
        expected = f"tenure: message for 'receipt' was sent at {sent} by unit 'POST /orders' ("
        session.expunge_all()

    (record,) = [one for one in caplog.records if one.name == "tenure"]
    assert record.getMessage().startswith(expected)
    assert record.getMessage().endswith("Use db.on_commit(receipt.send, …). [early-enqueue]")


# -------------------------------------------------------------------------------------------- taskiq


@pytest.mark.faces("async")
@pytest.mark.dialects("sqlite", "postgresql")
@pytest.mark.parametrize("inplace", [True, False])
async def test_taskiq_in_its_caller(face, told, stored, inplace):
    """R25: `InMemoryBroker` runs a task in its sender's context; it has a unit of its own all the same, and awaited by hand it joins."""
    broker = InMemoryBroker(await_inplace=inplace)
    units_taskiq.install(broker, face.db)

    @broker.task(task_name="read")
    async def read(fails):
        unit = face.db.current
        await unit.session.scalars(select(User))
        if fails:
            raise LookupError
        return unit.name, id(unit.session)

    async with face.db.unit(name="view") as session:
        done, failed = await read.kiq(False), await read.kiq(True)
        name, found = (await done.wait_result(timeout=5)).return_value
        assert (await failed.wait_result(timeout=5)).is_err
        assert (await read(False))[1] == id(session) != found
        session.add(User(name="ada"))

    broker.executor.shutdown()
    assert (name, stored()) == ("read", ["ada"])
    assert sorted(told.closed()[:2]) == [("read", "read only", "returned"), ("read", "rolled back", "LookupError")]
    assert told.closed()[-1] == ("view", "committed", "returned")


@pytest.mark.drivers("aiosqlite")
async def test_taskiq_refuses(face, watch):
    """R50: a plain function, tasks that are there already, a second call, arguments the wrong way round, and no database."""
    broker = InMemoryBroker()
    with pytest.raises(BadOption, match="NoneType is not a AsyncDatabase"):
        units_taskiq.install(broker, None)
    with pytest.raises(BadOption, match=r"install\(broker, db\): AsyncDatabase is no AsyncBroker"):
        units_taskiq.install(face.db, broker)
    units_taskiq.install(broker, face.db)
    with pytest.raises(BadOption, match="called before"):
        units_taskiq.install(broker, face.db)
    with pytest.raises(UnsupportedCallable, match=r"'generator' .* is a generator"):
        broker.task(generator)
    with pytest.raises(UnsupportedCallable, match="is a plain function under an AsyncDatabase"):
        broker.task(read_and_fail)
    broker.task(coroutine)
    with pytest.raises(BadOption, match="comes after tasks of the broker were defined"):
        units_taskiq.install(broker, face.db)
    broker.executor.shutdown()


@pytest.mark.drivers("aiosqlite")
async def test_taskiq_sends_too_early(face, caplog):
    """R26: one warning names the line where a task was sent before the commit; from `db.on_commit`, which awaits it, there is none."""
    broker = InMemoryBroker()
    units_taskiq.install(broker, face.db)
    receipt = broker.register_task(coroutine, task_name="shop:receipt")
    with caplog.at_level(logging.WARNING, "tenure"):
        async with face.db.unit(name="POST /orders") as session:
            session.add(User(name="ada"))
            face.db.on_commit(receipt.kiq)
            sent = line(1)
            await receipt.kiq()
            expected = f"tenure: task 'shop:receipt' was sent at {sent} by unit 'POST /orders' ("
    await asyncio.sleep(0)
    await broker.wait_all()
    broker.executor.shutdown()

    (record,) = [one for one in caplog.records if one.name == "tenure"]
    assert record.getMessage().startswith(expected)
    assert record.getMessage().endswith("Use db.on_commit(receipt.kiq, …). [early-enqueue]")


@alone
def test_a_job_without_a_unit(face):
    """R4, R50: a job that nobody gave a unit is told so, with its line and the remedy."""
    FACES[:] = [face]
    stub = StubBroker(middleware=[])
    try:
        with pytest.raises(NoUnit, match=r"\(test_queues\.py:\d+\)\. Decorate the function with @db\.unit"):
            dramatiq.actor(read_and_fail, broker=stub)(False)
    finally:
        stub.close()
