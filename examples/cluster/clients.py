"""Clients that order over HTTP. Who gets no answer, or hears of trouble, sends the same order again, to either node."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.cookies import SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import urlencode

from examples.cluster.models import CUSTOMERS

CLIENTS = 8
ITEMS = ("apples", "bread", "cheese", "milk", "lemons")  # of lemons there are none
THINKING = 0.1  # seconds from an answer to the next order
TIMEOUT = 10.0  # seconds for which an answer is waited for
PATIENCE = 60.0  # seconds after the end of the run in which an order must have been answered


@dataclass
class Book:
    """What all clients were told.

    Attributes:
        acknowledged: The number of the order, by its token.
        refused: Tokens of orders that the shop does not take.
        open: Tokens of orders to which there was no final answer.
        again: Why an order was sent once more, and how often.
        reads: From where own orders were read back: the standby, the primary.
        unseen: Orders that were acknowledged, and then not found by the very client.

    """

    acknowledged: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    again: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    unseen: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Answer(NamedTuple):
    """An answer to a request; status 0 if there was none."""

    status: int
    said: Any = None


class Client(threading.Thread):
    """One of them: orders until *stop*, and then until its last order is answered."""

    def __init__(self, number: int, ports: Mapping[str, int], book: Book, stop: threading.Event, seed: int) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self._customer = number % CUSTOMERS + 1
        self._ports = list(ports.values())
        self._book = book
        self._ending = stop
        self._random = random.Random(f"{seed} {number}")
        self._cookies: dict[str, str] = {}

    def run(self) -> None:
        """Order, and look at what was ordered."""
        while not self._ending.is_set():
            token = uuid.uuid4().hex
            with self._book.lock:
                self._book.open.add(token)
            number = self._order(token)
            if number is not None:
                self._look(number, token)
            self._ending.wait(THINKING * self._random.uniform(0.5, 1.5))

    def _order(self, token: str) -> int | None:
        """Send an order until it is answered; its number if it was taken."""
        form = {"token": token, "customer": self._customer, "item": self._random.choice(ITEMS)}
        ends: float | None = None
        while True:
            answer = self._ask("POST", "/orders", urlencode(form))
            with self._book.lock:
                if answer.status == 201:
                    self._book.acknowledged[token] = answer.said["order"]
                elif answer.status == 422:
                    self._book.refused.add(token)
                else:
                    self._book.again[str(answer.status or "no answer")] += 1
                if answer.status in (201, 422):
                    self._book.open.discard(token)
                    return self._book.acknowledged.get(token)
            if self._ending.is_set():
                ends = ends or time.monotonic() + PATIENCE
                if time.monotonic() > ends:
                    return None
            time.sleep(0.1)

    def _look(self, number: int, token: str) -> None:
        """Read the order back, perhaps on the other node. What is acknowledged must be there, on whichever server it is read."""
        answer = self._ask("GET", f"/orders/{number}")
        with self._book.lock:
            if answer.status == 200 and answer.said["token"] == token:
                self._book.reads["standby" if answer.said["standby"] else "primary"] += 1
            elif answer.status in (200, 404):
                self._book.unseen.append(number)
            else:
                self._book.reads[str(answer.status or "no answer")] += 1

    def _ask(self, method: str, path: str, body: str | None = None) -> Answer:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Connection": "close"}
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        http = HTTPConnection("127.0.0.1", self._random.choice(self._ports), timeout=TIMEOUT)
        try:
            http.request(method, path, body, headers)
            answer = http.getresponse()
            said = answer.read()
        except (OSError, HTTPException):
            return Answer(0)
        finally:
            http.close()
        for cookie in answer.headers.get_all("Set-Cookie") or ():
            self._cookies |= {name: one.value for name, one in SimpleCookie(cookie).items()}
        return Answer(answer.status, json.loads(said) if answer.status < 300 else None)


class Clients:
    """All of them."""

    patience = PATIENCE + 2 * TIMEOUT  # seconds after which the last of them has given up

    def __init__(self, ports: Mapping[str, int], seed: int) -> None:
        self.book = Book()
        self._ending = threading.Event()
        self._all = [Client(number, ports, self.book, self._ending, seed) for number in range(CLIENTS)]

    def start(self) -> None:
        """Let them order."""
        for one in self._all:
            one.start()

    def end(self) -> None:
        """Let them end; `ended` says when they have."""
        self._ending.set()

    @property
    def ended(self) -> bool:
        """Whether none of them waits for an answer any more."""
        return not any(one.is_alive() for one in self._all)
