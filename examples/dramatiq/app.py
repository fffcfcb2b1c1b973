"""Dramatiq on RabbitMQ: ``dramatiq examples.dramatiq.app:broker``, and ``python -m examples.dramatiq.app bread milk``."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from sqlalchemy.orm import Session

from examples import mailing
from examples.mailing import Letter, Order
from tenure import Database
from tenure.jobs.dramatiq import install

broker = RabbitmqBroker(url=mailing.broker("amqp://guest:guest@127.0.0.1/%2F"))
db = Database(mailing.DATABASE)
install(broker, db)


@dramatiq.actor(broker=broker, queue_name=mailing.QUEUE, max_retries=3)
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
    db.on_commit(write.send, order.id)  # the worker finds the order


def main() -> None:
    mailing.Base.metadata.create_all(db.engine)
    for item in mailing.ITEMS:
        place(item)
    db.close()
    broker.close()


if __name__ == "__main__":
    main()
