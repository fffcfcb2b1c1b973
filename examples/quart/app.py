"""The shop on Quart: ``python -m examples.quart.app sqlite:///market.db 8080``.

``db.session`` is the session of the request, in a view and anywhere below. The error handlers see what COMMIT raises as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from quart import Quart, Response, redirect, request
from sqlalchemy.exc import IntegrityError

from examples.shop import pages, servers, settings, trade
from examples.shop.tasks import Shop
from tenure import AsyncDatabase
from tenure.web.quart import Tenure

db = AsyncDatabase(settings.async_url(), pool_size=5, max_overflow=0)
shop = Shop(db)
app = Quart(__name__)
Tenure(app, db)


@app.get("/")
async def home() -> str:
    return pages.home(await db.session.run_sync(trade.accounts))


@app.get("/accounts")
async def balances() -> dict[str, Any]:
    return {"balances": await db.session.run_sync(trade.balances)}


@app.get("/accounts/<int:number>")
async def account(number: int) -> str:
    return pages.account(*await db.session.run_sync(trade.account, number))


@app.get("/accounts/<int:number>/statement")
async def statement(number: int) -> Response:
    return Response(trade.statement_async(db.session, number), mimetype="text/csv")


@app.post("/orders")
async def order() -> Any:
    number = await db.session.run_sync(trade.order, await request.form)
    db.on_commit(shop.ship, number)
    return redirect(f"/orders/{number}", 303)


@app.get("/orders/<int:number>")
async def placed(number: int) -> str:
    return pages.order(await db.session.run_sync(trade.placed, number))


@app.post("/transfers")
async def transfer() -> Any:
    return {"token": await db.session.run_sync(trade.transfer, await request.get_json())}, 201


@app.get("/status")
async def status() -> dict[str, Any]:
    return db.status()._asdict()


@app.errorhandler(trade.NotThere)
async def not_there(error: trade.NotThere) -> Any:
    return str(error), 404


@app.errorhandler(trade.NotEnough)
async def not_enough(error: trade.NotEnough) -> Any:
    return str(error), 400


@app.errorhandler(IntegrityError)
async def conflict(_error: IntegrityError) -> Any:
    return trade.CONFLICT, 409


@app.while_serving
async def lifespan() -> AsyncGenerator[None, None]:
    async with shop.opened():
        yield


def main() -> None:
    servers.hypercorn(app)


if __name__ == "__main__":
    main()
