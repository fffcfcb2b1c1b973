"""RQ on Redis: ``rq worker --job-class examples.rq.app.UnitJob mailing``, and ``python -m examples.rq.app bread milk``."""

from __future__ import annotations

from redis import Redis
from rq import Queue, Retry
from sqlalchemy.orm import Session

from examples import mailing
from examples.mailing import Letter, Order
from tenure import Database
from tenure.jobs.rq import unit_job

db = Database(mailing.DATABASE)
UnitJob = unit_job(db)
queue = Queue(mailing.QUEUE, connection=Redis.from_url(mailing.broker("redis://127.0.0.1")), job_class=UnitJob)


def write(order_id: int) -> None:
    session = db.session
    if session.get(Letter, order_id) is None:
        order = session.get_one(Order, order_id)
        session.add(Letter(order_id=order_id, text=f"Your {order.item} is on its way."))


@db.unit
def place(session: Session, item: str) -> None:
    order = Order(item=item)
    session.add(order)
    session.flush()
    db.on_commit(queue.enqueue, "examples.rq.app.write", order.id, retry=Retry(max=2))  # the worker finds the order


def main() -> None:
    mailing.Base.metadata.create_all(db.engine)
    for item in mailing.ITEMS:
        place(item)
    db.close()


if __name__ == "__main__":
    main()
