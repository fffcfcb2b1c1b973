"""Watches over a connection while a statement is under way on it, and interrupts it when the deadline passes.

``ThreadWatch`` is served by one thread for the whole process, which ends when nothing is left to watch; ``LoopWatch`` by timers of
the running event loop. A watch is always finished before its connection goes to somebody else.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any, Final

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from tenure.engines.fork import in_child
from tenure.engines.interrupt import GRACE, Interrupt

_AGAIN: Final = 0.1  # seconds until a stop is repeated: the first may have come between two statements
_ROUND: Final = 1.0  # seconds that the thread sleeps at most, and so outlives the last watch


class Watch:
    """What both kinds share.

    Attributes:
        stops: How often a stop was asked for.
        was_cut: Whether the link was cut.

    """

    stops = 0
    was_cut = False

    def __init__(self, connection: Connection, interrupt: Interrupt, engine: Engine, when: float, *, may_stop: bool) -> None:
        """*when* is by ``time.monotonic()``; with *may_stop* the server is asked first, else the link is cut a while later."""
        self._raw: Any = connection.connection.driver_connection
        self._interrupt = interrupt
        self._engine = engine
        self._last = when + GRACE
        self._may_stop = may_stop
        self.next = when if may_stop else self._last

    @property
    def fired(self) -> bool:
        """Whether it has interfered."""
        return self.was_cut or self.stops > 0

    def has_stopped(self, code: str | None) -> bool:
        """Whether *code* is the answer to its stop."""
        return self.stops > 0 and code in self._interrupt.codes

    def is_harmless(self, code: str | None) -> bool:
        """Whether the connection may be used on: all that was sent to stop its statement has been answered, by *code*."""
        return not self.fired or (self.stops == 1 and self.has_stopped(code) and not self.was_cut and not self._is_stopping())

    def strike(self) -> bool:
        """The time has come: stop or cut. Never waits; gives back whether it is to be called again, at ``next``."""
        now = time.monotonic()
        if now >= self._last and not self._endless():
            self.was_cut = True
            with suppress(Exception):  # it is cut already, in its own way
                self._interrupt.cut(self._raw)
            return False
        self.next = now + _AGAIN if self._endless() else min(now + _AGAIN, self._last)
        if not self._is_stopping():
            self.stops += 1
            with suppress(RuntimeError):  # no thread can be started: the cut follows
                self._begin_stop()
        return True

    def finish(self) -> None:
        """Stop watching. A stop that is still under way then, for it gets no answer, is no harm to a connection that is discarded."""
        raise NotImplementedError  # pragma: no cover

    def _endless(self) -> bool:
        """SQLite has no link to cut, and is asked until it stops."""
        return self._may_stop and self._interrupt.limit is not None

    def _stop(self) -> None:
        with suppress(Exception):  # the server cannot be asked: the cut follows
            self._interrupt.stop(self._raw, self._engine)

    def _is_stopping(self) -> bool:
        raise NotImplementedError  # pragma: no cover

    def _begin_stop(self) -> None:
        raise NotImplementedError  # pragma: no cover


class ThreadWatch(Watch):
    """For code that blocks."""

    _thread: threading.Thread | None = None

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        _watchman.add(self)

    def finish(self) -> None:
        """As ``Watch``."""
        _watchman.remove(self)
        if self._thread is not None and not self.was_cut:
            self._thread.join(GRACE)

    def _is_stopping(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin_stop(self) -> None:
        self._thread = threading.Thread(target=self._stop, name="tenure-stop", daemon=True)
        self._thread.start()


class Watchman:
    """The thread that looks after all ``ThreadWatch`` of a process."""

    def __init__(self) -> None:
        self._watches: set[ThreadWatch] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes = 0.0

    def add(self, watch: ThreadWatch) -> None:
        """Call ``strike`` when its time has come."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._look, name="tenure-deadlines", daemon=True)
                thread.start()  # may fail; else it waits for this lock, and finds the watch
                self._thread = thread
            self._watches.add(watch)
            if watch.next < self._wakes:
                self._changed.notify()

    def remove(self, watch: ThreadWatch) -> None:
        """Never call it again; a call under way is waited for."""
        with self._changed:
            self._watches.discard(watch)

    def _look(self) -> None:
        with self._changed:
            while self._watches:
                now = time.monotonic()
                for watch in [one for one in self._watches if one.next <= now]:
                    if not watch.strike():
                        self._watches.discard(watch)
                soonest = min((one.next for one in self._watches), default=now + _ROUND)
                self._wakes = min(soonest, now + _ROUND)
                self._changed.wait(max(self._wakes - now, 0.0))
            self._thread = None


_watchman = Watchman()


def _start_anew() -> None:
    global _watchman
    _watchman = Watchman()  # the thread, and whoever held the lock, have stayed in the parent


in_child(_start_anew)


class LoopWatch(Watch):
    """For asyncio."""

    _task: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self.next - time.monotonic(), self._strike)

    def _strike(self) -> None:
        if time.monotonic() < self.next or self.strike():  # a loop's clock may be a little ahead
            self._timer = self._loop.call_later(self.next - time.monotonic(), self._strike)

    def finish(self) -> None:
        """As ``Watch``."""
        self._timer.cancel()
        if self._task is not None and not self._task.done() and in_greenlet():
            try:
                await_only(asyncio.wait([self._task], timeout=GRACE))
            finally:
                self._task.cancel()

    def _is_stopping(self) -> bool:
        return self._task is not None and not self._task.done()

    def _begin_stop(self) -> None:
        self._task = self._loop.create_task(greenlet_spawn(self._stop), name="tenure-stop")
