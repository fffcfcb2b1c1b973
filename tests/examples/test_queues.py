"""The examples of the queues: orders are placed, and real workers write their letters."""

import time

import pytest
import sqlalchemy as sa
from redis import Redis

from support import brokers
from support.workers import WITHIN, Worker

RUNNERS = {
    "celery": ("RabbitMQ", "celery", "-A", "examples.celery.app", "worker", "-P", "solo"),
    "rq": ("Redis", "rq.cli", "worker", "--job-class", "examples.rq.app.UnitJob", "-u", "BROKER", "QUEUE"),
    "dramatiq": ("RabbitMQ", "dramatiq", "examples.dramatiq.app:broker", "-p", "1", "-t", "1"),
    "taskiq": ("Redis", "taskiq", "worker", "examples.taskiq.app:broker", "-w", "1"),
}


@pytest.fixture(params=RUNNERS)
def setting(request, tmp_path):
    """The runner's name, its worker's command, and what both programs are told."""
    broker, *command = RUNNERS[request.param]
    address, queue = brokers.found(broker), brokers.queue()
    told = {"MAILING_DATABASE": f"sqlite:///{tmp_path}/mailing.db", "MAILING_BROKER": address, "MAILING_QUEUE": queue}
    yield request.param, [{"BROKER": address, "QUEUE": queue}.get(word, word) for word in command], told
    if broker == "RabbitMQ":
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
            brokers.drop(broker, name)
    else:
        with Redis.from_url(address) as client:
            client.delete(queue, *client.scan_iter(f"*{queue}*"))


def test_each_order_has_its_letter(setting, tmp_path):
    """R25, R26: the worker finds every order, for it is sent once the order is stored."""
    runner, command, told = setting
    with Worker(tmp_path / "log", f"examples.{runner}.app", "bread", "milk", **told) as program:
        assert program.wait() == 0, (tmp_path / "log").read_text()

    engine = sa.create_engine(told["MAILING_DATABASE"])
    ends = time.monotonic() + WITHIN
    with Worker(tmp_path / "log", *command, **told) as worker:
        while True:
            with engine.connect() as connection:
                letters = connection.scalars(sa.text("SELECT text FROM letters ORDER BY order_id")).all()
            if len(letters) == 2:
                break
            assert time.monotonic() < ends, (tmp_path / "log").read_text()
            time.sleep(0.05)
        assert worker.stop() == 0
    engine.dispose()

    assert letters == ["Your bread is on its way.", "Your milk is on its way."]
