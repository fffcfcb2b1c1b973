"""Many HTTP clients in one event loop. Each asks again as soon as it has its answer."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass, field
from time import perf_counter

_ASK = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass
class Served:
    """What the clients of one run have seen.

    Attributes:
        seconds: How long it was looked at.
        waits: For each answer 200, how long it took.
        failed: How many other answers there were.

    """

    seconds: float
    waits: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def rate(self) -> float:
        """Answers 200 for each second."""
        return len(self.waits) / self.seconds

    @property
    def median(self) -> float:
        """The median time to an answer."""
        return statistics.median(self.waits) if self.waits else float("inf")


class _Client(asyncio.Protocol):
    def __init__(self, served: Served) -> None:
        self.served = served
        self.looking = False
        self.got = b""
        self.asked = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.got, self.asked = b"", perf_counter()
        self.transport.write(_ASK)

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, end, body = self.got.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return
        if self.looking:
            if self.got[9:12] == b"200":
                self.served.waits.append(perf_counter() - self.asked)
            else:
                self.served.failed += 1
        self.ask()


async def ask(port: int, count: int, seconds: float, *, warm: float = 0.5) -> Served:
    """Have *count* clients ask the server at *port* for *seconds*, after *warm* seconds that do not count."""
    served = Served(seconds)
    loop = asyncio.get_running_loop()
    clients: list[_Client] = []
    try:
        for _ in range(count):
            _, client = await loop.create_connection(lambda: _Client(served), "127.0.0.1", port)
            clients.append(client)
        await asyncio.sleep(warm)
        for one in clients:
            one.looking = True
        began = perf_counter()
        await asyncio.sleep(seconds)
        served.seconds = perf_counter() - began
        for one in clients:
            one.looking = False
    finally:
        for one in clients:
            one.transport.abort()
    return served
