"""SQLite has one writer at a time. Those of this process stand in line for it, before they take a connection.

Without the line each of them polls for the lock, served by chance, while it keeps a connection from those who would only read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from tenure import workers
from tenure.callsite import words
from tenure.engines import verdict, waiting
from tenure.engines.admission import Admission, Queue, State, Turn
from tenure.engines.ledger import Holder, Lease
from tenure.exceptions import annotate, sqlstate

if TYPE_CHECKING:
    from tenure.engines.gate import Gate

_LOCKED: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")
# As long as SQLite itself waits for a lock, unless it was told otherwise: see sqlite.prepare().
_PATIENCE: Final = 30.0
BUSY_AGAIN: Final = f"PRAGMA busy_timeout = {_PATIENCE * 1000:.0f}"


class Writers:
    """The line of those who are about to write to the database of one engine.

    Args:
        gate: That of an engine under ``sqlite.prepare``.

    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._queue = Queue(1, Admission())
        self._wait: waiting.Wait = waiting.in_loop if gate.engine.dialect.is_async else waiting.in_thread
        self._writing: Lease | None = None

    def enter(self, turn: Lease, holder: Holder, behind: Callable[[], tuple[Holder, ...]], limit: float | None) -> bool:
        """Wait until it is the *turn* of *holder*, which is to be left afterwards; False when waiting is of no use any more.

        That is so when whoever writes now is *behind* the one that asks, or when the time is over: *limit* seconds, or as long as
        SQLite waits for a lock. SQLite has the last word then.
        """
        if not self._queue.enter(turn):
            self._gate.sweep()
            writing = self._writing
            if writing is not None and (writer := writing.holder()) is not None and writer in behind():
                return False
            self._gate.refuse_if_full()
            bounds = [one for one in (limit, holder.patience(), _PATIENCE) if one is not None]
            self._stand_in_line(turn, holder, min(bounds))
            if turn.place is None:
                return False
        turn.since = time.monotonic()
        self._writing = turn
        return True

    def _stand_in_line(self, turn: Lease, holder: Holder, limit: float) -> None:
        counts, began = self._gate.counts, time.monotonic()
        try:
            got = self._wait(self._queue, turn, limit, self._gate.look)
        except BaseException:
            counts.cancelled += 1
            raise
        finally:
            counts.wait(time.monotonic() - began)
        if isinstance(got, Turn) and got.state is State.DISMISSED:
            raise verdict.dismissed(self._gate, holder)

    def dismiss(self, holder: Holder) -> None:
        """Send *holder* away, if it stands in line."""
        self._queue.dismiss(holder)

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return self._queue.waiting

    def leave(self, turn: Lease) -> None:
        """The next one may write. Does nothing for a turn that did not come."""
        if self._writing is turn:
            self._writing = None
        self._queue.leave(turn)

    def explain(self, error: BaseException, asking: Holder) -> None:
        """Add a note to *error* that says who has the lock, if it came of one that somebody else in this process has."""
        turn = self._writing
        if turn is None or not isinstance(error, DBAPIError) or not (sqlstate(error) or "").startswith(_LOCKED):
            return
        writer = turn.holder()
        if writer is None or writer is asking:
            return
        one = writer.holding()
        annotate(
            error,
            f"tenure: unit {one.unit!r} ({words(one.site)}, {workers.describe(one.worker)}) holds the write lock for"
            f" {turn.age():.0f} s. End it sooner. [database-locked]",
        )
