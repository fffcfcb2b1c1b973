"""One request is one unit: when it opens, what its answer means, when it has ended. Every host asks here; none decides.

A request is in one of three phases. Until ``settle`` the handler works, and the unit opens when it is first asked for. ``settle``
comes when the status is known and before the first byte leaves: it commits or rolls back. From then on the body is sent and may
read, but must not write. ``finish`` ends it.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Generator, Iterable
from contextvars import Token
from functools import partial
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, get_args

from tenure import callsite
from tenure.callsite import Site, words
from tenure.core import events
from tenure.core.base import BaseDatabase
from tenure.core.current import Place
from tenure.core.database import Database
from tenure.core.options import UnitOptions
from tenure.core.plan import Outcome, Verdict, drive
from tenure.core.unit import BaseUnit
from tenure.engines.position import Client
from tenure.exceptions import BadOption, DatabaseDraining, LostWork, Overloaded

CommitIf: TypeAlias = Callable[[int], bool]
Commit: TypeAlias = Literal["auto", "explicit"]
Work: TypeAlias = Callable[[], Any]  # a step of a request's end, to be called, and awaited on an event loop

_OPTIONS: Final = UnitOptions()
_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_KEPT: Final = 600  # seconds that a client keeps a position: far longer than replicas are behind, and over soon after a failover
# Two threads of one request may ask first, or end it, at the same time. A lock that may be taken again, for the garbage
# collector may end a request in the thread that is about to open another.
_TURN: Final = threading.RLock()


def keeps(status: int) -> bool:
    """The rule for what an answer means: below 400 its work is kept."""
    return status < 400


class Refusal(NamedTuple):
    """The answer to a client that may come again: its status line and its headers."""

    status: str
    headers: dict[str, str]


def refusal(error: BaseException) -> Refusal | None:
    """What to answer for *error*, which no handler has caught, before anything was sent; None where it is the server's 500.

    A 503 with ``Retry-After`` tells a load balancer that this process is well, and to try again or elsewhere. ``PoolExhausted``
    is none: its request has waited for the whole time already, a second one would do no better, and its verdict is for people.
    """
    if isinstance(error, (Overloaded, DatabaseDraining)):
        return Refusal("503 Service Unavailable", {"Retry-After": str(math.ceil(error.retry_after))})
    return None


class Boundary:
    """What one application has decided about its requests.

    Args:
        database: Whose units the requests are.
        commit_if: Replaces the rule: gets the status, says whether the request's work is kept. Default: below 400.
        commit: ``"auto"`` (default) commits by that rule. ``"explicit"`` is for code that calls ``commit()`` itself: what it has
            not committed is rolled back, and a warning names the line where work was lost.
        position_cookie: Name of a cookie in which a client that has written keeps the position of its write, so that its next
            requests see it on whichever replica. Default: none. Without replicas no cookie is set.

    Raises:
        BadOption: An argument has a wrong type or value.

    """

    serves: type[BaseDatabase[Any]] = BaseDatabase

    def __init__(
        self,
        database: BaseDatabase[Any],
        *,
        commit_if: CommitIf | None = None,
        commit: Commit = "auto",
        position_cookie: str | None = None,
    ) -> None:
        if not isinstance(database, self.serves):
            raise BadOption(
                f"{type(database).__name__} is not a {self.serves.__name__}. Give the one whose units the requests are to be."
            )
        if commit not in get_args(Commit):
            raise BadOption(f"commit={commit!r}: give 'auto' or 'explicit'.")
        if commit_if is not None and not callable(commit_if):
            raise BadOption(f"commit_if={commit_if!r}: give a function of the status that says whether the work is kept.")
        if commit == "explicit" and commit_if is not None:
            raise BadOption("commit_if= has no say with commit='explicit'. Give one of them.")
        if position_cookie is not None and not _COOKIE_NAME.fullmatch(str(position_cookie)):
            raise BadOption(f"position_cookie={position_cookie!r}: give the name of a cookie: letters, digits, - and _.")
        self.database = database
        self.position_cookie = position_cookie
        self.keeps = commit_if or keeps
        self.explicit = commit == "explicit"

    def client(self, cookies: str | None) -> Client | None:
        """The client of a request that came with this Cookie header; None where there are no replicas."""
        routing = self.database.routing
        if routing is None:
            return None
        token = ""
        if self.position_cookie is not None and cookies:
            pairs = (one.strip().partition("=") for one in cookies.split(";"))
            token = next((value for name, _, value in pairs if name == self.position_cookie), "")
        return routing.client(token)

    def inside(self) -> bool:
        """Whether a request of this database is under way here already, as within a mounted application."""
        place = self.database.current_place.var.get()
        return isinstance(place, Request) and not place.over

    def here(self) -> Request | None:
        """The request of this boundary that is under way here, and not that of an application around or within it."""
        place = self.database.current_place.var.get()
        return place if isinstance(place, Request) and place.boundary is self and not place.over else None


class Request:
    """One request: the place at which its unit opens. Made at its begin, when it costs next to nothing.

    Args:
        boundary: What the application has decided.
        name: ``GET /path``.
        cookies: Its Cookie header, if it has one.

    """

    __slots__ = (
        "__weakref__",
        "_came_with",
        "_outside",
        "answer",
        "boundary",
        "claimed",
        "client",
        "ending",
        "name",
        "over",
        "settled",
        "token",
        "unit",
        "whole",
    )
    worker: Any = None  # whose the unit is, where that is not the thread that opens it

    def __init__(self, boundary: Boundary, name: str, cookies: str | None = None) -> None:
        self.boundary = boundary
        self.name = name
        self.client = boundary.client(cookies)
        self._came_with = None if self.client is None else self.client.mark
        self._outside: Client | None = None
        self.unit: BaseUnit[Any] | None = None
        self.settled: Verdict | None = None
        self.answer: tuple[int, BaseException | None] | None = None  # where no unit was open when it was settled
        self.ending = False
        self.over = False
        self.claimed = False  # a host that has contexts of its own knows in which of them it is
        self.whole = False  # the host knows that nothing of the body is made while it is sent
        self.token: Token[Place] | None = self.enter()

    def __call__(self) -> BaseUnit[Any] | None:
        """The request's unit, if something has asked for it."""
        return self.unit

    def open(self) -> BaseUnit[Any] | None:
        """The request's unit, opened now if nothing has asked before; None when the request is over."""
        if self.unit is None:
            self._open(callsite.here(2))
        return None if self.over else self.unit

    def _open(self, site: Site | None) -> None:
        with _TURN:
            if self.unit is None and not self.over:
                database = self.boundary.database
                database.check_not_draining(self.name, site)
                unit = database.unit_class(database, _OPTIONS, site, name=self.name)
                database.units.enter(unit)
                if self.answer is not None:
                    self._settle_late(unit, *self.answer)
                unit.worker = self.worker
                self.unit = unit

    def _settle_late(self, unit: BaseUnit[Any], status: int, error: BaseException | None) -> None:
        """*unit* opens in the body of an answer: it has written nothing, and its outcome is what the answer means."""
        kept = error is None and (self.boundary.explicit or self.boundary.keeps(status))
        unit.settled, unit.reason = True, _reason(status, error)
        unit.outcome = Outcome.READ_ONLY if kept else Outcome.ROLLED_BACK
        self.settled = Verdict(unit.outcome)

    # -- where it is current ----------------------------------------------------------------------------

    def enter(self) -> Token[Place]:
        """Make the request current again, as for a part of its body; give the token to ``leave``."""
        database = self.boundary.database
        if self.client is not None and database.routing is not None:
            self._outside = database.routing.clients.var.get()
            database.routing.clients.var.set(self.client)
        return database.current_place.var.set(self)

    def leave(self, token: Token[Place] | None) -> None:
        """Make current what was before. Threads are used again: nothing of this request may stay behind."""
        if token is None:
            return
        database = self.boundary.database
        if self.client is not None and database.routing is not None:
            database.routing.clients.var.set(self._outside)
        database.current_place.reset(token)

    # -- what the answer means ------------------------------------------------------------------------------

    def decide(self, status: int, error: BaseException | None) -> BaseUnit[Any] | None:
        """The unit to settle for an answer with *status*, told to roll back if that is what the answer means."""
        with _TURN:  # a unit that another thread opens from now on comes too late to write
            unit = self.unit
            if unit is None:
                self.settled, self.answer = Verdict(Outcome.READ_ONLY), (status, error)
                return None
        unit.reason = _reason(status, error)
        if error is None and self.boundary.explicit:
            self._leave_nothing(unit, status)
        elif error is None and not self.boundary.keeps(status):
            unit.rollback_only(f"status {status}")
        return unit

    def set_cookie(self, *, secure: bool) -> str | None:
        """The Set-Cookie header for a client that has written in this request; None if it has not, or keeps no such cookie.

        Args:
            secure: The request came by HTTPS.

        """
        name, client, routing = self.boundary.position_cookie, self.client, self.boundary.database.routing
        if name is None or client is None or routing is None or client.mark == self._came_with:
            return None
        token = client.mark.token(routing.wall())
        return f"{name}={token}; Path=/; Max-Age={_KEPT}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"

    def _leave_nothing(self, unit: BaseUnit[Any], status: int) -> None:
        """What the application has not committed is rolled back; that is worth a warning when the answer promises success."""
        lost = None if unit.door is None else unit.door.unsaved()
        if lost is None:
            return
        unit.rollback_only(f"{lost.rstrip(',')}, never committed")
        if keeps(status):
            self._warn(f"{unit.name!r} ({words(unit.site)}) {self._went_well(status)}, but {lost} is lost. Call commit().")

    def _went_well(self, status: int) -> str:
        return f"answered {status}"

    def _warn(self, message: str) -> None:
        events.tell(events.WorkLost(self.boundary.database.name, self.name, str(LostWork(message))))

    def check_body(self) -> None:
        """Warn of what the body left unwritten: nothing will store it."""
        unit = self.unit
        if unit is not None and unit.door is not None and not unit.ended and (lost := unit.door.unsaved()):
            self._warn(
                f"{unit.name!r} ({words(unit.site)}): {lost} came while the body was sent and is lost. Use a unit of its own."
            )

    # -- what is to be done: carried out in this thread, in another, or on an event loop ------------------------

    def settling(self, status: int, error: BaseException | None) -> Generator[Work, Any, None]:
        """The plan of ``settle``: commit or roll back, before the first byte leaves."""
        if self.settled is not None:
            return
        unit = self.decide(status, error)
        if unit is None:
            return
        try:
            verdict: Verdict = yield partial(self._shell.settle, unit, error)
        finally:
            self.settled = Verdict(unit.outcome or Outcome.UNKNOWN)  # also when a hook was interrupted
        if verdict.error is not None and verdict.error is not error:
            unit.reason = type(verdict.error).__name__
            raise verdict.error

    def finishing(self, error: BaseException | None, site: Site | None) -> Generator[Work, Any, None]:
        """The plan of ``finish``: the body was sent, or the client has left."""
        with _TURN:
            if self.ending:
                return
            self.ending = True
        try:
            if self.settled is None:  # the host gave up before there was a status
                yield from self.settling(500, error or RuntimeError("the request ended without an answer"))
        finally:
            self.check_body()
            with _TURN:
                self.over = True
            if self.unit is not None:
                yield partial(self._shell.leave, self.unit, error, site, self.settled)

    @property
    def _shell(self) -> Any:
        return self.boundary.database  # whose methods of these names wait, or are awaited


def _reason(status: int, error: BaseException | None) -> str:
    return f"status {status}" if error is None else type(error).__name__


class BlockingBoundary(Boundary):
    """What an application on a host that blocks has decided: its database must be a ``Database``."""

    serves = Database


class BlockingRequest(Request):
    """A request of a ``Database``, on a host that blocks."""

    __slots__ = ()

    def settle(self, status: int, error: BaseException | None = None) -> None:
        """Commit or roll back, before the first byte leaves. Once: later calls do nothing.

        Args:
            status: The status of the answer.
            error: What the handler raised, if it raised something that is not itself an answer.

        Raises:
            Exception: The COMMIT failed, or a failure had been swallowed; the answer must be an error.

        """
        drive(self.settling(status, error), _call)

    def finish(self, error: BaseException | None = None) -> None:
        """The body was sent, or the client has left: the unit ends. Once, from any thread; later calls do nothing."""
        drive(self.finishing(error, callsite.here(2)), _call)


def _call(work: Work) -> Any:
    return work()


class BlockingBody:
    """A body that is made while it is sent, each part within its request.

    Its unit ends with it, with ``close()`` when the client has left, or when a server drops it.

    Args:
        request: The request that it answers.
        parts: What the application gave.

    """

    def __init__(self, request: BlockingRequest, parts: Iterable[Any]) -> None:
        self.request = request
        self._closed = False
        self._given = parts
        self._ahead: list[Any] = []
        self._parts = iter(parts)

    def ahead(self) -> bool:
        """Make one part before it is asked for, as where only that brings the status; False when there is none."""
        for part in self._parts:
            self._ahead.append(part)
            return True
        return False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._ahead:
            return self._ahead.pop(0)
        token = self.request.enter()
        try:
            return next(self._parts)
        except StopIteration:
            self.request.finish()
            raise
        except BaseException as error:
            self.request.finish(error)
            raise
        finally:
            self.request.leave(token)

    def close(self, error: BaseException | None = None) -> None:
        """Close what the application gave, once, and end the unit. *error* is what kept the body from being sent."""
        if self._closed:
            return
        self._closed = True
        token = self.request.enter()
        try:
            if (close := getattr(self._given, "close", None)) is not None:
                close()
        finally:
            try:
                self.request.finish(error)
            finally:
                self.request.leave(token)

    def __del__(self) -> None:
        self.close()
