"""Takes orders over HTTP. What only reads goes to the standby, and sees there what its own client has ordered before."""

from __future__ import annotations

from typing import Any

from flask import Flask, abort, request
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from examples.cluster import shop
from examples.cluster.models import Order
from tenure.web.flask import Tenure

app = Flask(__name__)
Tenure(app, shop.db, position_cookie="seen", readonly=lambda environ: environ["REQUEST_METHOD"] == "GET")


@app.post("/orders")
def order(session: Session) -> Any:
    number = shop.place(session, request.form["token"], int(request.form["customer"]), request.form["item"])
    return {"order": number}, 201


@app.get("/orders/<int:number>")
def placed(session: Session, number: int) -> Any:
    found = session.execute(select(Order.token, func.pg_is_in_recovery()).where(Order.id == number)).one_or_none()
    if found is None:
        abort(404)
    token, standby = found
    return {"token": token, "standby": standby}


@app.get("/status")
def status() -> Any:
    return {"in_use": shop.db.status().in_use}


@app.errorhandler(shop.OutOfStock)
def out_of_stock(error: shop.OutOfStock) -> Any:
    return str(error), 422


@app.errorhandler(IntegrityError)
def twice_at_once(_error: IntegrityError) -> Any:
    return "This is just being ordered.", 409
