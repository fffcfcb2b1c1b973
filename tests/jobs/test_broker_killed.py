"""Real workers and a relay of an outbox whose broker is killed and comes back with what was in it."""

import contextlib
import os
import signal
import threading
import uuid

import celery
import kombu
import pytest
import rq
import sqlalchemy as sa
from redis import Redis

from tenure import Retry
from tenure.core.events import MessageFailed
from tenure.jobs import outbox

from support import probe, runners
from support.face import PATIENCE
from support.ownbrokers import OwnRabbitMQ, OwnRedis
from support.workers import slow_commit, until

pytestmark = [pytest.mark.drivers("psycopg")]
IDLE = "state LIKE 'idle in transaction%'"


class ByCelery:
    """Messages are tasks on RabbitMQ, which says when it has one."""

    def __init__(self, address):
        self._address = address
        self._app = celery.Celery("sender", broker=address, set_as_current=False)
        options = {"confirm_publish": True, "max_retries": 1, "interval_start": 0}  # else it waits for a broker for ever
        self._app.conf.update(broker_transport_options=options, task_publish_retry=False)

    def send(self, number):
        self._app.send_task("mail", [number], queue="mails")

    def sent(self):
        with kombu.Connection(self._address) as link, contextlib.closing(link.SimpleQueue("mails")) as mails:
            return [mails.get(timeout=PATIENCE).payload[0][0] for _ in range(mails.qsize())]

    def close(self):
        self._app.close()


class ByRQ:
    """Messages are jobs on Redis."""

    def __init__(self, address):
        self._redis = Redis.from_url(address, retry=None)
        self._queue = rq.Queue("mails", connection=self._redis)

    def send(self, number):
        self._queue.enqueue("builtins.print", number)

    def sent(self):
        return [job.args[0] for job in self._queue.jobs]

    def close(self):
        self._redis.close()


@pytest.fixture
def box(face):
    """An outbox with a hundred messages."""
    made = outbox.Outbox(face.db, outbox.table(sa.MetaData(), f"outbox_{uuid.uuid4().hex[:12]}"))
    made.table.create(face.db.engine)
    with face.db.unit():
        for number in range(100):
            made.put("mail", number)
    yield made
    probe.outside(face, f"DROP TABLE {made.table.name}")


CASES = {
    "RabbitMQ": (OwnRabbitMQ, [runners.Celery, runners.Dramatiq], ByCelery),
    "Redis": (OwnRedis, [runners.CeleryOnRedis, runners.DramatiqOnRedis, runners.RQ], ByRQ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_broker_is_killed(face, case, box, told, tmp_path):
    """R25, R26: while jobs are in COMMIT or about to fail, and a relay sends. What returned is stored and nothing else, 0 are idle in a
    transaction; when the broker is back, jobs that it knows nothing more of run again, and every message has been sent.
    """
    own, kinds, mails = CASES[case]
    with own(tmp_path) as broker, contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(kind(broker.address, kind.__name__))) for kind in kinds]
        workers = [stack.enter_context(one.worker(face.sync_engine.url, tmp_path / one.queue)) for one in made]
        mailer = stack.enter_context(contextlib.closing(mails(broker.address)))

        def send(number):
            if number == 30 and not told.of(MessageFailed):
                broker.kill()
            mailer.send(number)

        relay = box.relay({"mail": send}, batch=20, poll=0.02, retry=Retry(1000, first=0.05, longest=0.2))
        with slow_commit(face):
            pids = _in_their_jobs(face, made, workers, tmp_path)
            stack.enter_context(_relaying(relay))
            told.of(MessageFailed, 1)
        for one, worker in zip(made, workers, strict=True):
            assert worker.said("stored").startswith("in")
            until(face, one.backends(IDLE), 0, 1.0)
        until(face, f"SELECT count(*) FROM pg_stat_activity WHERE {IDLE}", 0, 1.0)  # the relay's, between two batches
        assert probe.stored(face) == sorted(f"in {one.queue} 0" for one in made)

        _end(made, workers, pids)
        broker.start()
        for number, one in enumerate(made):
            if not one.survives:
                one.give_back()
                workers[number] = stack.enter_context(one.worker(face.sync_engine.url, tmp_path / one.queue))
        for one, worker in zip(made, workers, strict=True):
            assert not one.again or worker.said("stored").startswith("in")
        until(face, f"SELECT count(*) FROM {box.table.name} WHERE state = 'pending'", 0)
        assert probe.stored(face) == sorted(f"in {one.queue} {run}" for one in made for run in range(1 + one.again))
        assert (set(mailer.sent()), box.numbers().dead) == (set(range(100)), 0)
        for one, worker in zip(made, workers, strict=True):
            worker.kill()  # Celery's does not end by itself after such a night
            until(face, one.backends(), 0, 1.0)
    assert face.out() == 0


@contextlib.contextmanager
def _relaying(relay):
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield
    finally:
        relay.stop()
        thread.join(PATIENCE)


def _in_their_jobs(face, made, workers, folder):
    """Every worker is in the COMMIT of one job, and in the middle of another that will fail."""
    pids = []
    for one, worker in zip(made, workers, strict=True):
        one.send("keep", f"in {one.queue}", "in", str(folder / f"{one.queue} in"))
        pids.append(int(worker.said("in")))
        if not one.processes:  # it does one job at a time
            one.send("fall", f"falls {one.queue}")
            worker.said("falls")
    waiting = sum(1 if one.processes else 2 for one in made)
    until(face, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", waiting)
    return pids


def _end(made, workers, pids):
    """Those that do not survive their broker are on their way out; be it now."""
    for one, worker, pid in zip(made, workers, pids, strict=True):
        if not one.survives:
            worker.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
