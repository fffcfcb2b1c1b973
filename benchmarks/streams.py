"""A page that streams 10 MB, on Flask and on Starlette, alone and with tenure.

It is a server too: ``python -m benchmarks.streams STACK WAY`` serves the page and prints the port.
"""

from __future__ import annotations

import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Final

from benchmarks.bench import Bench, program
from benchmarks.rounds import Turn, measure_turns

PART: Final = 65_536
PARTS: Final = 160  # 10 MB
STACKS: Final = {"flask": "Flask on cheroot", "starlette": "Starlette on uvicorn"}
WAYS: Final = ("alone", "with tenure")
_MIB: Final = 2**20


def flask_app(way: str) -> Any:
    """The page on Flask."""
    from flask import Flask

    from tenure import Database
    from tenure.web.flask import Tenure

    app = Flask("stream")
    if way == WAYS[1]:
        Tenure(app, Database("sqlite://"))

    @app.get("/")
    def page() -> Any:
        return parts(), {"Content-Type": "text/plain"}

    return app


def starlette_app(way: str) -> Any:
    """The page on Starlette."""
    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    from tenure import AsyncDatabase
    from tenure.web.starlette import UnitMiddleware

    async def page(request: Any) -> Any:
        return StreamingResponse(async_parts(), media_type="text/plain")

    app = Starlette(routes=[Route("/", page)])
    if way == WAYS[1]:
        app.add_middleware(UnitMiddleware, AsyncDatabase("sqlite+aiosqlite://"))
    return app


def parts() -> Iterator[bytes]:
    """The page, each part of which is made anew."""
    for number in range(PARTS):
        yield bytes([65 + number % 26]) * PART


async def async_parts() -> AsyncIterator[bytes]:
    for part in parts():
        yield part


def streams(bench: Bench) -> None:
    """How long the page takes over a socket, and how much of it is in memory at a time."""
    for stack, name in STACKS.items():
        with ExitStack() as servers:
            turns = {way: _turn(servers.enter_context(program("streams", stack, way))) for way in WAYS}
            found = measure_turns(turns, bench.rounds)
        bench.report.timed(f"A page that streams 10 MB, {name}", found)
        bench.report.target(f"a page of 10 MB, with tenure / {name.split()[0]} alone", 1.02, found[WAYS[1]].median)
    held = _held(flask_app(WAYS[1])) - _held(flask_app(WAYS[0]))
    bench.report.target("the same page: memory that tenure adds while it is sent", 0.1, max(held, 0) / _MIB, "MiB")


def _turn(port: int) -> Turn:
    buffer = bytearray(PART)

    def turn(count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\nHost: bench\r\n\r\n")
                got = 0
                while size := connection.recv_into(buffer):
                    got += size
            assert got > PART * PARTS, got
        return perf_counter() - began

    return turn


def _held(app: Any) -> int:
    """The most memory that was taken while *app* made its page."""
    from werkzeug.test import EnvironBuilder

    start: Callable[..., Any] = lambda *_: None  # noqa: E731
    for _ in range(2):  # the first warms everything up
        tracemalloc.start()
        body = app(EnvironBuilder(path="/").get_environ(), start)
        assert sum(map(len, body)) == PART * PARTS
        body.close()
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return held


def main() -> None:
    stack, way = sys.argv[1:]
    if stack == "flask":
        from cheroot.wsgi import Server

        server = Server(("127.0.0.1", 0), flask_app(way), numthreads=2)
        server.prepare()
        print(server.bind_addr[1], flush=True)
        server.serve()
    else:
        import uvicorn

        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(starlette_app(way), log_level="error", access_log=False)).run([listener])


if __name__ == "__main__":
    main()
