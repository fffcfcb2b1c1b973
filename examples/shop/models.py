"""What the shop keeps. Plain declarative models: nothing here knows who runs their sessions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "shop_account"
    __table_args__ = (CheckConstraint("balance >= 0", name="shop_account_in_credit"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str] = mapped_column(String(60))
    opening: Mapped[int]
    balance: Mapped[int]


class Payment(Base):
    """Money that went from one account to another. An account's balance is its opening and its payments, at any moment."""

    __tablename__ = "shop_payment"
    __table_args__ = (CheckConstraint("amount > 0", name="shop_payment_forward"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    purpose: Mapped[str] = mapped_column(String(20))
    token: Mapped[str | None] = mapped_column(String(60), unique=True)  # whoever sends a request twice is paid once
    source_id: Mapped[int] = mapped_column(ForeignKey("shop_account.id"), index=True)
    target_id: Mapped[int] = mapped_column(ForeignKey("shop_account.id"), index=True)
    amount: Mapped[int]


class Order(Base):
    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(60), unique=True)
    item: Mapped[str] = mapped_column(String(60))
    payment_id: Mapped[int] = mapped_column(ForeignKey("shop_payment.id"), unique=True)
    # Who recommended it is checked by the database, at COMMIT.
    friend_id: Mapped[int | None] = mapped_column(ForeignKey("shop_account.id", deferrable=True, initially="DEFERRED"))
    shipped: Mapped[bool] = mapped_column(default=False)

    payment: Mapped[Payment] = relationship()


class JobRun(Base):
    __tablename__ = "shop_job_run"

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(String(20))
    token: Mapped[str] = mapped_column(String(60), unique=True)
    note: Mapped[str] = mapped_column(String(200))


@compiles(ForeignKeyConstraint, "mysql", "mariadb")
def _checked_at_once(constraint: Any, compiler: Any, **options: Any) -> Any:
    """MySQL knows no constraint that waits for COMMIT."""
    constraint.deferrable = constraint.initially = None
    return compiler.visit_foreign_key_constraint(constraint, **options)
