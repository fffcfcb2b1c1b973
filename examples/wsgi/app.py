"""The shop on plain WSGI, without a framework: ``python -m examples.wsgi.app sqlite:///market.db 8080``.

``UnitMiddleware`` stands around the pages, and around it ``app``, which makes an answer of what a page, or the COMMIT after it,
has raised. At that time the request's work is rolled back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy.exc import IntegrityError

from examples.shop import pages, servers, settings, trade
from examples.shop.threads import Shop
from tenure import Database
from tenure.web.wsgi import UnitMiddleware

HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"

db = Database(settings.url(), pool_size=5, max_overflow=0)
shop = Shop(db)


class Reply:
    """What a page of this application gives."""

    def __init__(self, body: str | Iterable[str], kind: str = HTML, status: int = 200, **headers: str) -> None:
        self.parts = [body] if isinstance(body, str) else body
        self.status = f"{status} {HTTPStatus(status).phrase}"
        self.headers = [("Content-Type", kind), *headers.items()]

    def send(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(self.status, self.headers)
        encoded = (part.encode() for part in self.parts)
        return list(encoded) if isinstance(self.parts, list) else encoded


def as_json(value: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(value), "application/json", status)


def home(_body: bytes) -> Reply:
    return Reply(pages.home(trade.accounts(db.session)))


def balances(_body: bytes) -> Reply:
    return as_json({"balances": trade.balances(db.session)})


def account(_body: bytes, number: str) -> Reply:
    return Reply(pages.account(*trade.account(db.session, int(number))))


def statement(_body: bytes, number: str) -> Reply:
    return Reply(trade.statement(db.session, int(number)), "text/csv")


def order(body: bytes) -> Reply:
    number = trade.order(db.session, dict(parse_qsl(body.decode())))
    db.on_commit(shop.ship, number)
    return Reply("", status=303, Location=f"/orders/{number}")


def placed(_body: bytes, number: str) -> Reply:
    return Reply(pages.order(trade.placed(db.session, int(number))))


def transfer(body: bytes) -> Reply:
    return as_json({"token": trade.transfer(db.session, json.loads(body))}, 201)


def status(_body: bytes) -> Reply:
    return as_json(db.status()._asdict())


ROUTES: dict[str, Callable[..., Reply]] = {
    r"GET /": home,
    r"GET /accounts": balances,
    r"GET /accounts/(\d+)": account,
    r"GET /accounts/(\d+)/statement": statement,
    r"POST /orders": order,
    r"GET /orders/(\d+)": placed,
    r"POST /transfers": transfer,
    r"GET /status": status,
}


def routed(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    for pattern, page in ROUTES.items():
        if found := re.fullmatch(pattern, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"):
            return page(body, *found.groups()).send(start_response)
    raise trade.NotThere("There is no such page.")


in_units = UnitMiddleware(routed, db)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    try:
        return in_units(environ, start_response)
    except trade.NotThere as error:
        reply = Reply(str(error), TEXT, 404)
    except trade.NotEnough as error:
        reply = Reply(str(error), TEXT, 400)
    except IntegrityError:
        reply = Reply(trade.CONFLICT, TEXT, 409)
    return reply.send(start_response)


def main() -> None:
    servers.cheroot(app, shop)


if __name__ == "__main__":
    main()
