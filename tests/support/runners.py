"""Each runner as its tests use it: how its worker is started, how a job is sent, and what is removed afterwards."""

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar

import celery
import dramatiq
import rq
import sqlalchemy as sa
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from redis import Redis
from taskiq.kicker import AsyncKicker
from taskiq_redis import RedisStreamBroker

from support import brokers
from support.workers import Worker


class Runner:
    """A queue of its own, and workers on it."""

    broker: ClassVar[str]
    processes: ClassVar[bool] = False
    """Whether each job has a process of its own, which the worker survives."""
    survives: ClassVar[bool] = True
    """Whether a worker goes on when its broker comes back; else it is to be started again."""
    again: ClassVar[bool] = True
    """Whether a job that returned while the broker was away runs again; else it is acknowledged when that is back."""
    command: tuple[str, ...]
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, address: str, queue: str) -> None:
        self.address, self.queue = address, queue

    def worker(self, database: sa.URL, log: Path) -> Worker:
        """A worker whose connections are found by ``backends``."""
        named = database.update_query_dict({"application_name": self.queue})
        return Worker(
            log, *self.command, WORKER_BROKER=self.address, WORKER_QUEUE=self.queue,
            WORKER_DATABASE=named.render_as_string(hide_password=False), **self.environment,
        )  # fmt: skip

    def backends(self, where: str = "true") -> str:
        """The statement that counts the workers' connections which the server knows."""
        return f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{self.queue}' AND {where}"

    def send(self, name: str, *args: Any) -> None:
        """A job for the function of this *name* in ``jobs.workers.body``."""
        raise NotImplementedError

    def give_back(self) -> None:
        """What a worker's clean-up does with the jobs of a dead one, once a minute or more has passed; for RQ only."""

    def close(self) -> None:
        """Let go of the broker, which may be gone."""

    def drop(self) -> None:
        """Remove the queue from its broker, and let go of that."""
        raise NotImplementedError


class Celery(Runner):
    """On RabbitMQ."""

    broker = "RabbitMQ"

    pool = ("-P", "threads", "-c", "4")

    def __init__(self, address: str, queue: str) -> None:
        super().__init__(address, queue)
        quiet = ("--without-gossip", "--without-mingle")
        self.command = ("celery", "-A", "jobs.workers.celery_tasks", "worker", "-l", "info", *self.pool, *quiet)
        self.app = celery.Celery("sender", broker=address, set_as_current=False)
        self.app.conf.broker_transport_options = {**brokers.options(queue), "confirm_publish": True}

    def send(self, name: str, *args: Any) -> None:
        self.app.send_task(f"shop.{name}", args, queue=self.queue)

    def close(self) -> None:
        self.app.close()

    def drop(self) -> None:
        self.close()
        brokers.drop(self.broker, self.queue)


class CeleryInProcesses(Celery):
    """With a process for each of its tasks that run at once; it looks every 5 s for dead ones."""

    pool = ("-P", "prefork", "-c", "3")


class CeleryOnGevent(Celery):
    """With greenlets of gevent."""

    pool = ("-P", "gevent", "-c", "4")


class CeleryOnEventlet(Celery):
    """With greenlets of eventlet."""

    pool = ("-P", "eventlet", "-c", "4")
    environment: ClassVar = {"PSYCOPG_WAIT_FUNC": "wait_selector"}


class CeleryOnRedis(Celery):
    """On Redis, where what a worker took and did not do is given to the next one that looks."""

    broker = "Redis"
    survives = False


class Dramatiq(Runner):
    """On RabbitMQ, which gives what a dead worker had to another one."""

    broker = "RabbitMQ"
    command = ("dramatiq", "jobs.workers.dramatiq_actors:broker", "-p", "1", "-t", "4")

    def __init__(self, address: str, queue: str) -> None:
        super().__init__(address, queue)
        self._broker = self._connect()

    def _connect(self) -> dramatiq.Broker:
        broker = RabbitmqBroker(url=self.address, confirm_delivery=True)
        broker.declare_queue(self.queue, ensure=True)
        return broker

    def send(self, name: str, *args: Any) -> None:
        self._broker.enqueue(dramatiq.Message(self.queue, f"shop.{name}", args, {}, {}))

    def close(self) -> None:
        self._broker.close()

    def drop(self) -> None:
        self.close()
        for name in (self.queue, f"{self.queue}.DQ", f"{self.queue}.XQ"):
            brokers.drop("RabbitMQ", name)


class DramatiqOnRedis(Dramatiq):
    """On Redis, where another worker sees that one has not said for a time that it lives."""

    broker = "Redis"
    again = False

    def _connect(self) -> dramatiq.Broker:
        broker = RedisBroker(url=self.address, namespace=self.queue)
        broker.declare_queue(self.queue)
        return broker

    def close(self) -> None:
        super().close()
        self._broker.client.close()

    def drop(self) -> None:
        client = self._broker.client
        for key in client.scan_iter(f"{self.queue}*"):
            client.delete(key)
        self.close()


class RQ(Runner):
    """On Redis; its worker sees that a process is dead, and the job runs again as it was sent: ``Retry(max=2)``."""

    broker = "Redis"
    processes = True
    survives = False

    def __init__(self, address: str, queue: str) -> None:
        super().__init__(address, queue)
        self.command = ("rq.cli", "worker", "-u", address, "--job-class", "jobs.workers.rq_jobs.UnitJob", queue)
        self._redis = Redis.from_url(address)
        self._queue = rq.Queue(queue, connection=self._redis)

    def send(self, name: str, *args: Any) -> None:
        self._queue.enqueue(f"jobs.workers.body.{name}", *args, retry=rq.Retry(max=2), result_ttl=0, failure_ttl=60)

    def give_back(self) -> None:
        rq.registry.StartedJobRegistry(queue=self._queue).cleanup(timestamp=time.time() + 3600)

    def close(self) -> None:
        self._redis.close()

    def drop(self) -> None:
        self._queue.delete(delete_jobs=True)
        self.close()


class Taskiq(Runner):
    """On streams of Redis, which give what a dead worker had to another one when that takes its next message."""

    broker = "Redis"
    command = ("taskiq", "worker", "jobs.workers.taskiq_tasks:broker", "-w", "1")

    def send(self, name: str, *args: Any) -> None:
        asyncio.run(self._kick(name, args))

    async def _kick(self, name: str, args: Any) -> None:
        broker = RedisStreamBroker(url=self.address, queue_name=self.queue)
        await broker.startup()
        await AsyncKicker(f"shop.{name}", broker, {"retry_on_error": "True", "max_retries": "5"}).kiq(*args)
        await broker.shutdown()

    def drop(self) -> None:
        with Redis.from_url(self.address) as client:
            client.delete(self.queue, *client.scan_iter(f"*{self.queue}*"))
