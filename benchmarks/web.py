"""What a web request pays that never asks for the database: the middleware around an empty WSGI application, and its slot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from flask import Flask
from werkzeug.test import EnvironBuilder

from benchmarks.rounds import Work
from tenure import Database
from tenure.web.blocking import BlockingBoundary, BlockingRequest
from tenure.web.flask import Tenure
from tenure.web.wsgi import UnitMiddleware

EMPTY = "an empty WSGI application"
WRAPPED = "the same in tenure's middleware"
SLOT = "the request's slot alone"
FLASK = "a page of Flask without SQL"
FLASK_WRAPPED = "the same with Tenure(app, db)"

_ENVIRON = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
_FULL = EnvironBuilder(path="/").get_environ()


def _app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def _start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    return None


def requests(db: Database) -> dict[str, Work]:
    """A request without the middleware, with it, and what of it is the unit's place."""
    middleware = UnitMiddleware(_app, db)
    boundary = BlockingBoundary(db)

    def slot() -> None:
        request = BlockingRequest(boundary, "GET /")
        try:
            request.settle(200)
            request.finish()
        finally:
            request.leave(request.token)

    return {
        EMPTY: lambda: _app(_ENVIRON, _start),
        WRAPPED: lambda: middleware(_ENVIRON, _start),
        SLOT: slot,
    }


def flask_requests(db: Database) -> dict[str, Work]:
    """A page that never asks for the database, on Flask alone and with tenure."""
    apps = {FLASK: Flask("plain"), FLASK_WRAPPED: Flask("wrapped")}
    Tenure(apps[FLASK_WRAPPED], db)
    for app in apps.values():
        app.add_url_rule("/", "page", lambda: "hello")
    return {name: partial(_answer, app) for name, app in apps.items()}


def _answer(app: Flask) -> None:
    body: Any = app({**_FULL}, _start)
    b"".join(body)
    if hasattr(body, "close"):
        body.close()
