"""The shop on plain ASGI, without a framework: ``python -m examples.asgi.app sqlite:///market.db 8080``.

``UnitMiddleware`` stands around the pages, and around it ``app``, which makes an answer of what a page, or the COMMIT after it,
has raised. At that time the request's work is rolled back.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy.exc import IntegrityError

from examples.shop import pages, servers, settings, trade
from examples.shop.tasks import Shop
from tenure import AsyncDatabase
from tenure.web.asgi import UnitMiddleware

HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"

db = AsyncDatabase(settings.async_url(), pool_size=5, max_overflow=0)
shop = Shop(db)


class Reply:
    """What a page of this application gives."""

    def __init__(self, body: str | AsyncIterator[str], kind: str = HTML, status: int = 200, **headers: str) -> None:
        self.body = body
        self.status = status
        self.headers = [(name.lower().encode(), value.encode()) for name, value in {"Content-Type": kind, **headers}.items()]

    async def __call__(self, send: Callable[..., Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        if isinstance(self.body, str):
            await send({"type": "http.response.body", "body": self.body.encode()})
            return
        async for part in self.body:
            await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
        await send({"type": "http.response.body"})


def as_json(value: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(value), "application/json", status)


async def home(_body: bytes) -> Reply:
    return Reply(pages.home(await db.session.run_sync(trade.accounts)))


async def balances(_body: bytes) -> Reply:
    return as_json({"balances": await db.session.run_sync(trade.balances)})


async def account(_body: bytes, number: str) -> Reply:
    return Reply(pages.account(*await db.session.run_sync(trade.account, int(number))))


async def statement(_body: bytes, number: str) -> Reply:
    return Reply(trade.statement_async(db.session, int(number)), "text/csv")


async def order(body: bytes) -> Reply:
    number = await db.session.run_sync(trade.order, dict(parse_qsl(body.decode())))
    db.on_commit(shop.ship, number)
    return Reply("", status=303, Location=f"/orders/{number}")


async def placed(_body: bytes, number: str) -> Reply:
    return Reply(pages.order(await db.session.run_sync(trade.placed, int(number))))


async def transfer(body: bytes) -> Reply:
    return as_json({"token": await db.session.run_sync(trade.transfer, json.loads(body))}, 201)


async def status(_body: bytes) -> Reply:
    return as_json(db.status()._asdict())


ROUTES: dict[str, Callable[..., Awaitable[Reply]]] = {
    r"GET /": home,
    r"GET /accounts": balances,
    r"GET /accounts/(\d+)": account,
    r"GET /accounts/(\d+)/statement": statement,
    r"POST /orders": order,
    r"GET /orders/(\d+)": placed,
    r"POST /transfers": transfer,
    r"GET /status": status,
}


async def routed(scope: Any, receive: Any, send: Any) -> None:
    body = b"".join([part async for part in received(receive)])
    for pattern, page in ROUTES.items():
        if found := re.fullmatch(pattern, f"{scope['method']} {scope['path']}"):
            reply = await page(body, *found.groups())
            await reply(send)
            return
    raise trade.NotThere("There is no such page.")


async def received(receive: Any) -> AsyncIterator[bytes]:
    while (message := await receive())["type"] == "http.request":
        yield message["body"]
        if not message.get("more_body"):
            return


in_units = UnitMiddleware(routed, db)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    try:
        await in_units(scope, receive, send)
        return
    except trade.NotThere as error:
        reply = Reply(str(error), TEXT, 404)
    except trade.NotEnough as error:
        reply = Reply(str(error), TEXT, 400)
    except IntegrityError:
        reply = Reply(trade.CONFLICT, TEXT, 409)
    await reply(send)


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    async with shop.opened():
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    servers.uvicorn(app)


if __name__ == "__main__":
    main()
