"""The shop on Sanic: ``python -m examples.sanic.app sqlite:///market.db 8080``.

``db.session`` is the session of the request, in a handler and anywhere below. The exception handlers see what COMMIT raises as well.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from sanic import HTTPResponse, Request, Sanic, html, json, redirect, text
from sqlalchemy.exc import IntegrityError

from examples.shop import pages, servers, settings, trade
from examples.shop.tasks import Shop
from tenure import AsyncDatabase
from tenure.web.sanic import Tenure

db = AsyncDatabase(settings.async_url(), pool_size=5, max_overflow=0)
shop = Shop(db)
app: Any = Sanic("shop", configure_logging=False)
Tenure(app, db)


@app.get("/")
async def home(_request: Request) -> HTTPResponse:
    return html(pages.home(await db.session.run_sync(trade.accounts)))


@app.get("/accounts")
async def balances(_request: Request) -> HTTPResponse:
    return json({"balances": await db.session.run_sync(trade.balances)})


@app.get("/accounts/<number:int>")
async def account(_request: Request, number: int) -> HTTPResponse:
    return html(pages.account(*await db.session.run_sync(trade.account, number)))


@app.get("/accounts/<number:int>/statement")
async def statement(request: Request, number: int) -> None:
    response: Any = await request.respond(content_type="text/csv")
    async for line in trade.statement_async(db.session, number):
        await response.send(line)
    await response.eof()


@app.post("/orders")
async def order(request: Request) -> HTTPResponse:
    sent: Any = request.form  # a list for each name
    form = {name: sent.get(name) for name in sent}
    number = await db.session.run_sync(trade.order, form)
    db.on_commit(shop.ship, number)
    return redirect(f"/orders/{number}", status=303)


@app.get("/orders/<number:int>")
async def placed(_request: Request, number: int) -> HTTPResponse:
    return html(pages.order(await db.session.run_sync(trade.placed, number)))


@app.post("/transfers")
async def transfer(request: Request) -> HTTPResponse:
    return json({"token": await db.session.run_sync(trade.transfer, request.json)}, 201)


@app.get("/status")
async def status(_request: Request) -> HTTPResponse:
    return json(db.status()._asdict())


@app.exception(trade.NotThere)
async def not_there(_request: Request, error: trade.NotThere) -> HTTPResponse:
    return text(str(error), 404)


@app.exception(trade.NotEnough)
async def not_enough(_request: Request, error: trade.NotEnough) -> HTTPResponse:
    return text(str(error), 400)


@app.exception(IntegrityError)
async def conflict(_request: Request, _error: IntegrityError) -> HTTPResponse:
    return text(trade.CONFLICT, 409)


day = AsyncExitStack()


@app.before_server_start
async def open_shop(_app: Any) -> None:
    await day.enter_async_context(shop.opened())


@app.after_server_stop
async def close_shop(_app: Any) -> None:
    await day.aclose()


def main() -> None:
    servers.sanic(app)


if __name__ == "__main__":
    main()
