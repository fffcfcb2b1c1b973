"""Celery on RabbitMQ: ``celery -A examples.celery.app worker``, and ``python -m examples.celery.app bread milk``."""

from __future__ import annotations

from celery import Celery
from sqlalchemy.orm import Session

from examples import mailing
from examples.mailing import Letter, Order
from tenure import Database
from tenure.jobs.celery import install

app = Celery("mailing", broker=mailing.broker("amqp://guest:guest@127.0.0.1"))
app.conf.task_default_queue = mailing.QUEUE
db = Database(mailing.DATABASE)
install(app, db)


@app.task(name="write")  # this module is __main__ where orders are placed, and the worker knows it by another name
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
    db.on_commit(write.delay, order.id)  # the worker finds the order


def main() -> None:
    mailing.Base.metadata.create_all(db.engine)
    for item in mailing.ITEMS:
        place(item)
    db.close()


if __name__ == "__main__":
    main()
