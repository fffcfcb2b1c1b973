"""The market's pages and its JSON. A handler that names a ``session`` gets the one of its request.

A request is one unit of work. What it answers decides: below 400 its work is stored before the first byte leaves, from 400 on,
and whenever it raises, nothing of it is. A redirect is raised in web.py, and is no failure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import web
from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from examples.webpy.models import Account, NotEnough, Order, Payment, pay

urls = (
    "/", "Home",
    "/accounts", "Balances",
    "/accounts/([0-9]+)", "AccountPage",
    "/accounts/([0-9]+)/statement", "Statement",
    "/orders", "Orders",
    "/orders/([0-9]+)", "OrderPage",
    "/transfers", "Transfers",
    "/status", "Status",
)  # fmt: skip

templates = str(Path(__file__).parent / "templates")
html = web.template.render(templates, base="layout", cache=True, globals={"token": lambda: uuid4().hex})  # escapes what it shows
html.layout, html.home, html.account, html.order  # noqa: B018 - compiled now, and not by several of the first requests at once


class Home:
    def GET(self, session: Session) -> Any:
        accounts = session.scalars(select(Account).order_by(Account.id)).all()
        return html.home(accounts, sum(one.balance for one in accounts))


class Balances:
    def GET(self, session: Session) -> str:
        rows = session.execute(select(Account.id, Account.balance).order_by(Account.id))
        return as_json({"balances": dict(rows.all())})


class AccountPage:
    def GET(self, number: str, session: Session) -> Any:
        paid_in = select(func.coalesce(func.sum(Payment.amount), 0)).where(Payment.target_id == Account.id)
        paid_out = select(func.coalesce(func.sum(Payment.amount), 0)).where(Payment.source_id == Account.id)
        asked = select(Account, paid_in.scalar_subquery(), paid_out.scalar_subquery()).where(Account.id == int(number))
        found = session.execute(asked).one_or_none()
        if found is None:
            raise web.notfound("There is no such account.")
        return html.account(*found)


class Statement:
    """A file that is made while it is sent. Its rows are read as the client takes them."""

    def GET(self, number: str, session: Session) -> Iterator[str]:
        web.header("Content-Type", "text/csv")
        yield "payment,source,target,amount\n"
        mine = or_(Payment.source_id == int(number), Payment.target_id == int(number))
        payments = select(Payment).where(mine).order_by(Payment.id).execution_options(yield_per=50)
        for one in session.scalars(payments):
            yield f"{one.id},{one.source_id},{one.target_id},{one.amount}\n"
        yield "end,,,\n"


class Orders:
    def POST(self, session: Session) -> None:
        form = web.input("token", "buyer", "seller", "price", item="apples", friend=None)
        try:
            payment = pay(session, int(form.buyer), int(form.seller), int(form.price), purpose="order")
        except NotEnough as error:
            raise web.badrequest(str(error)) from None
        order = Order(token=form.token, item=form.item, payment=payment, friend_id=int(form.friend) if form.friend else None)
        session.add(order)
        session.flush()  # the order has its number now
        if order.item == "lemons":
            raise RuntimeError("the label printer does not like lemons")
        web.ctx.db.on_commit(web.ctx.courier.ship, order.id)  # never for an order that was not stored
        raise web.seeother(f"/orders/{order.id}")


class OrderPage:
    def GET(self, number: str, session: Session) -> Any:
        order = session.get(Order, int(number), options=[joinedload(Order.payment)])
        if order is None:
            raise web.notfound("There is no such order.")
        return html.order(order)


class Transfers:
    def POST(self, session: Session) -> str:
        asked = json.loads(web.data())
        try:
            pay(session, asked["source"], asked["target"], asked["amount"], purpose="transfer", token=asked["token"])
        except NotEnough as error:
            web.ctx.status = "400 Bad Request"
            return as_json({"error": str(error)})
        web.ctx.status = "201 Created"
        return as_json({"token": asked["token"]})


class Status:
    def GET(self) -> str:
        return as_json(web.ctx.db.status()._asdict())


def as_json(value: Any) -> str:
    web.header("Content-Type", "application/json")
    return json.dumps(value)


def problem() -> web.HTTPError:
    """What web.py answers when a handler, or the COMMIT after it, has raised. It is true in every case."""
    if isinstance(sys.exception(), IntegrityError):
        return web.conflict("It contradicts what is stored. Nothing of it was stored.")
    return web.internalerror("Something went wrong. Nothing of it was stored.")
