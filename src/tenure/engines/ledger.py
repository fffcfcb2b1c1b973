"""Who holds which connection since when.

The ledger knows holders weakly and connections strongly. A unit that the garbage collector finds would otherwise take its
connection with it, and SQLAlchemy hand that out again while the unit's own last net still rolls back on it.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy.engine import Connection

from tenure import callsite, workers
from tenure.callsite import Site, words
from tenure.exceptions import TenureError

if TYPE_CHECKING:
    from tenure.engines.admission import Queue
    from tenure.engines.gate import Gate


class Holding(NamedTuple):
    """What a holder says of itself.

    Attributes:
        unit: Name of the unit.
        site: Where it was opened.
        worker: The thread or task that worked in it last; a task weakly.
        statement: The last statement, without parameters.
        running: Whether a statement is running now.
        running_for: For how many seconds.
        idle: Seconds since the last statement came back; 0 while one runs.
        line: Where that statement was called.

    """

    unit: str
    site: Site | None
    worker: Any
    statement: str | None = None
    running: bool = False
    running_for: float = 0.0
    idle: float = 0.0
    line: Site | None = None


class Holder(Protocol):
    """What is asked about whoever holds a connection, or waits for one."""

    def holding(self) -> Holding:
        """Who this is, and what it does with the connection."""
        ...

    def guard(self, error: TenureError) -> None:
        """Raise *error*, or warn of it, or let it pass, as its guard is set."""

    def owner_is_gone(self) -> bool:
        """Whether the thread or task that worked here has ended."""
        ...

    def reclaim(self) -> None:
        """Roll back and give the connection back, in place of an owner that is gone."""

    def statement_failed(self, error: BaseException) -> None:
        """A statement failed on the connection, and its transaction can no longer be committed."""

    def connection_lost(self, error: BaseException) -> None:
        """The connection was lost in a statement that is no COMMIT; *error* is about to be raised."""

    def instead_of(self, error: BaseException) -> BaseException | None:
        """What to raise in place of *error*, with which fetching rows has failed, if anything."""

    def patience(self) -> float | None:
        """Seconds that the holder may still wait for a connection; None without a limit of its own."""


class Stranger:
    """Who took a connection around tenure: ``engine.connect()``, or another library on the same engine."""

    def __init__(self) -> None:
        self._worker = workers.here()
        self._site = callsite.here(2)
        self.lease = Lease(self)

    def holding(self) -> Holding:
        """As ``Holder``; what is done with the connection is not known."""
        return Holding("engine.connect()", self._site, self._worker, line=self._site)

    def patience(self) -> float | None:
        """As ``Holder``: no limit of its own."""
        return None

    def guard(self, error: TenureError) -> None:
        """As ``Holder``: no setting says otherwise."""
        raise error

    def owner_is_gone(self) -> bool:
        """As ``Holder``."""
        return workers.is_gone(self._worker)

    def reclaim(self) -> None:
        """Left alone: it may have been handed on, and SQLAlchemy takes it back when nobody knows it any more."""

    def statement_failed(self, error: BaseException) -> None:
        """As ``Holder``: none of tenure's business."""

    def connection_lost(self, error: BaseException) -> None:
        """As ``Holder``: none of tenure's business."""

    def instead_of(self, error: BaseException) -> None:
        """As ``Holder``: nothing."""


class Lease:
    """The time for which a holder has a connection.

    Attributes:
        connection: The SQLAlchemy ``Connection``; set when there is one.
        gate: The gate that it came through.
        queue: Where it has its place.
        holder: Who holds it, weakly.
        since: When it was taken, by ``time.monotonic()``, in seconds.
        undo: Statement to run before the connection goes back, if any.
        commit_sent: Whether a COMMIT is on its way on it.
        pinned: Whether it is held for a transaction.
        may_write: Whether that may write.
        place: Its place in the pool, until it is given up.
        behind: Who has connections in the context in which this one is waited for, and cannot go on before; set by one who waits.
        keepable: Whether it may be parked: in autocommit, with nothing open on it.
        rests_since: When it was parked last, as ``since``.

    """

    __slots__ = (
        "__weakref__", "behind", "commit_sent", "connection", "gate", "holder", "keepable", "may_write", "pinned", "place", "queue",
        "rests_since", "since", "undo",
    )  # fmt: skip

    connection: Connection
    gate: Gate
    queue: Queue

    def __init__(self, holder: Holder) -> None:
        self.holder: Callable[[], Holder | None] = (lambda: holder) if isinstance(holder, Stranger) else weakref.ref(holder)
        self.since = self.rests_since = time.monotonic()
        self.undo: str | None = None
        self.commit_sent = self.pinned = self.may_write = self.keepable = False
        self.place: object = None
        self.behind: tuple[Holder, ...] = ()

    def age(self) -> float:
        """For how many seconds it has been held."""
        return time.monotonic() - self.since


def is_spare(lease: Lease) -> bool:
    """Whether *lease* is only kept, and may be taken."""
    return lease.queue.is_spare(lease)


class HolderReport(NamedTuple):
    """One open lease.

    Attributes:
        unit: Name of the unit; ``engine.connect()`` for a connection that was taken around tenure.
        site: Where it was opened, as ``orders.py:12``.
        owner: Thread or task that works in it.
        age: Seconds since the connection was taken.
        statement: The last statement, without its values: parameters by name, ``?`` for literals, no comments.
        running: Whether a statement is running now.
        idle: Seconds since the last statement came back; 0 while one runs.
        takeable: Whether whoever needs a connection can have this one: it is only kept for the unit's next read.

    """

    unit: str
    site: str
    owner: str
    age: float
    statement: str | None
    running: bool
    idle: float = 0.0
    takeable: bool = False


class Ledger:
    """The open leases of one engine. Entering and leaving are single operations on dicts, so threads need no lock."""

    def __init__(self) -> None:
        self._open: dict[int, Lease] = {}
        self._on: dict[int, Lease] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, lease: Lease) -> None:
        """Note a lease."""
        self._open[id(lease)] = lease

    def connected(self, lease: Lease, connection: Connection) -> None:
        """Note the connection that the holder of a lease works with.

        Not before ``enter``: the pool's record knows the lease, and the lease the connection, so that nobody would give back what
        an interruption has cut off in between.
        """
        lease.connection = connection
        self._on[id(connection)] = lease

    def leave(self, lease: Lease) -> None:
        """Forget a lease."""
        if (connection := getattr(lease, "connection", None)) is not None:
            self._on.pop(id(connection), None)
        self._open.pop(id(lease), None)  # last: what is interrupted before is still found by a sweep

    def clear(self) -> None:
        """Forget all."""
        self._open.clear()
        self._on.clear()

    def lease_on(self, connection: Connection) -> Lease | None:
        """The lease on *connection*, if it has one."""
        lease = self._on.get(id(connection))
        return lease if lease is not None and lease.connection is connection else None

    def leases(self) -> list[Lease]:
        """The leases open now."""
        return list(self._open.values())

    def reports(self, is_spare: Callable[[Lease], bool]) -> list[HolderReport]:
        """A line for each open lease, the oldest first."""
        found: list[HolderReport] = []
        for lease in sorted(self.leases(), key=lambda one: one.since):
            holder = lease.holder()
            if holder is not None:
                one = holder.holding()
                owner = workers.describe(one.worker)
                found.append(
                    HolderReport(
                        one.unit,
                        words(one.site),
                        owner,
                        round(lease.age(), 3),
                        one.statement,
                        one.running,
                        round(one.idle, 3),
                        is_spare(lease),
                    )
                )
        return found
