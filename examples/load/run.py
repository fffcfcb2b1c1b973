"""One run from the first to the last: a server, 24 clients, the facts of it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from sqlalchemy import URL

from examples.load import account
from examples.load.account import Facts, Rows
from examples.load.clients import CLIENTS, NONE, Book, Client, Ground
from examples.load.process import Server

GRACE = 10.0  # seconds more for a machine so slow that something was not done by anybody


@dataclass
class Load:
    """A server and its clients, as a context: the server starts as it is entered, and none is left behind."""

    command: Sequence[str]
    url: URL
    log: Path
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    book: Book = field(default_factory=Book)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        self.earlier: Rows = account.read(self.url)
        self.server = Server(self.command, self.url, self.log)
        try:
            now = account.read(self.url)
        except BaseException:
            self.server.kill()
            raise
        self.ground = Ground(now.accounts, now.total)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.server.kill()

    @property
    def age(self) -> float:
        """Seconds since the clients began."""
        return time.monotonic() - self._began

    def is_enough(self, seconds: float) -> bool:
        """Whether the time is over, and everything has been done by somebody."""
        return self.age >= seconds and (not self.book.missing() or self.age >= seconds + GRACE)

    def start(self) -> None:
        """Let the clients begin."""
        self._began = time.monotonic()
        port = self.server.port
        for number in range(1, CLIENTS + 1):
            client = Client(number, run=self.run, port=port, ground=self.ground, book=self.book, stop=self._stop)
            self._clients.append(client)
            client.start()

    def end(self, *, whole: bool = True, interrupted: bool = False, kill: bool = False) -> Facts:
        """End the clients, then the server; or with *kill* the server first, and hard. Then read what is stored."""
        took, gone = self.age, not self.server.runs
        if kill:
            self.server.kill()
        self._stop.set()
        for client in self._clients:
            client.join()
        status = self.server.stop()
        rows = account.read(self.url, self.run)
        report = None if kill else self.server.report
        return Facts(self.book, self.ground, self.earlier, rows, report, status, whole, interrupted, gone, killed=kill, took=took)

    def status(self) -> dict[str, Any] | None:
        """What the server says of its connections, or None if it does not say it in a second."""
        http = HTTPConnection("127.0.0.1", self.server.port, timeout=1)
        try:
            http.request("GET", "/status")
            return dict(json.loads(http.getresponse().read()))
        except (OSError, HTTPException, ValueError):
            return None
        finally:
            http.close()


class Progress:
    """A line about the load: rewritten in place on a terminal, else one every second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.status("") if console.is_terminal else None
        self.every = 0.25 if self._live else 1.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, load: Load) -> None:
        requests = load.book.requests
        status = load.status()
        out = "the server is silent" if status is None else f"{status['in_use']} of {status['capacity']} connections out"
        none = sum(answers[NONE] for answers in load.book.answers.values())
        line = f"{load.age:4.0f} s   {requests:,} requests   {requests / load.age:,.0f} a second   {out}"
        line += f"   {none} without an answer" if none else ""
        if self._live:
            self._live.update(line)
        else:
            self._console.print(line, highlight=False, soft_wrap=True)
