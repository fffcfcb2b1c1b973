"""The database and the outbox as every process of the cluster has them, and what happens when somebody orders."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from examples.cluster import ledger, settings
from examples.cluster.models import Order, messages
from tenure import Database
from tenure.jobs import outbox

db = Database(
    settings.DATABASE,
    pooler="pgbouncer",
    pool_size=settings.ROLES[settings.ROLE].pool,
    max_overflow=0,
    replicas=[settings.REPLICA] if settings.REPLICA else [],
    connect_args={"connect_timeout": 5},
)
box = outbox.Outbox(db, messages)


class OutOfStock(Exception):
    """There is none left."""


def place(session: Session, token: str, customer_id: int, item: str) -> int:
    """Order an *item*, with the message that a receipt is due; the order's number. The same *token* gives the same order."""
    order = session.scalar(select(Order).where(Order.token == token))
    if order is None:
        order = Order(token=token, customer_id=customer_id, item=item)
        session.add(order)
        session.flush()
        box.put("receipt", order.id)
        if item == "lemons":  # known only after all the writing, so that there is something to undo
            raise OutOfStock(f"there are no {item} left")
    return order.id


def leave() -> None:
    """The process ends: its last word is how many connections are out."""
    status = db.status()
    ledger.note("end", out=status.in_use + sum(one.in_use for one in status.replicas), peak=status.peak)
    db.close()
