"""What the shop does without being asked, five times a second: functions of a ``Session``. Each run is a unit of its own."""

from __future__ import annotations

import itertools
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from examples.shop.models import Account, JobRun, Order
from examples.shop.trade import pay

EVERY = 0.2  # seconds


def solidarity(session: Session) -> str:
    """The richest account gives the poorest a coin."""
    poorest, *_, richest = session.scalars(select(Account.id).order_by(Account.balance, Account.id))
    pay(session, richest, poorest, 1, purpose="solidarity")
    return write_down(session, "solidarity", f"{richest} to {poorest}")


def report(session: Session) -> str:
    """How many orders there are."""
    orders = session.scalar(select(func.count()).select_from(Order))
    return write_down(session, "report", f"{orders} orders")


attempts = itertools.count(1)


def rates(session: Session) -> str:
    """Fetches rates of exchange from a bank that does not always answer."""
    token = write_down(session, "rates", "1.0")
    if next(attempts) % 3 == 0:
        raise ConnectionError("the bank has hung up")  # the run is a unit: what it wrote is not stored
    return token


def write_down(session: Session, job: str, note: str) -> str:
    run = JobRun(job=job, token=uuid4().hex, note=note)
    session.add(run)
    return run.token


ALL = (solidarity, report, rates)
