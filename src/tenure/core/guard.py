"""Who may use a session, and when: one at a time, in a context that descends from its unit, until the unit ends."""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenure import callsite, workers
from tenure.callsite import Site, words
from tenure.core.current import found_at, innermost_open
from tenure.core.obituary import gone
from tenure.core.timed import TimedSession
from tenure.engines.ledger import Holding
from tenure.engines.masked import masked
from tenure.exceptions import ConcurrentUse, ForeignContext, TenureError, annotate

if TYPE_CHECKING:
    from contextvars import ContextVar

    from tenure.core.current import Place
    from tenure.core.limits import Notices
    from tenure.core.unit import BaseUnit


def identities() -> Callable[[], object]:
    """What tells two users of a session apart: each call of an AsyncSession runs in a greenlet of its own, and so do gevent's and
    eventlet's workers. Asked once for each session, which is to be told the same all along.
    """
    greenlet = sys.modules.get("greenlet")
    return threading.current_thread if greenlet is None else getattr(greenlet, "getcurrent", threading.current_thread)


class GuardedSession(TimedSession):
    """A session that knows who is in it. Each way in goes through ``_enter`` and ``_leave``."""

    touched = False  # used at all, so that there may be something to end
    is_async = False
    _var: ContextVar[Place]
    _lock: threading.Lock
    _identity: Callable[[], object]
    _turn: object = None  # the greenlet or thread that is in the session now
    _since = 0.0
    _left = 0.0  # when the last call came back
    _old_at = math.inf  # when the unit is too old
    _notices: Notices
    _owner: Any = None  # the thread or task that worked here last
    # Weakly: when a thread ends whose greenlet is still known, greenlet searches all objects for whoever knows it.
    _owner_turn: weakref.ref[Any] | None = None
    _opener: Any = None  # the thread or task that opened the unit
    _statement: Any = None
    sites: dict[type, Site | None]  # which line loaded a class last
    _last_call = False  # the unit ended while somebody else was in the session: they close it on leaving

    def _check(self) -> None:
        """Raise unless the unit is open and this context descends from it."""
        place = self._var.get()
        here = place()
        unit = self._unit_ref() or self._unit
        if (here is unit or unit.ending) and not unit.ended:
            return
        if unit.ended:
            self._unit.database.guard(gone(unit))
            return
        here = here or found_at(place)[0]
        if here is None or not here.descends_from(unit):
            who, line = self._who(), callsite.words(callsite.here(2))
            unit.database.guard(
                ForeignContext(
                    f"{who} ({line}) has no part in unit {unit.name!r} ({words(unit.site)}). Start it with db.unit(function), or hand"
                    " over with asyncio.to_thread or contextvars.copy_context().run (loop.run_in_executor copies no context)."
                )
            )

    def line(self, depth: int) -> Site | None:
        """The user's line; while the unit ends that of its end, which is carried out by a task of tenure's own under asyncio.

        A task that runs no code of the user's, as in ``gather(session.execute(…), session.execute(…))``, has no line. Then it is where
        the task that opened the unit waits, for which it works, or where the unit was opened.
        """
        unit = self._unit
        if unit.ending and unit.end_site is not None:
            return unit.end_site
        return callsite.here(depth) or callsite.of_task(workers.alive(self._opener)) or unit.site

    def admit(self) -> None:
        """Raise unless the code that calls may use the session."""
        self._check()

    def _touch(self) -> None:
        """It is used for the first time. Where a framework asked for it, to pass it on, that is the first line of the user's."""
        if self._options is not None:
            self._set_up()  # rather than by the first attribute that is missed
        self.touched = True
        unit = self._unit
        if not callsite.is_users(unit.site) and callsite.is_users(site := callsite.here(3)):
            unit.site = site

    def _enter(self, operation: str) -> None:
        me = self._identity()
        if not self._lock.acquire(blocking=False):
            if self._turn is me:
                self._depth += 1
                return
            self._overlap(operation)
            self._depth += 1  # the guard is off, or warns: go on as SQLAlchemy would
            return
        try:
            self._check()
            unit = self._unit_ref() or self._unit
            site = (None if unit.ending else callsite.here(4)) or self.line(4)
            if self.timed:
                self._clock_in(operation, site)
        except BaseException:  # whoever is not let in, or is interrupted here, leaves the door open
            self._lock.release()
            raise
        self._turn, self._operation, self._depth = me, operation, 1
        if not self.touched:
            self._touch()
        if self._owner_turn is None or self._owner_turn() is not me:
            self._owner_turn, self._owner = weakref.ref(me), me if me is self._opener else self._worker()
        self._since, before, self._site = time.monotonic(), self._site, site
        if self._pinned and self._since - self._left > self._notices.idle:
            self._notices.held_idle(self._unit, self._since - self._left, before, self._site)
        if self._since > self._old_at:
            self._too_old(self._site)

    def _leave(self, error: BaseException | None) -> None:
        if self._depth > 1:
            self._depth -= 1
            return
        late: BaseException | None = None
        try:
            if self._running is not None:
                late = self._clock_out(error, self._site)
            self._left = time.monotonic()
            if len(self.identity_map) > self._notices.objects:
                self._notices.too_many(self._unit, len(self.identity_map), self._site)
            if self._lease is not None or self._spent or self._streams:
                self._outermost_returned(error)
        except BaseException as failed:
            if error is None:
                raise
            annotate(error, f"tenure: the connection could not be given back ({type(failed).__name__}) and was discarded.")
        finally:
            self._depth = 0
            self._turn = None
            if self._lock.locked():
                self._lock.release()
            if self._last_call:
                self._last_call = False
                super().close()
        if late is not None:
            raise late from error

    def _overlap(self, operation: str) -> None:
        if self._unit.ended:  # and is being closed from outside
            self._unit.database.guard(gone(self._unit))
            return
        first, second = words(self._site), words(callsite.here(3) or self.line(4))
        ms = (time.monotonic() - self._since) * 1000
        self._unit.database.guard(
            ConcurrentUse(
                f"{self._who()} began {operation}() at {second} while {workers.describe(self._owner)} is still in"
                f" {self._operation}() ({first}, since {ms:.0f} ms). One session is one conversation: give each its own unit,"
                f' {"async " if self.is_async else ""}with db.unit(propagation="new").'
            )
        )

    def _worker(self) -> Any:
        worker = workers.blocking()
        if isinstance(worker, weakref.ref):
            self._unit.database.in_greenlet()
        return worker  # pyright: ignore[reportUnknownVariableType]

    def worker(self) -> Any:
        """The thread or task that worked here last, else that in which the unit was opened."""
        return self._opener if self._owner is None else self._owner

    def kept_by(self, keeper: object) -> None:
        """*keeper* will end the unit, and not the thread or task that opened it."""
        self._opener = keeper

    def _who(self) -> str:
        return workers.describe(self._worker())

    def _part(self) -> BaseUnit[Any]:
        """The part of the unit in which the calling code is: the unit itself, or one that has joined it."""
        place, unit = self._var.get(), self._unit
        if (here := place()) is unit:
            return unit  # as a rule
        here = innermost_open(here or found_at(place)[0])
        return unit if here is None or here.root is not unit else here

    # -- what the ledger asks -----------------------------------------------------------------------------------------

    def _holder(self) -> GuardedSession:
        return self

    def _loads(self, mapper: Any) -> None:
        self.sites[getattr(mapper, "class_", mapper)] = self._site

    def holding(self) -> Holding:
        self._looked_at()
        now = time.monotonic()
        running = self._turn is not None
        return Holding(
            self._unit.name,
            self._unit.site,
            self._owner,
            None if self._statement is None else masked(str(self._statement), self._supply.engine.dialect.name),
            running,
            running_for=now - self._since if running else 0.0,
            idle=0.0 if running else now - self._left,
            line=self._site,
        )

    def guard(self, error: TenureError) -> None:
        self._unit.database.guard(error)

    def _looked_at(self) -> None:
        """Somebody asks who holds the connections: tell if this one does for too long."""
        now, line = time.monotonic(), callsite.of_worker(workers.alive(self._owner))
        if self._turn is None and self._pinned and now - self._left > self._notices.idle:
            self._notices.held_idle(self._unit, now - self._left, self._site, line)
        if now > self._old_at:
            self._too_old(line)

    def _too_old(self, line: Site | None) -> None:
        unit = self._unit
        if not unit.settled:  # in the body of an answer it may live as long as its client listens
            self._notices.too_old(unit, time.monotonic() - unit.opened, line)
        self._old_at = math.inf

    def owner_is_gone(self) -> bool:
        return workers.is_gone(self._owner) and workers.is_gone(self._opener)  # who opened it may go on after a helper has ended
