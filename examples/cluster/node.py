"""One process of the cluster: ``python -m examples.cluster.node shop|relay|nightly URL``. SIGTERM ends it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time

from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.orm import Session

from examples.cluster.models import EVERY, Attempt, Mail, Night, Order, messages
from tenure import Database
from tenure.jobs import outbox
from tenure.jobs.once import once

db = Database(sys.argv[2], pool_size=3, max_overflow=0)
box = outbox.Outbox(db, messages)


@db.unit
def order(session: Session, number: int) -> None:
    """Store an order and the message about it; every fifth one fails, and neither is stored."""
    placed = Order(item=f"item {number}")
    session.add(placed)
    session.flush()
    box.put("mail", placed.id)
    if number % 5 == 4:
        raise LookupError("out of stock")


def mail(order_id: int) -> None:
    """Send a mail. The mail server takes 2 ms, notes that it was called, and forgets a mail that it has seen."""
    time.sleep(0.002)
    with db.unit() as session:
        session.add(Attempt(order_id=order_id))
        if session.get(Mail, order_id) is None:
            session.add(Mail(order_id=order_id))


@once(db, "nightly", every=EVERY)
@db.unit
def nightly(session: Session) -> None:
    session.add(Night())
    session.flush()
    time.sleep(0.05)


def shop() -> None:
    number = 0
    while not ended.is_set():
        try:
            order(number)
        except LookupError:
            pass
        number += 1
        time.sleep(0.01)


def fire() -> None:
    """A scheduler, as each node of the cluster has one."""
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(nightly, "interval", seconds=EVERY, coalesce=True)
    scheduler.start()
    while not ended.is_set():
        time.sleep(0.05)
    scheduler.shutdown()


def relay() -> None:
    made.run()


ended = threading.Event()
made = box.relay({"mail": mail}, batch=20, poll=0.1)


def end(_number: int, _frame: object) -> None:
    ended.set()
    made.stop()


if __name__ == "__main__":
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a night that comes while the last goes on is as it should be
    signal.signal(signal.SIGTERM, end)
    print("up", flush=True)
    {"shop": shop, "relay": relay, "nightly": fire}[sys.argv[1]]()
    db.close()
