"""A network between a test and its server, which can be slow, stand still or break, and which counts round trips.

`Proxy` passes bytes on in one thread of its own and knows no protocol, so it serves PostgreSQL and MariaDB alike. What a test
asks of it is done when the call returns. A *message* is what the client has sent at one time.
"""

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import sqlalchemy as sa

from support import servers
from support.face import PATIENCE

GRACE = 0.005
"""Seconds an answer is held back while round trips are counted: what a client sends unasked is on its way by then."""

Address = str | tuple[str, int]
"""The path of a unix socket, or host and port."""


@dataclass
class Trips:
    """How many round trips were made one after another: each an answer, to whatever the client had sent before it."""

    number: int = 0


@dataclass(eq=False)
class _Way:
    """One direction of a link, with what is under way in it and when each piece is due."""

    source: socket.socket
    sink: socket.socket
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)
    seen: bytes = b""

    def due(self, now: float) -> bool:
        return bool(self.under_way) and self.under_way[0][0] <= now


@dataclass
class _Cut:
    """Where the next link breaks: at the message with *needle*, before or after the server has it."""

    needle: bytes
    after: bool
    down: bool


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.asking = _Way(client, server)
        self.answering = _Way(server, client)
        self.asked = False
        self.doomed: _Cut | None = None

    def ways(self) -> tuple[_Way, _Way]:
        return self.asking, self.answering

    def close(self) -> None:
        self.asking.source.close()
        self.answering.source.close()


class Proxy:
    """A TCP server on 127.0.0.1 in front of the server at *target*."""

    def __init__(self, target: Address, base: sa.URL | None = None) -> None:
        self._target = target
        self._base = base
        self._delay = self._held_back = 0.0
        self._frozen = self._down = self._closed = False
        self._links: list[_Link] = []
        self._cuts: list[_Cut] = []
        self._counts: list[Trips] = []
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @classmethod
    def before(cls, driver: str) -> Self:
        """A proxy in front of the server that *driver* talks to."""
        base = servers.url(driver)
        folder = base.query.get("host")
        target: Address = f"{folder}/.s.PGSQL.{base.port or 5432}" if folder else (base.host or "127.0.0.1", base.port or 3306)
        return cls(target, base)

    def url(self, driver: str) -> sa.URL:
        """The address of the same database on *driver*, by way of this proxy."""
        assert self._base is not None
        through = self._base.set(drivername=servers.DRIVERS[driver].drivername, host="127.0.0.1", port=self.port)
        return through.difference_update_query(["host"])

    # ------------------------------------------------------------------------ what a test asks

    @contextlib.contextmanager
    def count(self) -> Iterator[Trips]:
        """Count the round trips made in the block. Pipelined messages, however many, are one."""
        trips = Trips()
        self._order(lambda: self._counting(trips, on=True))
        try:
            yield trips
        finally:
            self._order(lambda: self._counting(trips, on=False))

    def delay(self, seconds: float) -> None:
        """From now on whatever is sent takes *seconds* each way."""
        self._order(lambda: setattr(self, "_delay", seconds))

    def freeze(self) -> None:
        """Pass nothing on, and tell nobody: what a lost route looks like. Links stay, new ones get no answer."""
        self._order(lambda: setattr(self, "_frozen", True))

    def thaw(self) -> None:
        """Go on, with what waited first."""
        self._order(lambda: setattr(self, "_frozen", False))

    def cut(self, *, down: bool = False) -> None:
        """Break all links now. With *down* every new one breaks at once too, until `up`."""
        self._order(lambda: self._cut_all(down))

    def up(self) -> None:
        """Let new links live again."""
        self._order(lambda: setattr(self, "_down", False))

    def cut_before(self, needle: bytes, *, down: bool = False) -> None:
        """Break the next link that sends a message with *needle*: the server never gets it. Once for each call.

        With *down* all other links break with it, and every new one, until `up`.
        """
        self._order(lambda: self._cuts.append(_Cut(needle, after=False, down=down)))

    def cut_after(self, needle: bytes, *, down: bool = False) -> None:
        """Break the next link that sends a message with *needle* when the server has answered it; the answer is dropped.

        Otherwise as `cut_before`.
        """
        self._order(lambda: self._cuts.append(_Cut(needle, after=True, down=down)))

    def forget(self) -> None:
        """Break no link of those that `cut_before` and `cut_after` still wait for."""
        self._order(self._cuts.clear)

    def links(self) -> int:
        """How many connections go through this proxy now."""
        number: list[int] = []
        self._order(lambda: number.append(len(self._links)))
        return number[0]

    def close(self) -> None:
        """Break all links and end the thread; closing twice is fine."""
        if self._thread.is_alive():
            self._order(lambda: setattr(self, "_closed", True))
            self._thread.join(PATIENCE)
        self._woken.close()
        self._waker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---------------------------------------------------------------------- what its thread does

    def _order(self, do: Callable[[], None]) -> None:
        """Have *do* done by the proxy's thread, and wait for it."""
        done = threading.Event()
        self._orders.append((do, done))
        self._waker.send(b"!")
        if not done.wait(PATIENCE):
            raise TimeoutError(f"the proxy on port {self.port} does not answer")

    def _run(self) -> None:
        while not self._closed:
            readable, writable = self._ready()
            if self._woken in readable:
                self._obey()
                continue  # an order may have closed what was ready
            if self._listener in readable:
                self._accept()
            for link in list(self._links):
                try:
                    self._serve(link, readable, writable)
                except OSError:  # one side has gone
                    self._drop(link)
        for link in list(self._links):
            self._drop(link)
        self._listener.close()

    def _ready(self) -> tuple[list[socket.socket], list[socket.socket]]:
        reading, writing = [self._woken], []
        timeout = None
        if not self._frozen:
            now = time.monotonic()
            ways = [way for link in self._links for way in link.ways()]
            reading += [self._listener, *(way.source for way in ways)]
            writing = [way.sink for way in ways if way.due(now)]
            waits = [way.under_way[0][0] - now for way in ways if way.under_way and not way.due(now)]
            timeout = min(waits, default=None)
        readable, writable, _ = select.select(reading, writing, [], timeout)
        return readable, writable

    def _obey(self) -> None:
        self._woken.recv(4096)
        while self._orders:
            do, done = self._orders.popleft()
            do()
            done.set()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._down:
            client.close()
            return
        try:
            if isinstance(self._target, str):
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
            else:
                server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links.append(_Link(client, server))

    def _serve(self, link: _Link, readable: list[socket.socket], writable: list[socket.socket]) -> None:
        now = time.monotonic()
        for way in link.ways():
            if way.source in readable:
                data = way.source.recv(65536)
                if not data:  # what is still under way is not waited for: the other side cannot answer it
                    self._flush(link, way)
                    self._drop(link)
                    return
                held_back = self._held_back if way is link.answering else 0.0
                way.under_way.append((now + self._delay + held_back, data))
        for way in link.ways():
            if way.sink in writable:
                self._pass_on(link, way)
                if link not in self._links:
                    return

    def _pass_on(self, link: _Link, way: _Way) -> None:
        _, data = way.under_way[0]
        if way is link.asking:
            cut = self._cut_at(way, data)
            if cut is not None and not cut.after:
                self._break(link, cut)
                return
            link.doomed = cut or link.doomed
            link.asked = True
        elif link.doomed is not None:
            self._break(link, link.doomed)
            return
        elif link.asked:
            link.asked = False
            for trips in self._counts:
                trips.number += 1
        sent = way.sink.send(data)
        way.seen = (way.seen + data[:sent])[-64:]
        way.under_way.popleft()
        if sent < len(data):
            way.under_way.appendleft((0.0, data[sent:]))

    def _cut_at(self, way: _Way, data: bytes) -> _Cut | None:
        for cut in self._cuts:
            if cut.needle in way.seen[-len(cut.needle) + 1 :] + data:
                self._cuts.remove(cut)
                return cut
        return None

    def _flush(self, link: _Link, way: _Way) -> None:
        """Pass on what one side said before it went, so that its last words arrive."""
        while way.under_way and link in self._links:
            self._pass_on(link, way)

    def _break(self, link: _Link, cut: _Cut) -> None:
        self._drop(link)
        if cut.down:
            self._cut_all(down=True)

    def _cut_all(self, down: bool) -> None:
        self._down = self._down or down
        for link in list(self._links):
            self._drop(link)

    def _counting(self, trips: Trips, *, on: bool) -> None:
        if on:
            self._counts.append(trips)
        else:
            self._counts.remove(trips)
        self._held_back = GRACE if self._counts else 0.0

    def _drop(self, link: _Link) -> None:
        if link in self._links:
            self._links.remove(link)
            link.close()
