"""The shop on Flask: ``python -m examples.flask.app sqlite:///market.db 8080``.

A view that names a ``session`` gets the one of its request. The error handlers see what COMMIT raises as well.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, redirect, request
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from examples.shop import pages, servers, settings, trade
from examples.shop.threads import Shop
from tenure import Database
from tenure.web.flask import Tenure

db = Database(settings.url(), pool_size=5, max_overflow=0)
shop = Shop(db)
app = Flask(__name__)
Tenure(app, db)


@app.get("/")
def home(session: Session) -> str:
    return pages.home(trade.accounts(session))


@app.get("/accounts")
def balances(session: Session) -> dict[str, Any]:
    return {"balances": trade.balances(session)}


@app.get("/accounts/<int:number>")
def account(session: Session, number: int) -> str:
    return pages.account(*trade.account(session, number))


@app.get("/accounts/<int:number>/statement")
def statement(session: Session, number: int) -> Response:
    return Response(trade.statement(session, number), mimetype="text/csv")


@app.post("/orders")
def order(session: Session) -> Any:
    number = trade.order(session, request.form)
    db.on_commit(shop.ship, number)
    return redirect(f"/orders/{number}", 303)


@app.get("/orders/<int:number>")
def placed(session: Session, number: int) -> str:
    return pages.order(trade.placed(session, number))


@app.post("/transfers")
def transfer(session: Session) -> Any:
    return {"token": trade.transfer(session, request.get_json())}, 201


@app.get("/status")
def status() -> dict[str, Any]:
    return db.status()._asdict()


@app.errorhandler(trade.NotThere)
def not_there(error: trade.NotThere) -> Any:
    return str(error), 404


@app.errorhandler(trade.NotEnough)
def not_enough(error: trade.NotEnough) -> Any:
    return str(error), 400


@app.errorhandler(IntegrityError)
def conflict(_error: IntegrityError) -> Any:
    return trade.CONFLICT, 409


def main() -> None:
    servers.cheroot(app, shop)


if __name__ == "__main__":
    main()
