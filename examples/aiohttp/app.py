"""The shop on aiohttp: ``python -m examples.aiohttp.app sqlite:///market.db 8080``.

``db.session`` is the session of the request, in a handler and anywhere below. A middleware before tenure's sees what COMMIT raises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web
from sqlalchemy.exc import IntegrityError

from examples.shop import pages, servers, settings, trade
from examples.shop.tasks import Shop
from tenure import AsyncDatabase
from tenure.web.aiohttp import middleware

db = AsyncDatabase(settings.async_url(), pool_size=5, max_overflow=0)
shop = Shop(db)
routes = web.RouteTableDef()


@routes.get("/")
async def home(_request: web.Request) -> web.Response:
    return as_html(pages.home(await db.session.run_sync(trade.accounts)))


@routes.get("/accounts")
async def balances(_request: web.Request) -> web.Response:
    return web.json_response({"balances": await db.session.run_sync(trade.balances)})


@routes.get(r"/accounts/{number:\d+}")
async def account(request: web.Request) -> web.Response:
    return as_html(pages.account(*await db.session.run_sync(trade.account, int(request.match_info["number"]))))


@routes.get(r"/accounts/{number:\d+}/statement")
async def statement(request: web.Request) -> web.Response:
    lines = trade.statement_async(db.session, int(request.match_info["number"]))
    return web.Response(body=(line.encode() async for line in lines), content_type="text/csv")


@routes.post("/orders")
async def order(request: web.Request) -> web.Response:
    number = await db.session.run_sync(trade.order, await request.post())
    db.on_commit(shop.ship, number)
    raise web.HTTPSeeOther(f"/orders/{number}")


@routes.get(r"/orders/{number:\d+}")
async def placed(request: web.Request) -> web.Response:
    return as_html(pages.order(await db.session.run_sync(trade.placed, int(request.match_info["number"]))))


@routes.post("/transfers")
async def transfer(request: web.Request) -> web.Response:
    return web.json_response({"token": await db.session.run_sync(trade.transfer, await request.json())}, status=201)


@routes.get("/status")
async def status(_request: web.Request) -> web.Response:
    return web.json_response(db.status()._asdict())


def as_html(page: str) -> web.Response:
    return web.Response(text=page, content_type="text/html")


@web.middleware
async def errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        return await handler(request)
    except trade.NotThere as error:
        raise web.HTTPNotFound(text=str(error)) from None
    except trade.NotEnough as error:
        raise web.HTTPBadRequest(text=str(error)) from None
    except IntegrityError:
        raise web.HTTPConflict(text=trade.CONFLICT) from None


async def lifespan(_app: web.Application) -> AsyncIterator[None]:
    async with shop.opened():
        yield


app = web.Application(middlewares=[errors, middleware(db)])
app.add_routes(routes)
app.cleanup_ctx.append(lifespan)


def main() -> None:
    servers.aiohttp(app)


if __name__ == "__main__":
    main()
