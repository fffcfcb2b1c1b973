"""The shop as the demonstration starts it, ``python -m examples.watched HOST``: the same, with a probe in it."""

from __future__ import annotations

import importlib
import sys
from contextvars import ContextVar
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED

from examples.hosts import HOSTS
from examples.load.probe import Probe

act: ContextVar[str | None] = ContextVar("act", default=None)  # the header X-Act of the request that is under way here


def wsgi(app: Any) -> Any:
    def watched(environ: Any, start_response: Any) -> Any:
        act.set(environ.get("HTTP_X_ACT"))
        return app(environ, start_response)

    return watched


def asgi(app: Any) -> Any:
    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            act.set(dict(scope["headers"]).get(b"x-act", b"").decode())
        await app(scope, receive, send)

    return watched


def aiohttp(app: Any) -> Any:
    from aiohttp import web

    @web.middleware
    async def watched(request: Any, handler: Any) -> Any:
        act.set(request.headers.get("X-Act"))
        return await handler(request)

    app.middlewares.insert(0, watched)
    return app


def sanic(app: Any) -> Any:
    async def watched(request: Any) -> None:
        act.set(request.headers.get("X-Act"))

    app.on_request(watched)
    return app


AROUND = {"wsgi": wsgi, "asgi": asgi, "aiohttp": aiohttp, "sanic": sanic}


def main(host: str) -> None:
    sys.argv[1:] = []  # what is left are the arguments of the shop
    market: Any = importlib.import_module(f"examples.{host}.app")
    probe = Probe(market.db, act=act.get)
    market.shop.scheduler.add_listener(probe.job_ended, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    market.app = AROUND[HOSTS[host].kind](market.app)
    market.main()
    print(probe.last_line(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
