"""What the shop stores."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure.jobs import once, outbox

CUSTOMERS = 5


class Base(DeclarativeBase): ...


class Customer(Base):
    """Who orders, and is given one point for each order when its receipt is mailed."""

    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    points: Mapped[int] = mapped_column(default=0)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(unique=True)  # whoever sends it twice has ordered once
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))
    item: Mapped[str]


class Receipt(Base):
    """Its key lets the work for an order have its effect once, however often the order's message comes."""

    __tablename__ = "receipts"
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True, autoincrement=False)


class Night(Base):
    """A run of the nightly job. Nothing here keeps a second one of the same tick away: that is left to ``once``."""

    __tablename__ = "nights"
    id: Mapped[int] = mapped_column(primary_key=True)
    tick: Mapped[float]  # when it was due, by the database's clock
    node: Mapped[str]
    process: Mapped[str]
    orders: Mapped[int]


messages = outbox.table(Base.metadata)
runs = once.table(Base.metadata)
