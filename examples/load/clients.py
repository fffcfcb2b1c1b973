"""What the clients do, and the book they keep of it. They know HTTP and nothing else."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlencode, urlsplit

CLIENTS = 24
PATIENCE = 60.0  # seconds after which an answer counts as missing
FORM = "application/x-www-form-urlencoded"
LEFT = "left"
NONE = "no answer"


@dataclass(frozen=True)
class Act:
    """One thing that a client does.

    Attributes:
        name: As the table shows it.
        share: How often it does so in a round.
        answers: Which answers are right.
        writes: It asks for something to be stored.
        leaves: It does not wait for the end of the answer.

    """

    name: str
    share: int
    answers: tuple[int, ...]
    writes: bool = False
    leaves: bool = False


BALANCES = Act("reads all balances", 4, (200,))
HOME = Act("opens the first page", 2, (200,))
PAGE = Act("opens an account", 3, (200,))
DOWNLOAD = Act("downloads a statement", 1, (200,))
BREAK_OFF = Act("leaves a download early", 1, (200,), leaves=True)
LOST = Act("asks for what is not there", 1, (404,))
ORDER = Act("orders", 3, (303,), writes=True)
LOOK = Act("looks at its order", 0, (200,))  # follows every order
RAISE = Act("orders, and the handler raises", 1, (500,), writes=True)
AT_COMMIT = Act("orders what COMMIT refuses", 1, (409,), writes=True)
AGAIN = Act("orders the same once more", 1, (409,), writes=True)
RUN_OFF = Act("orders, and leaves", 1, (303,), writes=True, leaves=True)
TRANSFER = Act("transfers", 4, (201,), writes=True)
TOO_MUCH = Act("transfers more than there is", 2, (400,), writes=True)
ACTS = (
    BALANCES, HOME, PAGE, DOWNLOAD, BREAK_OFF, LOST, ORDER, LOOK, RAISE, AT_COMMIT, AGAIN, RUN_OFF, TRANSFER, TOO_MUCH,
)  # fmt: skip


@dataclass
class Book:
    """What the clients know. Each request that asks for something to be stored carries a token of its own."""

    answers: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    times: array[float] = field(default_factory=lambda: array("d"))
    acknowledged: dict[str, str] = field(default_factory=dict)  # token: "order" or "transfer"
    refused: set[str] = field(default_factory=set)
    untold: set[str] = field(default_factory=set)  # the client left, or the server was killed
    mixed_up: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, act: Act, answer: str, seconds: float | None = None, token: str | None = None) -> None:
        """Write down one request."""
        with self.lock:
            self.answers[act.name][answer] += 1
            if seconds is not None:
                self.times.append(seconds)
                if int(answer) not in act.answers:
                    self.odd.append(f"{act.name}: {answer}")
            if token is not None and answer in (LEFT, NONE):
                self.untold.add(token)
            elif token is not None and int(answer) < 400:
                self.acknowledged[token] = "transfer" if act is TRANSFER else "order"
            elif token is not None:
                self.refused.add(token)

    def wrong(self, act: Act, what: str) -> None:
        """An answer that was not this client's, or that shows half of something."""
        with self.lock:
            self.mixed_up.append(f"{act.name}: {what}")

    def missing(self) -> list[str]:
        """What nobody has done yet."""
        with self.lock:
            return [act.name for act in ACTS if not self.answers.get(act.name)]

    @property
    def requests(self) -> int:
        """How many there were."""
        with self.lock:
            return sum(count for answers in self.answers.values() for count in answers.values())


class Unanswered(Exception):
    """The server did not answer."""


@dataclass(frozen=True)
class Ground:
    """What is known before the first request: how many accounts there are, and what they hold together."""

    accounts: int
    total: int


class Client(threading.Thread):
    """One client. It goes through all acts in an order of its own, again and again."""

    def __init__(self, number: int, *, run: str, port: int, ground: Ground, book: Book, stop: threading.Event) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._prefix = f"{run}-{number}"
        self._tokens = 0
        self._http = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._ground = ground
        self._book = book
        self._stop_asked = stop
        self._random = random.Random(number)
        self._last_order: dict[str, object] | None = None
        self._does: dict[Act, Callable[[], None]] = {
            BALANCES: self._balances, HOME: self._home, PAGE: self._page, DOWNLOAD: self._download, BREAK_OFF: self._break_off,
            LOST: self._lost, ORDER: self._order, RAISE: lambda: self._fail(RAISE, item="lemons"),
            AT_COMMIT: lambda: self._fail(AT_COMMIT, friend=10**6), AGAIN: self._again, RUN_OFF: self._run_off,
            TRANSFER: lambda: self._transfer(TRANSFER, self._random.randint(1, 9)),
            TOO_MUCH: lambda: self._transfer(TOO_MUCH, 10**7),
        }  # fmt: skip
        self._first = list(self._does)[number % len(self._does)]  # so that soon everything has been done by somebody

    def run(self) -> None:
        deck = [act for act in ACTS for _ in range(act.share)]
        turn = [self._first]
        while not self._stop_asked.is_set():
            for act in turn:
                if self._stop_asked.is_set():
                    break
                try:
                    self._does[act]()
                except Unanswered:
                    self._stop_asked.wait(0.05)
            self._random.shuffle(deck)
            turn = deck
        self._http.close()

    # -- asking ---------------------------------------------------------------------------------------

    def _send(self, act: Act, method: str, path: str, body: str | None = None, kind: str = FORM) -> None:
        self._http.request(method, path, body, {"X-Act": act.name, "Content-Type": kind})

    def _ask(self, act: Act, *request: str, token: str | None = None) -> tuple[int, str, str]:
        """Send a request and give status, address of a redirect and body of its answer."""
        began = time.perf_counter()
        try:
            self._send(act, *request)
            answer = self._http.getresponse()
            body = answer.read().decode()
        except (OSError, HTTPException) as error:
            self._http.close()
            self._book.note(act, NONE, token=token)
            raise Unanswered from error
        self._book.note(act, str(answer.status), time.perf_counter() - began, token)
        if answer.status == 500:
            self._http.close()  # some servers hang up after an error of their own, and do not say so before
        return answer.status, answer.headers.get("Location", ""), body

    def _leave(self, act: Act, *request: str, token: str | None = None, taking: int = 0) -> None:
        """Send a request and leave: at once, or *taking* some bytes of the answer along."""
        try:
            self._send(act, *request)
            if taking:
                self._http.getresponse().read(taking)
            else:
                time.sleep(self._random.random() * 0.005)
        except (OSError, HTTPException) as error:
            raise Unanswered from error
        finally:
            self._http.close()
            self._book.note(act, LEFT, token=token)

    def _token(self) -> str:
        self._tokens += 1
        return f"{self._prefix}-{self._tokens}"

    def _two(self) -> tuple[int, int]:
        first, second = self._random.sample(range(1, self._ground.accounts + 1), 2)
        return first, second

    # -- reading --------------------------------------------------------------------------------------

    def _balances(self) -> None:
        status, _, body = self._ask(BALANCES, "GET", "/accounts")
        if status == 200 and (total := sum(json.loads(body)["balances"].values())) != self._ground.total:
            self._book.wrong(BALANCES, f"a sum of {total}, not {self._ground.total}")

    def _home(self) -> None:
        status, _, body = self._ask(HOME, "GET", "/")
        if status == 200 and (total := _number("total", body)) != self._ground.total:
            self._book.wrong(HOME, f"a sum of {total}, not {self._ground.total}")

    def _page(self) -> None:
        number, _ = self._two()
        status, _, body = self._ask(PAGE, "GET", f"/accounts/{number}")
        if status != 200:
            return
        if f"&lt;owner {number}&gt;" not in body:
            self._book.wrong(PAGE, f"not the page of {number}")
        if _number("opening", body) + _number("in", body) - _number("out", body) != _number("balance", body):
            self._book.wrong(PAGE, f"account {number} holds what its payments do not come to")

    def _download(self) -> None:
        number, _ = self._two()
        status, _, body = self._ask(DOWNLOAD, "GET", f"/accounts/{number}/statement")
        _, *rows, end = body.splitlines()
        if status == 200 and (end != "end,,," or any(str(number) not in row.split(",")[1:3] for row in rows)):
            self._book.wrong(DOWNLOAD, f"not the whole statement of {number}, or not only that")

    def _break_off(self) -> None:
        self._leave(BREAK_OFF, "GET", f"/accounts/{self._two()[0]}/statement", taking=10)

    def _lost(self) -> None:
        self._ask(LOST, "GET", f"/orders/{10**9}")

    # -- writing --------------------------------------------------------------------------------------

    def _form(self, **more: object) -> dict[str, object]:
        buyer, seller = self._two()
        return {"token": self._token(), "buyer": buyer, "seller": seller, "price": self._random.randint(1, 9), **more}

    def _order(self) -> None:
        form = self._form()
        status, address, _ = self._ask(ORDER, "POST", "/orders", urlencode(form), token=str(form["token"]))
        if status == 303:
            self._last_order = form
            _, _, body = self._ask(LOOK, "GET", urlsplit(address).path)
            if f">{form['token']}<" not in body or _number("price", body) != form["price"]:
                self._book.wrong(LOOK, f"not the order {form['token']}")

    def _fail(self, act: Act, **more: object) -> None:
        form = self._form(**more)
        self._ask(act, "POST", "/orders", urlencode(form), token=str(form["token"]))

    def _again(self) -> None:
        if self._last_order is None:
            self._order()
        if self._last_order is not None:
            self._ask(AGAIN, "POST", "/orders", urlencode(self._last_order))

    def _run_off(self) -> None:
        form = self._form()
        self._leave(RUN_OFF, "POST", "/orders", urlencode(form), token=str(form["token"]))

    def _transfer(self, act: Act, amount: int) -> None:
        source, target = self._two()
        token = self._token()
        asked = json.dumps({"token": token, "source": source, "target": target, "amount": amount})
        status, _, body = self._ask(act, "POST", "/transfers", asked, "application/json", token=token)
        if status == 201 and json.loads(body)["token"] != token:
            self._book.wrong(act, f"not the transfer {token}")


def _number(name: str, page: str) -> int:
    found = re.search(rf'id="{name}">(-?\d+)<', page)
    return int(found.group(1)) if found else -1
