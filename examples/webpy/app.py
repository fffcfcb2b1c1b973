"""The shop on web.py: ``python -m examples.webpy.app sqlite:///market.db 8080``.

A handler that names a ``session`` gets the one of its request. What the request answers decides: below 400 its work is stored before
the first byte leaves, from 400 on, and whenever it raises, nothing of it is. A redirect is raised in web.py, and is no failure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import web
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from examples.shop import pages, servers, settings, trade
from examples.shop.threads import Shop
from tenure import Database
from tenure.web.webpy import processor

web.config.debug = False
urls = (
    "/", "Home",
    "/accounts", "Balances",
    "/accounts/([0-9]+)", "Account",
    "/accounts/([0-9]+)/statement", "Statement",
    "/orders", "Orders",
    "/orders/([0-9]+)", "Order",
    "/transfers", "Transfers",
    "/status", "Status",
)  # fmt: skip

db = Database(settings.url(), pool_size=5, max_overflow=0)
shop = Shop(db)


@contextmanager
def answers() -> Iterator[None]:
    """Raises the shop's own errors in web.py's manner."""
    try:
        yield
    except trade.NotThere as error:
        raise web.notfound(str(error)) from None
    except trade.NotEnough as error:
        raise web.badrequest(str(error)) from None


class Home:
    def GET(self, session: Session) -> str:
        return as_html(pages.home(trade.accounts(session)))


class Balances:
    def GET(self, session: Session) -> str:
        return as_json({"balances": trade.balances(session)})


class Account:
    @answers()
    def GET(self, number: str, session: Session) -> str:
        return as_html(pages.account(*trade.account(session, int(number))))


class Statement:
    def GET(self, number: str, session: Session) -> Iterator[str]:
        web.header("Content-Type", "text/csv")
        yield from trade.statement(session, int(number))


class Orders:
    @answers()
    def POST(self, session: Session) -> None:
        number = trade.order(session, web.input("token", "buyer", "seller", "price"))
        db.on_commit(shop.ship, number)
        raise web.seeother(f"/orders/{number}")


class Order:
    @answers()
    def GET(self, number: str, session: Session) -> str:
        return as_html(pages.order(trade.placed(session, int(number))))


class Transfers:
    @answers()
    def POST(self, session: Session) -> str:
        token = trade.transfer(session, json.loads(web.data()))
        web.ctx.status = "201 Created"
        return as_json({"token": token})


class Status:
    def GET(self) -> str:
        return as_json(db.status()._asdict())


def as_html(page: str) -> str:
    web.header("Content-Type", "text/html; charset=utf-8")
    return page


def as_json(value: Any) -> str:
    web.header("Content-Type", "application/json")
    return json.dumps(value)


def problem() -> web.HTTPError:
    """What web.py answers when a handler, or the COMMIT after it, has raised. It is true in every case."""
    if isinstance(sys.exception(), IntegrityError):
        return web.conflict(trade.CONFLICT)
    return web.internalerror("Something went wrong. Nothing of it was stored.")


site = web.application(urls, globals(), autoreload=False)
site.add_processor(processor(db))
site.internalerror = problem
app = site.wsgifunc()


def main() -> None:
    servers.cheroot(app, shop)


if __name__ == "__main__":
    main()
