"""The shop on Litestar: ``python -m examples.litestar.app sqlite:///market.db 8080``.

A handler that names ``db_session`` gets the session of its request. The exception handlers see what COMMIT raises as well.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.enums import RequestEncodingType
from litestar.params import Body
from litestar.response import Redirect, Stream
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from examples.shop import pages, servers, settings, trade
from examples.shop.tasks import Shop
from tenure import AsyncDatabase
from tenure.web.litestar import TenurePlugin

db = AsyncDatabase(settings.async_url(), pool_size=5, max_overflow=0)
shop = Shop(db)
Current = NamedDependency[AsyncSession]


@dataclass
class Order:
    token: str
    buyer: int
    seller: int
    price: int
    item: str = "apples"
    friend: int | None = None


@dataclass
class Transfer:
    token: str
    source: int
    target: int
    amount: int


@get("/", media_type=MediaType.HTML)
async def home(db_session: Current) -> str:
    return pages.home(await db_session.run_sync(trade.accounts))


@get("/accounts")
async def balances(db_session: Current) -> dict[str, dict[int, int]]:
    return {"balances": await db_session.run_sync(trade.balances)}


@get("/accounts/{number:int}", media_type=MediaType.HTML)
async def account(db_session: Current, number: int) -> str:
    return pages.account(*await db_session.run_sync(trade.account, number))


@get("/accounts/{number:int}/statement")
async def statement(db_session: Current, number: int) -> Stream:
    return Stream(trade.statement_async(db_session, number), media_type="text/csv")


@post("/orders")
async def order(db_session: Current, data: Annotated[Order, Body(media_type=RequestEncodingType.URL_ENCODED)]) -> Redirect:
    number = await db_session.run_sync(trade.order, asdict(data))
    db.on_commit(shop.ship, number)
    return Redirect(f"/orders/{number}", status_code=303)


@get("/orders/{number:int}", media_type=MediaType.HTML)
async def placed(db_session: Current, number: int) -> str:
    return pages.order(await db_session.run_sync(trade.placed, number))


@post("/transfers")
async def transfer(db_session: Current, data: Transfer) -> dict[str, str]:
    return {"token": await db_session.run_sync(trade.transfer, asdict(data))}


@get("/status")
async def status() -> dict[str, Any]:
    return db.status()._asdict()


def not_there(_request: Request[Any, Any, Any], error: trade.NotThere) -> Response[str]:
    return Response(str(error), status_code=404, media_type=MediaType.TEXT)


def not_enough(_request: Request[Any, Any, Any], error: trade.NotEnough) -> Response[str]:
    return Response(str(error), status_code=400, media_type=MediaType.TEXT)


def conflict(_request: Request[Any, Any, Any], _error: IntegrityError) -> Response[str]:
    return Response(trade.CONFLICT, status_code=409, media_type=MediaType.TEXT)


app = Litestar(
    [home, balances, account, statement, order, placed, transfer, status],
    plugins=[TenurePlugin(db)],
    exception_handlers={trade.NotThere: not_there, trade.NotEnough: not_enough, IntegrityError: conflict},
    lifespan=[shop.opened],
)


def main() -> None:
    servers.uvicorn(app)


if __name__ == "__main__":
    main()
