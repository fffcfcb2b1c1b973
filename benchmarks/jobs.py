"""What a job costs: the same insert in its own unit, and with a session by hand, in a thread pool and through real brokers."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.orm import Session

from benchmarks import models
from benchmarks.rounds import Timed, Turn, measure, measure_turns
from tenure import Database

BY_HAND = "try, commit, rollback, close"
PINGED = "the same, pool_pre_ping"
UNIT = "a unit of tenure"

RABBITMQ = os.environ.get("TENURE_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672/%2F")
REDIS = os.environ.get("TENURE_TEST_REDIS", "redis://127.0.0.1:6379/0")
Send = Callable[[str, str], None]


def threads(url: URL, rounds: int) -> dict[str, Timed]:
    """A thread pool of one: submit a job, and wait for it."""
    engine, pinged, db = create_engine(url), create_engine(url, pool_pre_ping=True), Database(url)
    models.create(engine)

    def by_hand(engine: Engine = engine) -> None:
        session = Session(engine)
        try:
            session.add(models.User(name="bob"))
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    @db.unit
    def unit(session: Session) -> None:
        session.add(models.User(name="bob"))

    try:
        with ThreadPoolExecutor(1) as pool:
            variants = {
                BY_HAND: lambda: pool.submit(by_hand).result(),
                PINGED: lambda: pool.submit(by_hand, pinged).result(),
                UNIT: lambda: pool.submit(unit).result(),
            }
            return measure(variants, rounds)
    finally:
        db.close()
        engine.dispose()
        pinged.dispose()


@contextmanager
def _celery() -> Iterator[tuple[str, Send]]:
    import celery

    app = celery.Celery("sender", broker=RABBITMQ, set_as_current=False)
    with app.producer_pool.acquire() as producer:
        yield RABBITMQ, lambda queue, what: app.send_task("job", [what], queue=queue, producer=producer) and None
    app.close()


@contextmanager
def _rq() -> Iterator[tuple[str, Send]]:
    import rq
    from redis import Redis

    with Redis.from_url(REDIS) as connection:
        yield (
            REDIS,
            lambda queue, what: (
                rq.Queue(queue, connection=connection).enqueue("benchmarks.jobworker.job", what, result_ttl=0) and None
            ),
        )


@contextmanager
def _dramatiq() -> Iterator[tuple[str, Send]]:
    import dramatiq
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    broker = RabbitmqBroker(url=RABBITMQ)

    def send(queue: str, what: str) -> None:
        broker.declare_queue(queue, ensure=True)
        broker.enqueue(dramatiq.Message(queue, "job", (what,), {}, {}))

    yield RABBITMQ, send
    broker.close()


def missing(runner: str) -> str | None:
    """Why its broker cannot be used, or None."""
    import kombu

    address = REDIS if runner == "rq" else RABBITMQ
    try:
        with kombu.Connection(address, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
    except Exception as error:  # whatever keeps it from answering
        return f"{address} does not answer ({error})"
    return None


RUNNERS: dict[str, Any] = {"celery": _celery, "rq": _rq, "dramatiq": _dramatiq}


@contextmanager
def _worker(runner: str, kind: str, url: URL, broker: str, send: Send) -> Iterator[Turn]:
    queue = f"tenure-bench-{uuid.uuid4().hex[:8]}"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.jobworker", runner, kind]
    process = subprocess.Popen(
        [*command, url.render_as_string(hide_password=False), broker, queue], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def turn(count: int) -> float:
        for what in ("gate", *["work"] * count, "done"):
            send(queue, what)
        process.stdin.write(b"\n")
        process.stdin.flush()
        for line in process.stdout:  # Celery greets first
            if line.startswith(b"took "):
                return float(line.split()[1])
        raise RuntimeError(f"the worker of {runner} has ended")

    try:
        yield turn
    finally:
        process.kill()
        process.communicate()
        _drop(queue)


def _drop(queue: str) -> None:
    import kombu
    from redis import Redis

    with kombu.Connection(RABBITMQ) as connection:
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
            connection.default_channel.queue_delete(name)
    with Redis.from_url(REDIS) as client:
        client.delete(f"rq:queue:{queue}")


def through(runner: str, url: URL, rounds: int) -> dict[str, Timed]:
    """Jobs that wait in a queue, and one worker for each way to store a row."""
    models.create(engine := create_engine(url))
    engine.dispose()
    with ExitStack() as stack:
        broker, send = stack.enter_context(RUNNERS[runner]())
        turns = {
            name: stack.enter_context(_worker(runner, kind, url, broker, send))
            for name, kind in ((BY_HAND, "hand"), (UNIT, "tenure"))
        }
        return measure_turns(turns, rounds)
