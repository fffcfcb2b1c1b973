"""The shop on Falcon: ``python -m examples.falcon.app sqlite:///market.db 8080``.

``db.session`` is the session of the request, in a responder and anywhere below. The error handlers see what COMMIT raises as well.
"""

from __future__ import annotations

from typing import Any

import falcon
from falcon import Request, Response
from sqlalchemy.exc import IntegrityError

from examples.shop import pages, servers, settings, trade
from examples.shop.threads import Shop
from tenure import Database
from tenure.web.falcon import in_units

db = Database(settings.url(), pool_size=5, max_overflow=0)
shop = Shop(db)


class Home:
    def on_get(self, _req: Request, resp: Response) -> None:
        resp.content_type, resp.text = falcon.MEDIA_HTML, pages.home(trade.accounts(db.session))


class Balances:
    def on_get(self, _req: Request, resp: Response) -> None:
        resp.media = {"balances": trade.balances(db.session)}


class Account:
    def on_get(self, _req: Request, resp: Response, number: int) -> None:
        resp.content_type, resp.text = falcon.MEDIA_HTML, pages.account(*trade.account(db.session, number))


class Statement:
    def on_get(self, _req: Request, resp: Response, number: int) -> None:
        resp.content_type = "text/csv"
        resp.stream = (line.encode() for line in trade.statement(db.session, number))


class Orders:
    def on_post(self, req: Request, _resp: Response) -> None:
        number = trade.order(db.session, req.get_media())
        db.on_commit(shop.ship, number)
        raise falcon.HTTPSeeOther(f"/orders/{number}")


class Order:
    def on_get(self, _req: Request, resp: Response, number: int) -> None:
        resp.content_type, resp.text = falcon.MEDIA_HTML, pages.order(trade.placed(db.session, number))


class Transfers:
    def on_post(self, req: Request, resp: Response) -> None:
        resp.media = {"token": trade.transfer(db.session, req.get_media())}
        resp.status = falcon.HTTP_201


class Status:
    def on_get(self, _req: Request, resp: Response) -> None:
        resp.media = db.status()._asdict()


def not_there(_req: Request, _resp: Response, error: trade.NotThere, _params: Any) -> None:
    raise falcon.HTTPNotFound(description=str(error))


def not_enough(_req: Request, _resp: Response, error: trade.NotEnough, _params: Any) -> None:
    raise falcon.HTTPBadRequest(description=str(error))


def conflict(_req: Request, _resp: Response, _error: IntegrityError, _params: Any) -> None:
    raise falcon.HTTPConflict(description=trade.CONFLICT)


site = falcon.App()
site.add_route("/", Home())
site.add_route("/accounts", Balances())
site.add_route("/accounts/{number:int}", Account())
site.add_route("/accounts/{number:int}/statement", Statement())
site.add_route("/orders", Orders())
site.add_route("/orders/{number:int}", Order())
site.add_route("/transfers", Transfers())
site.add_route("/status", Status())
site.add_error_handler(trade.NotThere, not_there)
site.add_error_handler(trade.NotEnough, not_enough)
site.add_error_handler(IntegrityError, conflict)
app = in_units(site, db)


def main() -> None:
    servers.cheroot(app, shop)


if __name__ == "__main__":
    main()
