"""What the market does without being asked. ``db.session`` is the session of the run: each run is a unit, named after the job."""

from __future__ import annotations

import itertools
import logging
import threading
from queue import SimpleQueue
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from examples.webpy.models import Account, JobRun, Order, pay
from tenure import Database

log = logging.getLogger(__name__)


def solidarity(db: Database) -> str:
    """The richest account gives the poorest a coin."""
    by_balance = select(Account.id).order_by(Account.balance, Account.id)
    poorest, *_, richest = db.session.scalars(by_balance)
    pay(db.session, richest, poorest, 1, purpose="solidarity")
    return write_down(db, "solidarity", f"{richest} to {poorest}")


def report(db: Database) -> str:
    """How many orders there are."""
    orders = db.session.scalar(select(func.count()).select_from(Order))
    return write_down(db, "report", f"{orders} orders")


attempts = itertools.count(1)


def rates(db: Database) -> str:
    """Fetches rates of exchange from a bank that does not always answer."""
    token = write_down(db, "rates", "1.0")
    if next(attempts) % 3 == 0:
        raise ConnectionError("the bank has hung up")  # the run is a unit: what it wrote is not stored
    return token


def write_down(db: Database, job: str, note: str) -> str:
    run = JobRun(job=job, token=uuid4().hex, note=note)
    db.session.add(run)
    return run.token


class Courier(threading.Thread):
    """Ships orders in a thread of its own, each in a unit of its own."""

    def __init__(self, db: Database) -> None:
        super().__init__(name="courier")
        self._orders: SimpleQueue[int | None] = SimpleQueue()
        self._mark_shipped = db.unit(mark_shipped)
        for order_id in db.unit(unshipped)():  # from before the market was last closed, or killed
            self.ship(order_id)

    def ship(self, order_id: int) -> None:
        self._orders.put(order_id)

    def run(self) -> None:
        while (order_id := self._orders.get()) is not None:
            try:
                self._mark_shipped(order_id)
            except Exception:
                log.exception("order %s was not shipped", order_id)

    def finish(self) -> None:
        """Ship what is left, then go home."""
        self._orders.put(None)
        self.join()


def unshipped(session: Session) -> list[int]:
    return list(session.scalars(select(Order.id).where(~Order.shipped).order_by(Order.id)))


def mark_shipped(session: Session, order_id: int) -> None:
    session.get_one(Order, order_id).shipped = True
