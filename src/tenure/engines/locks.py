"""Who has SQLite's write lock: of the units of this process the one that is in a transaction which may write."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError

from tenure import workers
from tenure.callsite import words
from tenure.engines.ledger import Holder, Lease, Ledger
from tenure.exceptions import annotate, sqlstate

_LOCKED: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")


def has_lock(lease: Lease) -> bool:
    """Whether *lease* has the write lock: who only reads has not, and who waits for it is in no transaction yet."""
    return lease.may_write and hasattr(lease, "connection") and lease.connection.in_transaction()


def explain(ledger: Ledger, error: BaseException, asking: Holder) -> bool:
    """Add a note to *error* that says who has the lock, if it came of one that somebody else in this process has: whether it did."""
    if not isinstance(error, DBAPIError) or not (sqlstate(error) or "").startswith(_LOCKED):
        return False
    for lease in ledger.leases():
        holder = lease.holder()
        if holder is None or holder is asking or not has_lock(lease):
            continue
        one = holder.holding()
        annotate(
            error,
            f"tenure: unit {one.unit!r} ({words(one.site)}, {workers.describe(one.worker)}) holds the write lock for"
            f" {lease.age():.0f} s. End it sooner. [database-locked]",
        )
        return True
    return False
