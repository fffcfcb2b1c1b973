"""Celery with real workers on RabbitMQ and Redis, which are killed before, in and after COMMIT."""

import os
import signal

import celery
import pytest

from support import brokers
from support.workers import Worker, slow_commit, until

pytestmark = [pytest.mark.drivers("psycopg")]


class Shop:
    """A queue, the tasks that are sent to it, and workers."""

    def __init__(self, broker, url, folder):
        self.broker, self.url, self.folder = broker, url, folder
        self.address, self.queue = brokers.found(broker), brokers.queue()
        self.app = celery.Celery("sender", broker=self.address, set_as_current=False)
        self.app.conf.broker_transport_options = brokers.options(self.queue)

    def send(self, name, *args):
        self.app.send_task(name, args, queue=self.queue)

    def worker(self, *options):
        command = (
            "celery",
            "-A",
            "jobs.workers.celery_tasks",
            "worker",
            "--without-gossip",
            "--without-mingle",
            "-l",
            "info",
            *options,
        )
        return Worker(
            self.folder / "worker.log", *command,
            WORKER_BROKER=self.address, WORKER_QUEUE=self.queue,
            WORKER_DATABASE=self.url.update_query_dict({"application_name": self.queue}).render_as_string(hide_password=False),
        )  # fmt: skip

    def backends(self, where="true"):
        """How many of the workers' connections the server knows."""
        return f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{self.queue}' AND {where}"


@pytest.fixture
def shop(request, face, tmp_path):
    made = Shop(request.param, face.sync_engine.url, tmp_path)
    yield made
    made.app.close()
    brokers.drop(made.broker, made.queue)


@pytest.mark.parametrize("shop", ["RabbitMQ"], indirect=True)
def test_a_worker_whose_processes_are_killed(face, shop, stored):
    """R25: each run and retry has a clean unit; a run that is killed before its COMMIT is done again and leaves nothing; one that is
    killed in or after it is done again, and stays stored.
    """
    with shop.worker("-c", "3") as worker:
        with slow_commit(face):
            shop.send("shop.stubborn", "stubborn")
            shop.send("shop.keep", "easy")
            assert {worker.said("stored").split()[-1] for _ in range(2)} == {"shop.stubborn", "shop.keep"}
            pids = []
            for where in ("before", "after", "in"):
                shop.send("shop.keep", where, where, str(shop.folder / where))
                pids.append(int(worker.said(where)))
            until(face, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", 1)
            for pid in pids:  # Celery looks for dead ones every 5 s
                os.kill(pid, signal.SIGKILL)
        assert {worker.said("stored").split()[0] for _ in range(3)} == {"before", "after", "in"}
        until(face, shop.backends("state LIKE 'idle in transaction%'"), 0, 1.0)
        assert worker.stop() == 0

    until(face, shop.backends(), 0, 1.0)
    assert stored() == ["after 0", "after 1", "before 0", "easy 0", "in 0", "in 1", "stubborn 0"]


@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
@pytest.mark.parametrize("shop", ["RabbitMQ"], indirect=True)
def test_a_worker_of_another_pool_is_killed(face, shop, pool, stored, monkeypatch):
    """R25: the same where the runs of a worker are threads or greenlets of one process, which is killed with all of them."""
    options = ("-P", pool, "-c", "4")
    if pool == "eventlet":
        monkeypatch.setenv("PSYCOPG_WAIT_FUNC", "wait_selector")
    with shop.worker(*options) as worker, slow_commit(face):
        shop.send("shop.stubborn", "stubborn")
        shop.send("shop.keep", "easy")
        assert {worker.said("stored").split()[-1] for _ in range(2)} == {"shop.stubborn", "shop.keep"}
        for where in ("before", "after", "in"):
            shop.send("shop.keep", where, where, str(shop.folder / where))
            worker.said(where)
        until(face, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", 1)
        worker.kill()
    until(face, shop.backends(), 0, 1.0)
    with shop.worker(*options) as worker:
        assert {worker.said("stored").split()[0] for _ in range(3)} == {"before", "after", "in"}
        until(face, shop.backends("state LIKE 'idle in transaction%'"), 0, 1.0)
        assert worker.stop() == 0

    until(face, shop.backends(), 0, 1.0)
    assert "greenlets-blocked" not in (shop.folder / "worker.log").read_text()
    assert stored() == ["after 0", "after 1", "before 0", "easy 0", "in 0", "in 1", "stubborn 0"]


@pytest.mark.parametrize("shop", ["Redis"], indirect=True)
def test_a_worker_that_is_killed(face, shop, stored):
    """R25: with all its processes, after a COMMIT and before the acknowledgement: another worker runs the task again."""
    with shop.worker("-P", "solo") as worker:
        shop.send("shop.keep", "after", "after", str(shop.folder / "after"))
        worker.said("after")
        worker.kill()
    with shop.worker("-P", "solo") as worker:
        assert worker.said("stored").startswith("after ")
        assert worker.stop() == 0

    assert stored() == ["after 0", "after 1"]
    until(face, shop.backends(), 0, 1.0)
