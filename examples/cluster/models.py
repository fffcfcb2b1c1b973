"""What the cluster stores: orders, the mails that went out for them, and the nights on which the nightly job ran."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure.jobs import outbox
from tenure.jobs.clock import Now


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class Mail(Base):
    """A mail that had an effect; a second one for the same order is refused by the database."""

    __tablename__ = "mails"
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True, autoincrement=False)


class Attempt(Base):
    """A call of the mail server, whatever came of it."""

    __tablename__ = "attempts"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))


class Night(Base):
    __tablename__ = "nights"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(default=Now())


messages = outbox.table(Base.metadata)
EVERY = 0.5  # seconds from one night to the next
