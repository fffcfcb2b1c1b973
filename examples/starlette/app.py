"""The shop on Starlette: ``python -m examples.starlette.app sqlite:///market.db 8080``.

``db.session`` is the session of the request, in an endpoint and anywhere below.
"""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from examples.shop import pages, servers, settings, trade
from examples.shop.tasks import Shop
from tenure import AsyncDatabase
from tenure.web.starlette import UnitMiddleware

db = AsyncDatabase(settings.async_url(), pool_size=5, max_overflow=0)
shop = Shop(db)


async def home(_request: Request) -> Response:
    return HTMLResponse(pages.home(await db.session.run_sync(trade.accounts)))


async def balances(_request: Request) -> Response:
    return JSONResponse({"balances": await db.session.run_sync(trade.balances)})


async def account(request: Request) -> Response:
    return HTMLResponse(pages.account(*await db.session.run_sync(trade.account, request.path_params["number"])))


async def statement(request: Request) -> Response:
    return StreamingResponse(trade.statement_async(db.session, request.path_params["number"]), media_type="text/csv")


async def order(request: Request) -> Response:
    number = await db.session.run_sync(trade.order, await request.form())
    db.on_commit(shop.ship, number)
    return RedirectResponse(f"/orders/{number}", 303)


async def placed(request: Request) -> Response:
    return HTMLResponse(pages.order(await db.session.run_sync(trade.placed, request.path_params["number"])))


async def transfer(request: Request) -> Response:
    return JSONResponse({"token": await db.session.run_sync(trade.transfer, await request.json())}, 201)


async def status(_request: Request) -> Response:
    return JSONResponse(db.status()._asdict())


async def not_there(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 404)


async def not_enough(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)


async def conflict(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse(trade.CONFLICT, 409)


app = Starlette(
    routes=[
        Route("/", home),
        Route("/accounts", balances),
        Route("/accounts/{number:int}", account),
        Route("/accounts/{number:int}/statement", statement),
        Route("/orders", order, methods=["POST"]),
        Route("/orders/{number:int}", placed),
        Route("/transfers", transfer, methods=["POST"]),
        Route("/status", status),
    ],
    exception_handlers={
        trade.NotThere: not_there,
        trade.NotEnough: not_enough,
        IntegrityError: conflict,
    },  # the last also of a COMMIT
    middleware=[Middleware(UnitMiddleware, db)],
    lifespan=shop.opened,
)


def main() -> None:
    servers.uvicorn(app)


if __name__ == "__main__":
    main()
