"""What the examples of the queues have in common: an order is stored, and once it is, a worker writes its letter.

``examples/celery/app.py``, ``rq``, ``dramatiq`` and ``taskiq`` differ in who runs the worker. Where the data is, and the broker, is
said by ``MAILING_DATABASE``, ``MAILING_BROKER`` and ``MAILING_QUEUE``.
"""

from __future__ import annotations

import os
import sys

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DATABASE = os.environ.get("MAILING_DATABASE", "sqlite:///mailing.db")
QUEUE = os.environ.get("MAILING_QUEUE", "mailing")
ITEMS = sys.argv[1:] or ["bread", "milk"]


def broker(default: str) -> str:
    return os.environ.get("MAILING_BROKER", default)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class Letter(Base):
    """A queue may deliver a message twice. The primary key lets an order have one letter, whatever happens."""

    __tablename__ = "letters"
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    text: Mapped[str]
