"""Who holds which connection since when.

The ledger knows holders weakly and connections strongly. A unit that the garbage collector finds would otherwise take its
connection with it, and SQLAlchemy hand that out again while the unit's own last net still rolls back on it.
"""

from __future__ import annotations

import time
import weakref
from typing import NamedTuple, Protocol

from sqlalchemy.engine import Connection

from tenure.callsite import Site, words


class Holder(Protocol):
    """What the ledger asks about whoever holds a connection."""

    def holding(self) -> tuple[str, Site | None, str, str | None, bool]:
        """Name and line of the unit, thread or task, the last statement without values, whether a statement is running."""
        ...

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


class Lease:
    """The time for which a holder has a connection.

    Attributes:
        connection: The SQLAlchemy ``Connection``.
        holder: Who holds it, weakly.
        since: When it was taken, by ``time.monotonic()``, in seconds.
        undo: Statement to run before the connection goes back, if any.
        commit_sent: Whether a COMMIT is on its way on it.

    """

    __slots__ = ("__weakref__", "commit_sent", "connection", "holder", "since", "undo")

    def __init__(self, connection: Connection, holder: Holder, undo: str | None = None) -> None:
        self.connection = connection
        self.holder: weakref.ref[Holder] = weakref.ref(holder)
        self.since = time.monotonic()
        self.undo = undo
        self.commit_sent = False


class HolderReport(NamedTuple):
    """One open lease.

    Attributes:
        unit: Name of the unit.
        site: Where it was opened, as ``orders.py:12``.
        owner: Thread or task that works in it.
        age: Seconds since the connection was taken.
        statement: The last statement, without its values: parameters by name, ``?`` for literals, no comments.
        running: Whether a statement is running now.

    """

    unit: str
    site: str
    owner: str
    age: float
    statement: str | None
    running: bool


class Ledger:
    """The open leases of one engine. Entering and leaving are single operations on a dict, so threads need no lock."""

    def __init__(self) -> None:
        self._open: dict[int, Lease] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, lease: Lease) -> Lease:
        """Note a lease."""
        self._open[id(lease.connection)] = lease
        return lease

    def leave(self, lease: Lease) -> None:
        """Forget a lease."""
        self._open.pop(id(lease.connection), None)

    def lease_on(self, connection: Connection) -> Lease | None:
        """The lease on *connection*, if it has one."""
        lease = self._open.get(id(connection))
        return lease if lease is not None and lease.connection is connection else None

    def leases(self) -> list[Lease]:
        """The leases open now."""
        return list(self._open.values())

    def reports(self) -> list[HolderReport]:
        """A line for each open lease, the oldest first."""
        now = time.monotonic()
        found: list[HolderReport] = []
        for lease in sorted(self.leases(), key=lambda one: one.since):
            holder = lease.holder()
            if holder is not None:
                name, site, owner, statement, running = holder.holding()
                found.append(HolderReport(name, words(site), owner, now - lease.since, statement, running))
        return found
