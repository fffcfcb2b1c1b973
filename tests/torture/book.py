"""What is known about each transfer, held against what is stored.

An entry is one transfer that was tried. Its end is what tenure told: what the caller saw, and the unit's outcome. The database has
the last word: it must be as the ends say, and whole, whatever was told.
"""

import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tenure.core.plan import Outcome
from tenure.exceptions import CommitUnknown, DeadlineExceeded, Overloaded, PoolExhausted, RollbackOnly, SecondConnection
from torture.models import ACCOUNTS, OPENING, Account, Transfer


class RefusedError(Exception):
    """A body of the test's own gives up."""


# What may be seen while servers and links break. Everything else is a find.
EXPECTED = (DBAPIError, OSError, Overloaded, PoolExhausted, SecondConnection, CommitUnknown, DeadlineExceeded, RefusedError)


@dataclass(eq=False)
class Entry:
    """One transfer: in which units it was tried, and how that ended for the caller."""

    key: str
    kind: str
    units: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    ended: bool = False  # the caller has seen its end
    asked_back: bool = False  # rollback_only() was called, or its savepoint was undone on purpose
    checkpoint: bool | None = None  # a commit() of the unit's own code has stored it; None if that is not known
    part_of: "Entry | None" = None  # what decides, for a savepoint
    hooks: int = 0

    def end(self) -> str:
        """What was told of it: ``stored``, ``not stored`` or ``unknown``."""
        if self.asked_back:
            return "not stored"
        if self.kind == "checkpoint":
            return {True: "stored", False: "not stored", None: "unknown"}[self.checkpoint]
        if self.part_of is not None:
            return self.part_of.end()
        outcomes = {unit.outcome for unit in self.units}
        if Outcome.COMMITTED in outcomes:
            return "stored"
        return "unknown" if Outcome.UNKNOWN in outcomes or None in outcomes else "not stored"


class Book:
    """All entries of a round, and everything that was found to be wrong."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._told: Callable[[str, str], object] = lambda _what, _key: None
        self._lock = threading.Lock()

    def tell(self, told: Callable[[str, str], object]) -> None:
        """Call *told* with ``tried`` or an end, and the key, as soon as that is known."""
        self._told = told

    def open(self, key: str, kind: str) -> Entry:
        """A transfer is about to be tried."""
        entry = Entry(key, kind)
        with self._lock:
            self.entries[key] = entry
        self._told("tried", key)
        return entry

    def hook(self, entry: Entry) -> None:
        """The hook of *entry* for a commit runs."""
        with self._lock:
            entry.hooks += 1

    def closed(self, entry: Entry, error: BaseException | None) -> None:
        """The caller of *entry* has seen its end."""
        entry.error, entry.ended = error, True
        with self._lock:
            self.counts[entry.end()] += 1
        self._told(entry.end(), entry.key)
        self.saw(entry.kind, error)
        self._judge(entry)

    def saw(self, kind: str, error: BaseException | None) -> None:
        """A caller saw *error*, or none."""
        if error is None:
            return
        with self._lock:
            self.errors[type(error).__name__] += 1
        if type(error).__module__.partition(".")[0] in ("asyncpg", "psycopg"):
            return  # SQLAlchemy passes it on as it is where a connection is being set up, and where asyncpg fetches rows of a stream
        lost = isinstance(error, RollbackOnly) and isinstance(error.__cause__, (DBAPIError, OSError))
        if isinstance(error, Exception) and not isinstance(error, EXPECTED) and not lost:
            self.find(f"{kind}: an error that should not be seen\n{_shown(error)}")

    def find(self, what: str) -> None:
        """Something is wrong."""
        with self._lock:
            self.wrong.append(what)

    def _judge(self, entry: Entry) -> None:
        """Whether what the caller saw and the outcome of the unit say the same."""
        error, end = entry.error, entry.end()
        if any(unit.outcome is None for unit in entry.units):
            self.find(f"{entry.key} ({entry.kind}): no outcome after the end, {error!r}")
        elif isinstance(error, BaseException) and not isinstance(error, Exception):
            return  # a cancellation hides any outcome, and none is promised to it but an honest one
        elif entry.kind in ("checkpoint", "savepoint") or entry.asked_back:
            return
        elif error is None and end != "stored":
            self.find(f"{entry.key} ({entry.kind}): returned, and its end is {end}")
        elif isinstance(error, CommitUnknown) != (end == "unknown"):
            self.find(f"{entry.key} ({entry.kind}): its end is {end}, and the caller saw\n{_shown(error)}")
        elif error is not None and end == "stored" and not any("stands" in note for note in getattr(error, "__notes__", ())):
            self.find(f"{entry.key} ({entry.kind}): it is stored, and the caller saw\n{_shown(error)}")

    def settle(self, rows: "Rows") -> None:
        """Hold all that is known against what is stored."""
        for key in rows.keys - self.entries.keys():
            self.find(f"{key}: stored, and never tried")
        for key, entry in self.entries.items():
            end, stored = entry.end(), key in rows.keys
            if end != "unknown" and stored != (end == "stored"):
                is_stored = "is stored" if stored else "is not stored"
                self.find(f"{key} ({entry.kind}): its end is {end}, and it {is_stored}; {entry.error!r}")
            interrupted = entry.error is not None and not isinstance(entry.error, Exception)
            may_be = (0, int(stored)) if end == "unknown" and interrupted else (int(end == "stored"),)
            if entry.ended and entry.hooks not in may_be:
                self.find(f"{key} ({entry.kind}): its end is {end}, and its hook ran {entry.hooks} times; {entry.error!r}")
        for what in rows.crooked:
            self.find(what)


@dataclass
class Rows:
    """What is stored."""

    keys: set[str]
    crooked: list[str]


def read(url: sa.URL) -> Rows:
    """Read what is stored, by a connection of its own."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        balances = {row.id: row.balance for row in connection.execute(sa.select(Account.id, Account.balance))}
        transfers = connection.execute(sa.select(Transfer.id, Transfer.source, Transfer.target, Transfer.amount)).all()
    due = dict.fromkeys(range(1, ACCOUNTS + 1), OPENING)
    for _, source, target, amount in transfers:
        due[source] -= amount
        due[target] += amount
    crooked = [f"account {one}: {balances.get(one)} stored, {due[one]} due" for one in due if balances.get(one) != due[one]]
    if sum(balances.values()) != ACCOUNTS * OPENING:
        crooked.append(f"the sum is {sum(balances.values())} in place of {ACCOUNTS * OPENING}")
    return Rows({key for key, *_ in transfers}, crooked)


def _shown(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error))[-6000:] if error is not None else "no error"
