"""The shop on Pyramid: ``python -m examples.pyramid.app sqlite:///market.db 8080``.

``request.dbsession`` is the session of the request. The exception views see what COMMIT raises as well.
"""

from __future__ import annotations

import sys
from typing import Any

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPBadRequest, HTTPConflict, HTTPNotFound, HTTPSeeOther
from pyramid.response import Response
from pyramid.view import exception_view_config, view_config
from sqlalchemy.exc import IntegrityError

from examples.shop import pages, servers, settings, trade
from examples.shop.threads import Shop
from tenure import Database

db = Database(settings.url(), pool_size=5, max_overflow=0)
shop = Shop(db)


@view_config(route_name="home")
def home(request: Any) -> Response:
    return Response(pages.home(trade.accounts(request.dbsession)))


@view_config(route_name="balances", renderer="json")
def balances(request: Any) -> dict[str, Any]:
    return {"balances": trade.balances(request.dbsession)}


@view_config(route_name="account")
def account(request: Any) -> Response:
    return Response(pages.account(*trade.account(request.dbsession, int(request.matchdict["number"]))))


@view_config(route_name="statement")
def statement(request: Any) -> Response:
    lines = trade.statement(request.dbsession, int(request.matchdict["number"]))
    return Response(app_iter=(line.encode() for line in lines), content_type="text/csv")


@view_config(route_name="orders", request_method="POST")
def order(request: Any) -> HTTPSeeOther:
    number = trade.order(request.dbsession, request.POST)
    db.on_commit(shop.ship, number)
    return HTTPSeeOther(f"/orders/{number}")


@view_config(route_name="order")
def placed(request: Any) -> Response:
    return Response(pages.order(trade.placed(request.dbsession, int(request.matchdict["number"]))))


@view_config(route_name="transfers", request_method="POST", renderer="json")
def transfer(request: Any) -> dict[str, str]:
    request.response.status_code = 201
    return {"token": trade.transfer(request.dbsession, request.json_body)}


@view_config(route_name="status", renderer="json")
def status(_request: Any) -> dict[str, Any]:
    return db.status()._asdict()


@exception_view_config(trade.NotThere)
def not_there(error: trade.NotThere, _request: Any) -> HTTPNotFound:
    return HTTPNotFound(str(error))


@exception_view_config(trade.NotEnough)
def not_enough(error: trade.NotEnough, _request: Any) -> HTTPBadRequest:
    return HTTPBadRequest(str(error))


@exception_view_config(IntegrityError)
def conflict(_error: IntegrityError, _request: Any) -> HTTPConflict:
    return HTTPConflict(trade.CONFLICT)


with Configurator(settings={"tenure.db": db}) as config:
    config.include("tenure.web.pyramid")
    config.add_route("home", "/")
    config.add_route("balances", "/accounts")
    config.add_route("account", r"/accounts/{number:\d+}")
    config.add_route("statement", r"/accounts/{number:\d+}/statement")
    config.add_route("orders", "/orders")
    config.add_route("order", r"/orders/{number:\d+}")
    config.add_route("transfers", "/transfers")
    config.add_route("status", "/status")
    config.scan(sys.modules[__name__])
    app = config.make_wsgi_app()


def main() -> None:
    servers.cheroot(app, shop)


if __name__ == "__main__":
    main()
