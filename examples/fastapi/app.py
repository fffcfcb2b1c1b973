"""The shop on FastAPI: ``python -m examples.fastapi.app sqlite:///market.db 8080``.

``session_of(db)`` is the dependency that gives an endpoint the session of its request.
"""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from examples.shop import pages, servers, settings, trade
from examples.shop.tasks import Shop
from tenure import AsyncDatabase
from tenure.web.fastapi import UnitMiddleware, session_of

db = AsyncDatabase(settings.async_url(), pool_size=5, max_overflow=0)
shop = Shop(db)
app = FastAPI(lifespan=shop.opened)
app.add_middleware(UnitMiddleware, db)
Current = Annotated[AsyncSession, Depends(session_of(db))]


class Order(BaseModel):
    token: str
    buyer: int
    seller: int
    price: int
    item: str = "apples"
    friend: int | None = None


class Transfer(BaseModel):
    token: str
    source: int
    target: int
    amount: int


@app.get("/", response_class=HTMLResponse)
async def home(session: Current) -> str:
    return pages.home(await session.run_sync(trade.accounts))


@app.get("/accounts")
async def balances(session: Current) -> dict[str, dict[int, int]]:
    return {"balances": await session.run_sync(trade.balances)}


@app.get("/accounts/{number}", response_class=HTMLResponse)
async def account(session: Current, number: int) -> str:
    return pages.account(*await session.run_sync(trade.account, number))


@app.get("/accounts/{number}/statement")
async def statement(session: Current, number: int) -> StreamingResponse:
    return StreamingResponse(trade.statement_async(session, number), media_type="text/csv")


@app.post("/orders")
async def order(session: Current, form: Annotated[Order, Form()]) -> RedirectResponse:
    number = await session.run_sync(trade.order, form.model_dump())
    db.on_commit(shop.ship, number)
    return RedirectResponse(f"/orders/{number}", 303)


@app.get("/orders/{number}", response_class=HTMLResponse)
async def placed(session: Current, number: int) -> str:
    return pages.order(await session.run_sync(trade.placed, number))


@app.post("/transfers", status_code=201)
async def transfer(session: Current, asked: Transfer) -> dict[str, str]:
    return {"token": await session.run_sync(trade.transfer, asked.model_dump())}


@app.get("/status")
async def status() -> dict[str, Any]:
    return db.status()._asdict()


@app.exception_handler(trade.NotThere)
async def not_there(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 404)


@app.exception_handler(trade.NotEnough)
async def not_enough(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)


@app.exception_handler(IntegrityError)  # also of a COMMIT
async def conflict(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse(trade.CONFLICT, 409)


def main() -> None:
    servers.uvicorn(app)


if __name__ == "__main__":
    main()
