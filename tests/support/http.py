"""Real HTTP for the tests: WSGI and ASGI servers in threads of this process, and a client on a bare socket that sees every byte come."""

import contextlib
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self
from wsgiref import simple_server

from support.face import PATIENCE

Address = tuple[str, int]


class Talk:
    """One request on a connection of its own, whose answer is read bit by bit; *more* bytes of its body are for `send`."""

    def __init__(
        self, address: Address, path: str = "/", method: str = "GET", body: bytes = b"", *, more: int = 0, **headers: str
    ) -> None:
        self._socket = socket.create_connection(address, PATIENCE)
        head = [f"{method} {path} HTTP/1.0", "Host: test", f"Content-Length: {len(body) + more}"]
        head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._socket.sendall("\r\n".join([*head, "\r\n"]).encode() + body)
        self._file = self._socket.makefile("rb")
        self._in_chunks = False

    def send(self, body: bytes) -> None:
        """The rest of the request's body."""
        self._socket.sendall(body)

    def status(self) -> int:
        """The status, as soon as its line is here."""
        return int(self._file.readline().split()[1])

    def headers(self) -> dict[str, str]:
        found = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            found[name.lower()] = value.strip()
        self._in_chunks = found.get("transfer-encoding") == "chunked"  # which Sanic sends to clients of HTTP/1.0, too
        return found

    def line(self) -> str:
        """The next line of the body."""
        return self._file.readline().decode().rstrip("\n")

    def rest(self) -> str:
        """The body until the server closes; then the connection is closed."""
        with self:
            return (self._chunks() if self._in_chunks else self._file.read()).decode()

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self._file.readline() or b"0", 16):
            found += self._file.read(size)
            self._file.readline()
        return found

    def leave(self) -> None:
        """Go away in the middle: the server's next write fails."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._socket.close()


class WebSocket:
    """A client of a WebSocket, for short messages of text."""

    def __init__(self, address: Address, path: str) -> None:
        self._socket = socket.create_connection(address, PATIENCE)
        self._file = self._socket.makefile("rb")
        head = [f"GET {path} HTTP/1.1", "Host: test", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        self._socket.sendall("\r\n".join([*head, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "\r\n"]).encode())
        assert self._file.readline().split()[1] == b"101"
        while self._file.readline().strip():
            pass

    def ask(self, text: str) -> str:
        """The answer to a message."""
        data = text.encode()
        self._socket.sendall(bytes([0x81, 0x80 | len(data)]) + bytes(4) + data)  # masked with zeros
        _, size = self._file.read(2)
        return self._file.read(size).decode()

    def leave(self) -> None:
        """Go away without a word."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._socket.close()


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    text: str


def fetch(address: Address, path: str = "/", method: str = "GET", body: bytes = b"", **headers: str) -> Response:
    """A whole request and its answer."""
    with Talk(address, path, method, body, **headers) as talk:
        return Response(talk.status(), talk.headers(), talk.rest())


@contextlib.contextmanager
def cheroot(app: Any, threads: int = 10) -> Iterator[Address]:
    """*app* on the server of web.py, whose worker threads serve one request after another in one context."""
    from cheroot import wsgi

    server = wsgi.Server(("127.0.0.1", 0), app, numthreads=threads, max=threads, request_queue_size=256)
    server.expiration_interval = 0.02  # how soon it notices that it was stopped
    server.prepare()
    thread = threading.Thread(target=server.serve, name="cheroot")
    thread.start()
    try:
        yield server.bind_addr
    finally:
        server.stop()
        thread.join()


@contextlib.contextmanager
def serving(server: socketserver.BaseServer, name: str) -> Iterator[Address]:
    """*server*, one of the standard library's kind, while it serves."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name=name)
    thread.start()
    try:
        yield server.server_address[:2]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def wsgiref(app: Any, threads: int = 0) -> Iterator[Address]:
    """*app* on the server of the standard library, with a new thread for each request."""
    with serving(simple_server.make_server("127.0.0.1", 0, app, _Threaded, _Silent), "wsgiref") as address:
        yield address


@contextlib.contextmanager
def waitress(app: Any, threads: int = 10) -> Iterator[Address]:
    """*app* on waitress, whose main loop sends what its worker threads have made."""
    from waitress import create_server, wasyncore

    channels: dict[int, Any] = {}
    server = create_server(app, map=channels, host="127.0.0.1", port=0, threads=threads, asyncore_loop_timeout=0.02)
    thread = threading.Thread(target=server.run, name="waitress")
    thread.start()
    try:
        yield "127.0.0.1", server.effective_port
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(channels, ignore_all=True))
        thread.join()
        server.task_dispatcher.shutdown()


GREEN = os.environ.get("TENURE_TEST_GREEN", "")
"""``gevent`` or ``eventlet`` where the whole process of the tests is patched by it, as ``tests/green/probed.py`` does."""


@contextlib.contextmanager
def green(app: Any, threads: int = 0) -> Iterator[Address]:
    """*app* on the WSGI server of gevent or eventlet, with a greenlet for each client."""
    if GREEN == "gevent":
        from gevent.pywsgi import WSGIServer

        server = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None)
        server.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.stop(timeout=1.0)
        return
    import eventlet
    from eventlet import wsgi

    listening = eventlet.listen(("127.0.0.1", 0), backlog=256)
    # By itself it keeps back parts of a body that are short.
    serving = eventlet.spawn(wsgi.server, listening, app, log_output=False, minimum_chunk_size=1)
    try:
        yield listening.getsockname()
    finally:
        serving.kill()
        listening.close()


@contextlib.contextmanager
def uvicorn(app: Any, threads: int = 0) -> Iterator[Address]:
    """An ASGI *app* on uvicorn, on an event loop in a thread of its own."""
    import uvicorn as server_of

    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    # Not what happens to be installed: httptools answers HTTP/1.0 in chunks, and Sanic brings it.
    plain = {"http": "h11", "loop": "asyncio", "ws": "wsproto", "log_config": None, "access_log": False}
    config = server_of.Config(app, lifespan="on", **plain)
    server = server_of.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="uvicorn")
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextlib.contextmanager
def hypercorn(app: Any, threads: int = 0) -> Iterator[Address]:
    """An ASGI *app* on hypercorn, on an event loop in a thread of its own."""
    import asyncio

    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    address = listening.getsockname()
    config = Config()
    config.bind = [f"fd://{listening.detach()}"]
    config.graceful_timeout = 1.0

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        started.set()
        await serve(app, config, shutdown_trigger=stop.wait)

    stopping: list[Any] = []
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()), name="hypercorn")
    thread.start()
    started.wait(PATIENCE)
    try:
        yield address
    finally:
        stopping[0]()
        thread.join()


@contextlib.contextmanager
def aiohttp(app: Any, threads: int = 0) -> Iterator[Address]:
    """An application of aiohttp on its own server, on an event loop in a thread of its own."""
    import asyncio

    from aiohttp import web

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=256)
        await site.start()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        addresses.append(runner.addresses[0][:2])
        started.set()
        await stop.wait()
        await runner.cleanup()

    stopping: list[Any] = []
    addresses: list[Address] = []
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()), name="aiohttp")
    thread.start()
    started.wait(PATIENCE)
    try:
        yield addresses[0]
    finally:
        stopping[0]()
        thread.join()


@contextlib.contextmanager
def sanic(app: Any, threads: int = 0) -> Iterator[Address]:
    """An application of Sanic on its own server, on an event loop in a thread of its own."""
    import asyncio

    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    app.config.update(TOUCHUP=False, MOTD=False)  # else it changes its own classes, for all applications of a process

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        server = await app.create_server(sock=listening, return_asyncio_server=True, access_log=False)
        await server.startup()
        await server.before_start()
        await server.after_start()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        started.set()
        await stop.wait()
        await server.before_stop()
        await server.close()
        for connection in server.connections:
            connection.abort()
        await server.after_stop()

    stopping: list[Any] = []
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()), name="sanic")
    thread.start()
    started.wait(PATIENCE)
    try:
        yield listening.getsockname()
    finally:
        stopping[0]()
        thread.join()
        type(app).unregister_app(app)


class _Threaded(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no news."""


class _Silent(simple_server.WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """The tests look at the answers."""


def at_once(count: int, call: Any) -> list[Any]:
    """The results of *call* with each number below *count*, all at once, each in a thread of its own."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def work(number: int) -> None:
        barrier.wait(PATIENCE)
        try:
            results[number] = call(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
