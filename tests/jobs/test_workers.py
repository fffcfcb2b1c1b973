"""RQ, Dramatiq and taskiq with real workers, which are killed before, in and after COMMIT."""

import asyncio
import os
import signal

import dramatiq
import pytest
import rq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
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


@pytest.fixture(params=[Dramatiq, RQ, Taskiq])
def runner(request):
    queue = brokers.queue()
    made = request.param(brokers.found(request.param.broker), queue)
    made.queue = queue
    yield made
    made.close()


def test_a_worker_that_is_killed(face, runner, stored, tmp_path):
    """R25: each run and retry has a clean unit; a run that is killed before its COMMIT is done again and leaves nothing; one that is
    killed in or after it is done again, and stays stored.
    """
    url = face.sync_engine.url.update_query_dict({"application_name": runner.queue}).render_as_string(hide_password=False)
    backends = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{runner.queue}'"

    def worker():
        environment = {"WORKER_BROKER": brokers.address(runner.broker), "WORKER_QUEUE": runner.queue, "WORKER_DATABASE": url}
        return Worker(tmp_path / "worker.log", *runner.command, **environment)

    with worker() as first:
        with slow_commit(face):
            runner.send("stubborn", "stubborn", str(tmp_path / "runs"))
            runner.send("keep", "easy")
            assert {first.said("stored").split()[-1].rpartition(".")[2] for _ in range(2)} == {"stubborn", "keep"}
            for where in ("before", "after", "in"):
                runner.send("keep", where, where, str(tmp_path / where))
                pid = int(first.said(where))
                if where == "in":
                    until(face, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", 1)
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
            until(face, f"{backends} AND state LIKE 'idle in transaction%'", 0, 1.0)
            assert second.stop() == 0

    until(face, backends, 0, 1.0)
    assert [name for name in stored() if name != "next 0"] == [
        "after 0", "after 1", "before 0", "easy 0", "in 0", "in 1", "stubborn 0",
    ]  # fmt: skip
