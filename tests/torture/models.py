"""The accounts, and the transfers between them."""

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ACCOUNTS = 8
OPENING = 1000
TOTAL = ACCOUNTS * OPENING


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "torture_account"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Transfer(Base):
    """One that is stored tells that its transaction was, and what the balances have to be."""

    __tablename__ = "torture_transfer"

    id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[int]
    target: Mapped[int]
    amount: Mapped[int]


def create(url: sa.URL) -> None:
    """New tables at *url*, with the accounts in them."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        connection.execute(sa.insert(Account), [{"id": one, "balance": OPENING} for one in range(1, ACCOUNTS + 1)])
