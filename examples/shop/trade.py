"""What the shop does when it is asked: functions of a ``Session``. On an event loop it is ``await session.run_sync(trade.order, form)``.

None of them ends a transaction. Who opened the session's unit does, a request for instance, by what it answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, joinedload

from examples.shop.models import Account, Order, Payment

ACCOUNTS = 60
OPENING = 10_000
CONFLICT = "It contradicts what is stored. Nothing of it was stored."  # to be said of an IntegrityError: its own words are SQL


class NotEnough(Exception):
    """The account does not hold that much."""


class NotThere(Exception):
    """The shop has no such thing."""


# ------------------------------------------------------------------------------------------------ to look at


def accounts(session: Session) -> list[Account]:
    return list(session.scalars(select(Account).order_by(Account.id)))


def balances(session: Session) -> dict[int, int]:
    return dict(session.execute(select(Account.id, Account.balance).order_by(Account.id)).all())


def account(session: Session, number: int) -> tuple[Account, int, int]:
    """An account, what it was paid and what it has paid, all as of one moment."""
    paid_in = select(func.coalesce(func.sum(Payment.amount), 0)).where(Payment.target_id == Account.id)
    paid_out = select(func.coalesce(func.sum(Payment.amount), 0)).where(Payment.source_id == Account.id)
    asked = select(Account, paid_in.scalar_subquery(), paid_out.scalar_subquery()).where(Account.id == number)
    found = session.execute(asked).one_or_none()
    if found is None:
        raise NotThere("There is no such account.")
    one, was_paid, has_paid = found
    return one, was_paid, has_paid


def placed(session: Session, number: int) -> Order:
    """An order with its payment."""
    order = session.get(Order, number, options=[joinedload(Order.payment)])
    if order is None:
        raise NotThere("There is no such order.")
    return order


# ------------------------------------------------------------------- a file that is made while it is sent

HEAD, END = "payment,source,target,amount\n", "end,,,\n"


def statement(session: Session, number: int) -> Iterator[str]:
    """All payments of an account as lines of a file. They are read as the client takes them."""
    yield HEAD
    for one in session.scalars(_payments(number)):
        yield _line(one)
    yield END


async def statement_async(session: AsyncSession, number: int) -> AsyncIterator[str]:
    """``statement`` on an event loop."""
    yield HEAD
    async for one in await session.stream_scalars(_payments(number)):
        yield _line(one)
    yield END


def _payments(number: int) -> Select[Any]:
    mine = or_(Payment.source_id == number, Payment.target_id == number)
    return select(Payment).where(mine).order_by(Payment.id).execution_options(yield_per=50)


def _line(one: Payment) -> str:
    return f"{one.id},{one.source_id},{one.target_id},{one.amount}\n"


# --------------------------------------------------------------------------------------------- to be stored


def pay(session: Session, source_id: int, target_id: int, amount: int, *, purpose: str, token: str | None = None) -> Payment:
    """Move money. Both accounts are locked in the order of their numbers, so that two payments never wait for each other."""
    chosen = select(Account).where(Account.id.in_([source_id, target_id])).order_by(Account.id)
    both = {one.id: one for one in session.scalars(chosen.with_for_update(key_share=True))}
    payment = Payment(purpose=purpose, token=token, source_id=source_id, target_id=target_id, amount=amount)
    session.add(payment)
    if both[source_id].balance < amount:
        raise NotEnough(f"account {source_id} holds {both[source_id].balance}, not {amount}")
    both[source_id].balance -= amount
    both[target_id].balance += amount
    return payment


def transfer(session: Session, asked: Mapping[str, Any]) -> str:
    """Move money from ``source`` to ``target``, once for each ``token``, which it gives back."""
    token: str = asked["token"]
    pay(session, asked["source"], asked["target"], asked["amount"], purpose="transfer", token=token)
    return token


def order(session: Session, form: Mapping[str, Any]) -> int:
    """``buyer`` pays ``seller`` the ``price`` of an ``item``, which perhaps a ``friend`` has recommended; the order's number."""
    payment = pay(session, int(form["buyer"]), int(form["seller"]), int(form["price"]), purpose="order")
    friend = form.get("friend")
    ordered = Order(
        token=form["token"], item=form.get("item") or "apples", payment=payment, friend_id=int(friend) if friend else None
    )
    session.add(ordered)
    session.flush()  # the order has its number now
    if ordered.item == "lemons":
        raise RuntimeError("the label printer does not like lemons")
    return ordered.id


def unshipped(session: Session) -> list[int]:
    return list(session.scalars(select(Order.id).where(~Order.shipped).order_by(Order.id)))


def mark_shipped(session: Session, number: int) -> None:
    session.get_one(Order, number).shipped = True


def open_accounts(session: Session) -> None:
    """The shop's accounts, unless they are there."""
    if session.get(Account, 1) is None:
        session.add_all(
            Account(id=n, owner=f"<owner {n}> & co", opening=OPENING, balance=OPENING) for n in range(1, ACCOUNTS + 1)
        )
