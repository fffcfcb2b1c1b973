"""The web and job adapters, as their users' type checker sees them."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, assert_type

import falcon
import falcon.asgi
from apscheduler.executors.pool import ThreadPoolExecutor

from tenure import AsyncDatabase, Database
from tenure.jobs.apscheduler import in_units
from tenure.jobs.threads import hand_over
from tenure.web import asgi, bottle, wsgi
from tenure.web import falcon as on_falcon
from tenure.web.webpy import processor
from tenure.web.wsgi import UnitMiddleware

db = Database("sqlite:///app.db")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


app = UnitMiddleware(application, db, commit_if=lambda status: status < 500)


def start(status: str, headers: list[tuple[str, str]]) -> None: ...


assert_type(app({}, start), Iterable[bytes])
explicit = UnitMiddleware(app, db, commit="explicit")

process = processor(db)

aio = AsyncDatabase("sqlite+aiosqlite:///app.db")
assert_type(on_falcon.in_units(falcon.App(), db, commit="explicit"), wsgi.UnitMiddleware)
assert_type(on_falcon.in_units(falcon.asgi.App(), aio, close=True), asgi.UnitMiddleware)
assert_type(on_falcon.in_units(falcon.asgi.App(), db), asgi.UnitMiddleware)
plugin = bottle.Tenure(db, commit_if=lambda status: status < 500)

executor = in_units(ThreadPoolExecutor(4), db)
executor.shutdown()


def add(number: int, *, name: str = "") -> str:
    return f"{number}{name}"


assert_type(hand_over(add)(1, name="one"), str)
threading.Thread(target=hand_over(add), args=(1,))
