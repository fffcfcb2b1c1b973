"""The Celery worker: ``celery -A examples.cluster.tasks worker``. It mails receipts."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery, signals
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from examples.cluster import ledger, settings
from examples.cluster.models import Customer, Order, Receipt
from examples.cluster.shop import db, leave
from tenure.exceptions import CommitUnknown
from tenure.jobs.celery import install

app = Celery("cluster", broker=settings.BROKER)
app.conf.update(
    task_default_queue=settings.QUEUE,
    broker_transport_options={"confirm_publish": True},  # sent is what RabbitMQ has, not what was written to a socket
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
)
install(app, db)


@app.task(name="receipt", autoretry_for=(DBAPIError, CommitUnknown), retry_backoff=1, retry_backoff_max=5, max_retries=None)
def receipt(order_id: int) -> None:
    """Mail a receipt and give the customer a point. If this order's message comes twice, or to two at once, the second does nothing.

    The row is written first: whoever has the same message waits there until it is known what became of it. So it does not matter
    whether a run that lost its database had been committed: it is tried again for as long as it takes.
    """
    session = db.session
    if not session.scalar(insert(Receipt).values(order_id=order_id).on_conflict_do_nothing().returning(Receipt.order_id)):
        return
    order = session.get_one(Order, order_id)
    session.execute(update(Customer).where(Customer.id == order.customer_id).values(points=Customer.points + 1))
    ledger.note("mail", order=order_id)  # it is out, whatever becomes of this process
    time.sleep(settings.MAILING)  # until the mail server says so


@signals.worker_ready.connect
def _up(**_: Any) -> None:
    ledger.note("up")


@signals.worker_process_shutdown.connect
def _leave(**_: Any) -> None:
    leave()
