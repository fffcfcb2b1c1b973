"""How the shop looks: Jinja templates, which escape what they show."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from jinja2 import Environment, PackageLoader

from examples.shop.models import Account, Order

html = Environment(loader=PackageLoader("examples.shop"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def home(accounts: Sequence[Account]) -> str:
    total = sum(one.balance for one in accounts)
    return html.get_template("home.html").render(accounts=accounts, total=total, token=uuid4().hex)


def account(account: Account, paid_in: int, paid_out: int) -> str:
    return html.get_template("account.html").render(account=account, paid_in=paid_in, paid_out=paid_out)


def order(order: Order) -> str:
    return html.get_template("order.html").render(order=order)
