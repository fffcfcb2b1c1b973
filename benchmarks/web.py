"""What a web request pays that never asks for the database: the middleware around an empty WSGI application, and its slot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.rounds import Work
from tenure import Database
from tenure.web.blocking import BlockingBoundary, BlockingRequest
from tenure.web.wsgi import UnitMiddleware

EMPTY = "an empty WSGI application"
WRAPPED = "the same in tenure's middleware"
SLOT = "the request's slot alone"

_ENVIRON = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}


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
