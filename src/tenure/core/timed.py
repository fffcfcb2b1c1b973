"""What a deadline does to the calls of a session: each gets what is left, and the one that finds nothing left raises."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import exc

from tenure.callsite import Site, words
from tenure.core.hold import HoldingSession
from tenure.engines.deadline import Deadline, seconds
from tenure.engines.interrupt import GRACE
from tenure.engines.ledger import Lease
from tenure.engines.watch import ThreadWatch, Watch
from tenure.exceptions import DeadlineExceeded, sqlstate

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit

T = TypeVar("T")
# What undoes work.
_UNDOING: Final = frozenset(["rollback", "close", "invalidate"])


class Running:
    """A call of the session under way, as its deadline sees it."""

    __slots__ = ("began", "commits", "deadline", "ends", "fired", "waited")

    def __init__(self, deadline: Deadline, *, commits: bool, ends: bool) -> None:
        self.deadline = deadline
        self.commits = commits  # it is a COMMIT: one that is done is done
        self.ends = ends  # it is to be done whatever the time is, but for a short while only
        self.began = time.monotonic()
        self.waited = 0.0
        self.fired: Watch | None = None  # interfered with the call


class TimedSession(HoldingSession):
    """A session whose calls may be bound by a deadline. Units without one pay an attribute test for each call."""

    timed = False  # a deadline binds the unit, or a part of it
    watch_class: type[Watch] = ThreadWatch
    _running: Running | None = None
    _watch: Watch | None = None  # over the connection that is held; between calls only while a stream of rows is open
    _bound: Deadline | None = None  # what bound the last call
    _streamed: list[Any] | None = None  # results whose rows are fetched as they are read

    # -- around each call -----------------------------------------------------------------------------------

    def _clock_in(self, operation: str, site: Site | None) -> None:
        """A call begins. Raises DeadlineExceeded if there is no time left for it."""
        deadline = self._bound = self._part().deadline
        if deadline is None:
            return
        commits = operation == "commit"
        ends = operation in _UNDOING or (commits and self._unit.ending and self._has_only_read())
        if deadline.left() <= 0.0 and not ends:
            raise self._exceeded(deadline, site)
        running = Running(deadline, commits=commits, ends=ends)
        if self._lease is not None:
            self._watch_over(running, self._lease)
        self._running = running

    def _clock_out(self, error: BaseException | None, site: Site | None) -> DeadlineExceeded | None:
        """The call is over; gives back what is to be raised in place of its result or *error*, if anything."""
        running = self._running
        if running is None:
            return None
        code = _code(error)
        try:
            if self._streams or self._streaming():
                self._supply.hear_failures()  # its rows are fetched beside this door
            elif self._lease is not None:
                self._unwatch(self._lease, code)
        finally:
            self._running = None
            took = time.monotonic() - running.began
            running.deadline.spend(running.waited, took - running.waited)
        fired = running.fired or self._watch
        if not self._is_due_to(running, fired, error, code):
            return None
        late = self._exceeded(running.deadline, site)
        if error is not None:
            self._unit.renamed(error, late)
        return late

    def _is_due_to(self, running: Running, watch: Watch | None, error: BaseException | None, code: str | None) -> bool:
        """Whether it is the deadline by which a call failed, or has not failed but is too late."""
        if running.deadline.left() > 0.0 or running.ends:
            return False
        fired = watch is not None and watch.fired
        if error is None:
            return fired and not running.commits
        if not isinstance(error, Exception) or isinstance(error, DeadlineExceeded):
            return False
        if watch is not None and fired and (watch.has_stopped(code) or (watch.was_cut and self._is_lost(error, code))):
            return True
        if isinstance(error, exc.TimeoutError):  # PoolExhausted is one
            return True
        return self._waits_are_limited() and code is not None and code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))

    def _is_lost(self, error: Exception, code: str | None) -> bool:
        """Whether *error* came of the cut; a COMMIT that was on its way then is unknown, and told as that."""
        if isinstance(error, exc.DBAPIError):
            if code is not None and not error.connection_invalidated:
                return False  # the database had answered
            error.connection_invalidated = True  # not each dialect knows it by its text
        return not self.commit_sent()

    # -- around each lease ------------------------------------------------------------------------------------

    def _lend(self, take: Callable[..., Lease], *args: Any, **kw: Any) -> Lease:
        if self._running is None:
            return take(self._holder(), *args, **kw)
        lease = self._wait(take, self._holder(), *args, **kw)
        self._watch_over(self._running, lease)
        return lease

    def _may_park(self) -> bool:
        return self._bound is None and super()._may_park()  # a deadline may have set the connection a limit

    def _resumed(self) -> Lease | None:
        lease = super()._resumed()
        if lease is not None and self._running is not None:
            self._watch_over(self._running, lease)
        return lease

    def _wait(self, call: Callable[..., T], *args: Any, **kw: Any) -> T:
        running = self._running
        if running is None:
            return call(*args, **kw)
        began = time.monotonic()
        try:
            return call(*args, **kw)
        finally:
            running.waited += time.monotonic() - began

    def _give_back(self, lease: Lease) -> None:
        """End a lease; nothing that was to stop its statement may reach whoever gets the connection next."""
        if self._bound is not None:
            try:
                self._unwatch(lease, None)
                self._unlimit(lease)
            except BaseException:  # what was to stop its statement may still reach it, so nobody else may get it
                lease.connection.invalidate()
                self._supply.give_back(lease)
                raise
        self._supply.give_back(lease)

    def _watch_over(self, running: Running, lease: Lease) -> None:
        interrupt, connection = self._supply.interrupt, lease.connection
        if interrupt is None or self._watch is not None or connection.closed or connection.invalidated:
            return
        if interrupt.limit is not None:
            interrupt.limit(connection.connection, max(running.deadline.left(), GRACE if running.ends else 0.0))
        when = max(running.deadline.when, running.began) if running.ends else running.deadline.when
        may_stop = not running.ends and (interrupt.in_commit or not running.commits)
        self._watch = self.watch_class(connection, interrupt, self._supply.engine, when, may_stop=may_stop)

    def _unwatch(self, lease: Lease, code: str | None) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            return
        try:
            watch.finish()
        finally:
            if watch.fired and self._running is not None:
                self._running.fired = watch
            if not watch.is_harmless(code) and not lease.connection.closed and not lease.connection.invalidated:
                lease.connection.invalidate()

    def _unlimit(self, lease: Lease) -> None:
        interrupt = self._supply.interrupt
        if (
            interrupt is not None
            and interrupt.unlimit is not None
            and not lease.connection.closed
            and not lease.connection.invalidated
        ):
            interrupt.unlimit(lease.connection.connection)

    def _has_only_read(self) -> bool:
        return not self.wrote and self.unsaved() is None

    def _waits_are_limited(self) -> bool:
        interrupt = self._supply.interrupt
        return interrupt is not None and interrupt.limit is not None

    # -- what others ask ------------------------------------------------------------------------------------------

    def patience(self) -> float | None:
        """Seconds that this session may still wait for a connection, or None where no deadline bounds it."""
        return None if self._running is None else max(self._running.deadline.left(), 0.0)

    def instead_of(self, error: BaseException) -> BaseException | None:
        """What to raise in place of *error*, which came while rows of a stream were fetched, if the deadline is its reason."""
        watch, deadline = self._watch, self._bound
        if self._running is not None or watch is None or deadline is None or not watch.fired:
            return None
        late = self._exceeded(deadline, self.line(1))
        self._unit.renamed(error, late)
        return late

    def _exceeded(self, deadline: Deadline, site: Site | None) -> DeadlineExceeded:
        unit: BaseUnit[Any] = self._part()
        while unit.parent is not None and unit.root is not unit and unit.parent.deadline is deadline:
            unit = unit.parent
        account = deadline.account(self._supply.name, words(site), streamed=self._streamed is not None)
        undone = "Rolled back to the last commit()" if self._unit.partly_stored else "Rolled back"
        return DeadlineExceeded(
            f"{unit.name!r} used up its {seconds(deadline.seconds)}: {account}. {undone}; raise timeout= or {deadline.advice()}."
        )

    # -- filled in by the classes that follow ---------------------------------------------------------------

    def _part(self) -> BaseUnit[Any]:
        raise NotImplementedError  # pragma: no cover

    def unsaved(self) -> str | None:
        """What a rollback would lose now, in words."""
        raise NotImplementedError  # pragma: no cover

    def _streaming(self) -> bool:
        raise NotImplementedError  # pragma: no cover

    def line(self, depth: int) -> Site | None:
        """The user's line."""
        raise NotImplementedError  # pragma: no cover


def _code(error: BaseException | None) -> str | None:
    return sqlstate(error) if isinstance(error, Exception) else None  # asyncpg's own, where rows of a stream are fetched
