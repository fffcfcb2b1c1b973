"""The shop on Bottle: ``python -m examples.bottle.app sqlite:///market.db 8080``.

A callback that names a ``session`` gets the one of its request. The error handler of the 500 sees what COMMIT raises as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bottle import Bottle, HTTPError, redirect, request, response
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from examples.shop import pages, servers, settings, trade
from examples.shop.threads import Shop
from tenure import Database
from tenure.web.bottle import Tenure

db = Database(settings.url(), pool_size=5, max_overflow=0)
shop = Shop(db)
app = Bottle()
app.install(Tenure(db))


@app.get("/")
def home(session: Session) -> str:
    return pages.home(trade.accounts(session))


@app.get("/accounts")
def balances(session: Session) -> dict[str, Any]:
    return {"balances": trade.balances(session)}


@app.get("/accounts/<number:int>")
def account(session: Session, number: int) -> str:
    return pages.account(*trade.account(session, number))


@app.get("/accounts/<number:int>/statement")
def statement(session: Session, number: int) -> Iterator[str]:
    response.content_type = "text/csv; charset=utf-8"
    return trade.statement(session, number)


@app.post("/orders")
def order(session: Session) -> None:
    number = trade.order(session, request.forms)
    db.on_commit(shop.ship, number)
    redirect(f"/orders/{number}", 303)


@app.get("/orders/<number:int>")
def placed(session: Session, number: int) -> str:
    return pages.order(trade.placed(session, number))


@app.post("/transfers")
def transfer(session: Session) -> dict[str, str]:
    response.status = 201
    return {"token": trade.transfer(session, request.json)}


@app.get("/status")
def status() -> dict[str, Any]:
    return db.status()._asdict()


@app.error(500)
def failed(error: HTTPError) -> str:
    match error.exception:
        case trade.NotThere() as reason:
            response.status = 404
            return str(reason)
        case trade.NotEnough() as reason:
            response.status = 400
            return str(reason)
        case IntegrityError():
            response.status = 409
            return trade.CONFLICT
    return "Something went wrong. Nothing of it was stored."


def main() -> None:
    servers.cheroot(app, shop)


if __name__ == "__main__":
    main()
