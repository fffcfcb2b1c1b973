"""``python -m benchmarks.jobworker RUNNER KIND DATABASE BROKER QUEUE``: a worker that stores a row for each job, and times them.

The job ``gate`` waits for a line on standard input, so that all jobs are in the queue when the first one runs; ``done`` prints the
seconds since then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from benchmarks.models import User
from tenure import Database

_began = 0.0


def _timed(store: Callable[[], None], what: str) -> None:
    global _began
    if what == "work":
        store()
    elif what == "gate":
        os.read(0, 1)
        _began = perf_counter()
    else:
        os.write(1, f"took {perf_counter() - _began}\n".encode())


KIND, DATABASE = sys.argv[2:4] if __name__ == "__main__" else ("hand", "sqlite://")
engine = create_engine(DATABASE)
db = Database(DATABASE)


def _by_hand() -> None:
    session = Session(engine)
    try:
        session.add(User(name="bob"))
        session.commit()
    except BaseException:
        session.rollback()
        raise
    finally:
        session.close()


def _in_its_unit() -> None:
    db.session.add(User(name="bob"))


def job(what: str) -> None:
    _timed(_by_hand if KIND == "hand" else _in_its_unit, what)


def celery(broker: str, queue: str) -> None:
    from celery import Celery

    from tenure.jobs.celery import install

    app = Celery("bench", broker=broker)
    app.conf.update(task_default_queue=queue, task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=0)
    if KIND == "tenure":
        install(app, db)
    app.task(job, name="job")
    app.worker_main(["worker", "-P", "solo", "-l", "error", "--without-gossip", "--without-mingle", "-n", queue])


def rq(broker: str, queue: str) -> None:
    from redis import Redis
    from rq import SimpleWorker

    from tenure.jobs.rq import unit_job

    options: dict[str, Any] = {"job_class": unit_job(db)} if KIND == "tenure" else {}
    sys.modules["benchmarks.jobworker"] = sys.modules["__main__"]  # where the jobs are looked for
    SimpleWorker([queue], connection=Redis.from_url(broker), log_job_description=False, **options).work(logging_level="ERROR")


def dramatiq(broker: str, queue: str) -> None:
    import logging

    import dramatiq as runner
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    from tenure.jobs.dramatiq import install

    logging.disable(logging.ERROR)
    made = RabbitmqBroker(url=broker)
    if KIND == "tenure":
        install(made, db)
    runner.actor(job, broker=made, actor_name="job", queue_name=queue)
    worker = runner.Worker(made, worker_threads=1)
    worker.start()
    worker.consumers[queue].join()


if __name__ == "__main__":
    {"celery": celery, "rq": rq, "dramatiq": dramatiq}[sys.argv[1]](*sys.argv[4:])
