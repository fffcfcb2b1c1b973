"""RQ, Dramatiq and taskiq with real workers, which are killed before, in and after COMMIT."""

import asyncio
import contextlib
import os
import signal
import time

import dramatiq
import pytest
import rq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from redis import Redis
from taskiq.kicker import AsyncKicker
from taskiq_redis import RedisStreamBroker

from support import brokers
from support.workers import Worker, slow_commit, until

pytestmark = [pytest.mark.drivers("psycopg")]


class Dramatiq:
    """On RabbitMQ, which gives what a dead worker had to another one."""

    broker = "RabbitMQ"
    processes = False

    def __init__(self, address, queue):
        self.command = ("dramatiq", "jobs.workers.dramatiq_actors:broker", "-p", "1", "-t", "4")
        self._queue = queue
        self._broker = RabbitmqBroker(url=address)
        self._broker.declare_queue(queue, ensure=True)

    def send(self, name, *args):
        self._broker.enqueue(dramatiq.Message(self._queue, f"shop.{name}", args, {}, {}))

    def close(self):
        self._broker.close()
        for name in (self._queue, f"{self._queue}.DQ", f"{self._queue}.XQ"):
            brokers.drop("RabbitMQ", name)


class DramatiqOnRedis(Dramatiq):
    """On Redis, where another worker sees that one has not said for a time that it lives."""

    broker = "Redis"

    def __init__(self, address, queue):
        self.command = ("dramatiq", "jobs.workers.dramatiq_actors:broker", "-p", "1", "-t", "4")
        self._queue = queue
        self._broker = RedisBroker(url=address, namespace=queue)
        self._broker.declare_queue(queue)

    def close(self):
        for key in self._broker.client.scan_iter(f"{self._queue}*"):
            self._broker.client.delete(key)
        self._broker.client.close()
        self._broker.close()


class RQ:
    """On Redis; its worker sees that a process is dead, and the job runs again as it was sent: ``Retry(max=2)``."""

    broker = "Redis"
    processes = True  # one for each job

    def __init__(self, address, queue):
        self.command = ("rq.cli", "worker", "-u", address, "--job-class", "jobs.workers.rq_jobs.UnitJob", queue)
        self._redis = Redis.from_url(address)
        self._queue = rq.Queue(queue, connection=self._redis)

    def send(self, name, *args):
        self._queue.enqueue(f"jobs.workers.body.{name}", *args, retry=rq.Retry(max=2), result_ttl=0, failure_ttl=60)

    def give_back(self):
        """What a worker's clean-up does with the jobs of a dead one, once a minute or more has passed."""
        rq.registry.StartedJobRegistry(queue=self._queue).cleanup(timestamp=time.time() + 3600)

    def close(self):
        self._queue.delete(delete_jobs=True)
        self._redis.close()


class Taskiq:
    """On streams of Redis, which give what a dead worker had to another one when that takes its next message."""

    broker = "Redis"
    processes = False

    def __init__(self, address, queue):
        self.command = ("taskiq", "worker", "jobs.workers.taskiq_tasks:broker", "-w", "1")
        self._address, self._queue = address, queue

    def send(self, name, *args):
        asyncio.run(self._kick(name, args))

    async def _kick(self, name, args):
        broker = RedisStreamBroker(url=self._address, queue_name=self._queue)
        await broker.startup()
        await AsyncKicker(f"shop.{name}", broker, {"retry_on_error": "True", "max_retries": "5"}).kiq(*args)
        await broker.shutdown()

    def close(self):
        with Redis.from_url(self._address) as client:
            client.delete(self._queue, *client.scan_iter(f"*{self._queue}*"))


@pytest.fixture(params=[Dramatiq, DramatiqOnRedis, RQ, Taskiq])
def runner(request):
    queue = brokers.queue()
    made = request.param(brokers.found(request.param.broker), queue)
    made.queue = queue
    yield made
    made.close()


@pytest.fixture
def worker(face, runner, tmp_path):
    """``worker()`` starts one; when all have ended, their connections must have as well."""
    url = face.sync_engine.url.update_query_dict({"application_name": runner.queue}).render_as_string(hide_password=False)
    environment = {"WORKER_BROKER": brokers.address(runner.broker), "WORKER_QUEUE": runner.queue, "WORKER_DATABASE": url}
    yield lambda: Worker(tmp_path / "worker.log", *runner.command, **environment)
    until(face, _backends(runner), 0, 1.0)


def _backends(runner):
    return f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{runner.queue}'"


def _in_commit(face):
    until(face, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", 1)


def test_a_worker_that_is_killed(face, runner, worker, stored, tmp_path):
    """R25: each run and retry has a clean unit; a run that is killed before its COMMIT is done again and leaves nothing; one that is
    killed in or after it is done again, and stays stored.
    """
    with worker() as first:
        with slow_commit(face):
            runner.send("stubborn", "stubborn", str(tmp_path / "runs"))
            runner.send("keep", "easy")
            assert {first.said("stored").split()[-1].rpartition(".")[2] for _ in range(2)} == {"stubborn", "keep"}
            for where in ("before", "after", "in"):
                runner.send("keep", where, where, str(tmp_path / where))
                pid = int(first.said(where))
                if where == "in":
                    _in_commit(face)
                if runner.processes:
                    os.kill(pid, signal.SIGKILL)
                    assert where == "in" or first.said("stored").startswith(where)
            if not runner.processes:
                first.kill()
        if runner.processes:
            assert first.said("stored").startswith("in")
            assert first.stop() == 0
    if not runner.processes:
        with worker() as second:
            runner.send("keep", "next")
            assert {second.said("stored").split()[0] for _ in range(4)} == {"before", "after", "in", "next"}
            until(face, f"{_backends(runner)} AND state LIKE 'idle in transaction%'", 0, 1.0)
            assert second.stop() == 0

    until(face, _backends(runner), 0, 1.0)
    assert [name for name in stored() if name != "next 0"] == [
        "after 0", "after 1", "before 0", "easy 0", "in 0", "in 1", "stubborn 0",
    ]  # fmt: skip


@pytest.mark.parametrize("runner", [RQ], indirect=True)
def test_a_worker_that_is_killed_with_its_job(face, runner, worker, stored, tmp_path):
    """R25: the same for a worker of RQ that dies with the process of its job, before, in and after COMMIT: once its clean-up gives the
    jobs back, another worker does them again.
    """
    for where in ("before", "after", "in"):
        with contextlib.ExitStack() as stack:
            if where == "in":
                stack.enter_context(slow_commit(face))
            killed = stack.enter_context(worker())
            runner.send("keep", where, where, str(tmp_path / where))
            pid = int(killed.said(where))
            if where == "in":
                _in_commit(face)
            killed.kill()
            os.kill(pid, signal.SIGKILL)  # it has a process group of its own
    until(face, _backends(runner), 0, 1.0)
    assert stored() == ["after 0", "in 0"]
    runner.give_back()
    with worker() as last:
        assert {last.said("stored").split()[0] for _ in range(3)} == {"before", "after", "in"}
        assert last.stop() == 0

    assert stored() == ["after 0", "after 1", "before 0", "in 0", "in 1"]
