"""What a relay decides, on both faces: what it takes, whom it calls, how long it waits, and what an error means."""

from __future__ import annotations

import inspect
import signal
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from sqlalchemy import Table
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from tenure import callsite
from tenure.callsite import words
from tenure.checks import check_seconds
from tenure.core import events
from tenure.core.aio import AsyncDatabase
from tenure.core.database import Database
from tenure.core.inject import name_of
from tenure.core.options import Retry
from tenure.exceptions import BadOption, TenureError, UnsupportedCallable, brief
from tenure.jobs.locks import Lock, check_lockable
from tenure.jobs.outbox.batch import Batch, Message, claim, sweep
from tenure.jobs.outbox.table import missing

RETRY: Final = Retry(20, first=1.0, longest=3600.0)
_SLICE: Final = 0.05  # seconds between two looks at whether to stop
_SWEEP_EVERY: Final = 60.0  # seconds
_LONGEST_PAUSE: Final = 30.0  # seconds between two attempts to reach a database that does not answer


class Done(NamedTuple):
    """A batch that is over: how many it sent, and whether there may be more at once."""

    sent: int
    more: bool


class BaseRelay:
    """What both faces of a relay share: everything but the calls that may wait."""

    def __init__(
        self,
        database: Database | AsyncDatabase,
        table: Table,
        send: Any,
        *,
        batch: int,
        poll: float,
        retry: Retry | int,
        keep: float,
    ) -> None:
        if type(batch) is not int or batch < 1:
            raise BadOption(f"relay(batch={batch!r}): give a whole number of messages, at least 1.")
        check_seconds("relay(poll)", poll, above=0.0)
        check_seconds("relay(keep)", keep)
        self.table = table
        self.stopping = False
        self._routes: Mapping[str, Any] | None = _routes_of(send)
        self._all: Any = send
        self._size, self._poll, self._keep = batch, poll, keep
        self._retry = retry if isinstance(retry, Retry) else Retry(retry, first=RETRY.first, longest=RETRY.longest)
        self._database = database
        self._engine: Engine = database.supply.engine
        self._alone = self._engine.dialect.name == "sqlite"
        # The versions that can pass over locked rows, of MySQL and of MariaDB.
        self._needed = {False: (8, 0, 1), True: (10, 6)} if self._engine.dialect.name in ("mysql", "mariadb") else None
        self._swept = 0.0
        self._failures = 0
        self._failing: set[str] = set()
        for called in (send,) if self._routes is None else self._routes.values():
            _check_called(called, is_async=database.is_async)
        if self._alone:
            check_lockable(self._engine.url)

    def stop(self) -> None:
        """End ``run`` after the message that is being sent; those of its batch which are left go to the next. May be called anywhere."""
        self.stopping = True

    # -- what is decided -----------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        """Of the unit in which a batch is taken."""
        options = {"propagation": "new", "name": f"relay of {self.table.name}"}
        # At REPEATABLE READ InnoDB locks the gaps between rows as well, and so those who put messages.
        return options if self._alone else {**options, "isolation": "READ COMMITTED"}

    def _lock(self) -> Lock | None:
        """What keeps other relays away for one batch, where rows are not locked."""
        return Lock(self._engine, f"outbox {self.table.fullname}") if self._alone else None

    def _claim(self, session: Session) -> list[Message]:
        return claim(session, self.table, self._size, self._routes, locks=not self._alone)

    def _call(self, message: Message) -> Any:
        if self._routes is None:
            return self._all(message)
        return self._routes[message.topic](*message.args, **message.kwargs)

    def _after(self, batch: Batch, taken: int) -> Done:
        """The batch is stored: tell what was given up, and what fails now that did not before. An interruption goes on here."""
        for message, error, dead, wait, news in batch.failed:
            if not dead and not news:
                continue
            called = self._all if self._routes is None else self._routes[message.topic]
            site = callsite.of_error(error) or callsite.of_function(called)
            told = (self._database.name, message.id, message.topic, site)
            if dead:
                events.tell(events.MessageDead(*told, message.attempt, error))
            else:
                events.tell(events.MessageFailed(*told, wait, self._retry.attempts, error))
        if batch.interrupted is not None:
            raise batch.interrupted
        return Done(len(batch.sent), taken == self._size and not batch.hopeless)

    def _sweep_is_due(self) -> bool:
        due = bool(self._keep) and time.monotonic() >= self._swept
        if due:
            self._swept = time.monotonic() + _SWEEP_EVERY
        return due

    def _sweep(self, session: Session) -> int:
        return sweep(session, self.table, self._keep, locks=not self._alone)

    def _pause_after(self, done: Done | None) -> float:
        """Seconds to wait before the next batch; *done* is None after one that failed as a whole."""
        if done is not None:
            self._failures = 0
            return 0.0 if done.more else self._poll
        self._failures += 1
        return min(_LONGEST_PAUSE, self._poll * 2.0 ** min(self._failures, 16))

    def _left(self, ends: float) -> float:
        """Seconds to sleep now, of a pause that *ends* then; 0.0 when it is over, or cut short by ``stop``."""
        return 0.0 if self.stopping else max(0.0, min(ends - time.monotonic(), _SLICE))

    def _troubled(self, error: Exception, site: callsite.Site | None) -> float:
        """A batch failed as a whole: how long to wait before the next."""
        seconds = self._pause_after(None)
        events.tell(events.RelayFailed(self._database.name, self.table.name, site, seconds, brief(error)))
        return seconds

    def _explained(self, connection: Connection, site: callsite.Site | None) -> TenureError | None:
        """Why taking a batch failed, if that is how the database was set up; asked on a *connection* of its own."""
        dialect: Any = connection.dialect
        if not dialect.has_table(connection, self.table.name, self.table.schema):
            return missing(self.table, repr(self._database.name), f"a relay ({words(site)})")
        if self._needed and dialect.server_version_info < self._needed[dialect.is_mariadb]:
            found = ".".join(map(str, dialect.server_version_info))
            return BadOption(
                f"a relay ({words(site)}) passes over locked rows, and version {found} cannot. MariaDB 10.6 and MySQL 8.0.1 can."
            )
        return None


def _routes_of(send: Any) -> Mapping[str, Any] | None:
    if not isinstance(send, Mapping):
        return None
    if not send:
        raise BadOption("relay({}): there is no topic in it. Give a function for each, as {'receipt': receipt.delay}.")
    routes: Mapping[str, Any] = send  # pyright: ignore[reportUnknownVariableType]
    return routes


def _check_called(one: Any, *, is_async: bool) -> None:
    if not callable(one):
        raise UnsupportedCallable(f"relay(…): {one!r} cannot be called. Give a function for each topic, or one for all.")
    inner = callsite.core_of(one)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise UnsupportedCallable(
            f"relay(…): {name_of(one)!r} ({words(callsite.of_function(one))}) is a generator; it would send nothing."
        )
    if not is_async and inspect.iscoroutinefunction(inner):
        raise UnsupportedCallable(
            f"relay(…): {name_of(one)!r} ({words(callsite.of_function(one))}) is async def, and nobody would await it. Use AsyncOutbox."
        )


@contextmanager
def heeding_sigterm(relay: BaseRelay) -> Generator[None]:
    """Let SIGTERM stop *relay* in place of ending the process; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        relay.stop()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
