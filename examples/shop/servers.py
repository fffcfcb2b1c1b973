"""Starts the host's server on a free port, or the one that was asked for, prints its address, and ends it at SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import closing
from typing import Any

from examples.shop.settings import GRACE, port
from examples.shop.threads import Shop

WAITING = 128  # who may wait to be accepted; more are refused for a second
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def cheroot(app: Any, shop: Shop) -> None:
    """A WSGI application on cheroot, the server of web.py and CherryPy: ten threads."""
    from cheroot.wsgi import Server

    asked_to_stop = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: asked_to_stop.set())
    with closing(shop.db):
        shop.open()
        server = Server(("127.0.0.1", port()), app, request_queue_size=WAITING)
        try:
            server.prepare()
        except BaseException:  # the port is taken: the shop's threads must not go on
            shop.close()
            raise
        print("http://{}:{}/".format(*server.bind_addr), flush=True)
        threading.Thread(target=server.serve, name="web").start()
        asked_to_stop.wait()

        def end() -> None:
            server.stop()  # requests under way are answered
            shop.close()

        ending = threading.Thread(target=end, daemon=True)  # a request that is stuck would keep it for ever
        ending.start()
        ending.join(GRACE / 2)
        drained = shop.db.drain(GRACE / 2)
    if drained.stuck:  # Python would wait for their threads
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


def uvicorn(app: Any) -> None:
    """An ASGI application on uvicorn. Its lifespan opens and closes the shop."""
    from uvicorn import Config, Server

    with _listening() as listening:
        config = Config(_announced(app, listening), lifespan="on", log_level="warning", timeout_graceful_shutdown=int(GRACE / 2))
        server = Server(config)
        for number in SIGNALS:  # uvicorn has handlers of its own, but raises the signal once more when it has ended
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listening])


def hypercorn(app: Any) -> None:
    """An ASGI application on hypercorn. Its lifespan opens and closes the shop."""
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    async def run(listening: socket.socket) -> None:
        asked_to_stop = asyncio.Event()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
        config = Config()
        config.bind = [f"fd://{listening.fileno()}"]
        config.graceful_timeout = GRACE / 2
        config.loglevel = "WARNING"
        await serve(_announced(app, listening), config, shutdown_trigger=asked_to_stop.wait)

    asyncio.run(run(_listening()))


def aiohttp(app: Any) -> None:
    """An application of aiohttp on its own server. Its ``cleanup_ctx`` opens and closes the shop."""
    from aiohttp import web

    with _listening() as listening:
        address = _address(listening)
        web.run_app(app, sock=listening, print=lambda _: print(address, flush=True), access_log=None, shutdown_timeout=GRACE / 2)


def sanic(app: Any) -> None:
    """An application of Sanic on its own server, in this process. Its listeners open and close the shop."""
    with _listening() as listening:
        address = _address(listening)
        app.after_server_start(lambda _app: print(address, flush=True))
        app.config.update(GRACEFUL_SHUTDOWN_TIMEOUT=GRACE / 2)
        app.run(sock=listening, single_process=True, motd=False, access_log=False)


def _listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", port()), backlog=WAITING)


def _address(listening: socket.socket) -> str:
    return "http://{}:{}/".format(*listening.getsockname())


def _announced(app: Any, listening: socket.socket) -> Any:
    """*app*, whose address is printed when it has started."""

    async def announced(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                print(_address(listening), flush=True)

        await app(scope, receive, sent if scope["type"] == "lifespan" else send)

    return announced
