"""The Celery app of the tests' workers."""

import os

import celery

from jobs.workers import body
from tenure.jobs.celery import install

from support import brokers

app = celery.Celery("shop", broker=os.environ["WORKER_BROKER"])
app.conf.update(
    task_default_queue=os.environ["WORKER_QUEUE"],
    broker_transport_options=brokers.options(os.environ["WORKER_QUEUE"]),
    worker_prefetch_multiplier=1,
)
install(app, body.db)

keep = app.task(body.keep, name="shop.keep")
fall = app.task(body.fall, name="shop.fall")


@app.task(bind=True, name="shop.stubborn", max_retries=5)
def stubborn(self, name, _file=""):
    """Succeeds at the third run; each writes first."""
    body.keep(name)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
