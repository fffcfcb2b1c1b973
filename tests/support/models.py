"""The tables that the tests work on: people, their orders, and what is in them."""

import sqlalchemy as sa
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """All tables of the tests."""


class User(Base):
    """A person. Two with one name are refused by the database."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    balance: Mapped[int] = mapped_column(default=0)

    orders: Mapped[list["Order"]] = relationship(back_populates="user")

    def __repr__(self) -> str:
        return f"User({self.name!r})"


class Order(Base):
    """What a person ordered. An order of nobody is refused by the database."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    note: Mapped[str] = mapped_column(String(200), default="")

    user: Mapped[User] = relationship(back_populates="orders")
    items: Mapped[list["Item"]] = relationship(back_populates="order", cascade="all, delete-orphan")


class Item(Base):
    """One line of an order."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    name: Mapped[str] = mapped_column(String(50))
    quantity: Mapped[int] = mapped_column(default=1)

    order: Mapped[Order] = relationship(back_populates="items")


class Pledge(Base):
    """A promise of a person who may not exist yet: the database asks at COMMIT only, so COMMIT itself can fail.

    ``session.add(Pledge(user_id=4711))`` flushes well and fails at the commit. MySQL and MariaDB know no deferred
    constraints, so this table is not there.
    """

    __tablename__ = "pledges"
    __table_args__ = {"info": {"dialects": ("sqlite", "postgresql")}}

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, deferrable=True, initially="DEFERRED"))


def tables(dialect: str) -> list[sa.Table]:
    """The tables that *dialect* can have, those that others point at first."""
    return [table for table in Base.metadata.sorted_tables if dialect in table.info.get("dialects", (dialect,))]
