"""Every error of tenure: what happened, where, and what to do next.

Each class has one ``slug``, which ends its message and names its page in ``docs/reference/messages.md``. The database's own
errors are never wrapped: an ``IntegrityError`` stays an ``IntegrityError``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

from sqlalchemy.exc import DBAPIError, DontWrapMixin, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

__all__ = [
    "BadOption",
    "BlockedLoop",
    "CommitUnknown",
    "ConcurrentUse",
    "DatabaseClosed",
    "DatabaseDraining",
    "DeadlineExceeded",
    "EarlyEnqueue",
    "ForeignContext",
    "ForkedUnit",
    "JoinRefused",
    "LostWork",
    "NoUnit",
    "NotOwner",
    "NotPicklable",
    "OutboxMissing",
    "OutcomeSettled",
    "Overloaded",
    "PoolExhausted",
    "PoolerRefused",
    "ReadOnlyUnit",
    "ReleaseRefused",
    "RollbackOnly",
    "SecondConnection",
    "TenureError",
    "UnexpectedUnit",
    "UnitEnded",
    "UnsupportedCallable",
    "WrongBlock",
    "WrongDriver",
    "WrongLoop",
]


class TenureError(Exception):
    """Base of all errors of tenure. ``str()`` ends with the slug in brackets."""

    slug: ClassVar[str] = "tenure-error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.slug}]"


class NoUnit(TenureError, LookupError):
    """``db.session`` or ``db.current`` was asked for where no unit is open, or a unit that must be joined is missing."""

    slug = "no-unit"


class UnitEnded(TenureError):
    """A session was used after its unit had ended."""

    slug = "unit-ended"


class ForkedUnit(TenureError, DontWrapMixin):
    """A unit, a session or a connection that was opened before a fork was used in the child process; it is the parent's."""

    slug = "forked-unit"


class ForeignContext(TenureError):
    """A session was used in a thread, task or greenlet that does not descend from its unit."""

    slug = "foreign-context"


class ConcurrentUse(TenureError):
    """A session was used by two threads, tasks or greenlets at the same time."""

    slug = "concurrent-use"


class NotOwner(TenureError):
    """Code that joined a unit tried to commit, roll back, begin or close what its caller opened."""

    slug = "not-owner"


class RollbackOnly(TenureError):
    """A unit was left normally after a failure in it had been caught but not undone; it was rolled back."""

    slug = "rollback-only"


class ReadOnlyUnit(TenureError):
    """A write in a read-only unit, or while a response is being sent."""

    slug = "read-only-unit"


class JoinRefused(TenureError):
    """A unit asked, on joining, for more than the unit around it gives."""

    slug = "join-refused"


class OutcomeSettled(TenureError):
    """``rollback_only()`` came after the unit's work had been committed, as while the body of a response is sent."""

    slug = "outcome-settled"


class OutboxMissing(TenureError):
    """A message was to be stored or sent, and the database does not have the outbox's table."""

    slug = "outbox-missing"


class UnexpectedUnit(TenureError):
    """``propagation="never"`` was entered inside a unit."""

    slug = "unexpected-unit"


class ReleaseRefused(TenureError):
    """``unit.release()`` was asked for while something is unwritten, uncommitted or still being read."""

    slug = "release-refused"


class UnsupportedCallable(TenureError, TypeError):
    """A callable that cannot carry a unit was decorated, or ``retry`` was given to a with-block."""

    slug = "unsupported-callable"


class WrongBlock(TenureError, TypeError):
    """A unit was to be opened by ``with`` where its database needs ``async with``, or the reverse; or by ``await`` or ``for``."""

    slug = "wrong-block"


class BadOption(TenureError, ValueError):
    """An option has a wrong type or value, or does not go with another."""

    slug = "bad-option"


class WrongDriver(TenureError, ValueError):
    """A driver for asyncio was given to ``Database``, or one that blocks to ``AsyncDatabase``."""

    slug = "wrong-driver"


class NotPicklable(TenureError, TypeError):
    """A ``Database`` that another process could not open in the same way was to be pickled."""

    slug = "not-picklable"


class WrongLoop(TenureError, RuntimeError):
    """An ``AsyncDatabase`` was used on trio's event loop; SQLAlchemy and its drivers know asyncio's."""

    slug = "wrong-loop"


class DatabaseClosed(TenureError):
    """A unit was opened after ``close()``."""

    slug = "database-closed"


class DatabaseDraining(TenureError):
    """A unit was to begin, or waited for a connection for too long, while ``drain()`` was bringing the program to its end.

    Attributes:
        retry_after: In how many seconds another process may do it.

    """

    slug = "database-draining"
    retry_after = 1.0


class PoolerRefused(TenureError):
    """A statement behind a pooler would have left a setting, a lock or a subscription on a connection that others get next."""

    slug = "pooler-refused"


class PoolExhausted(TenureError, PoolTimeout):
    """No connection came free in time. Also SQLAlchemy's ``TimeoutError``.

    Attributes:
        verdict: What is the matter: ``too small``, ``held idle``, ``leaked``, ``hold and wait``, ``threads starved`` or
            ``database locked``.
        holders: Who had the connections, as ``db.holders()`` tells it, the oldest first.

    """

    slug = "pool-exhausted"

    def __init__(self, message: str, verdict: str = "too small", holders: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.holders = holders


class Overloaded(TenureError, PoolTimeout):
    """More wait for a connection than ``Admission`` lets in. Raised at once. Also SQLAlchemy's ``TimeoutError``.

    Attributes:
        retry_after: In how many seconds another attempt may be worth it: as long as those wait who are served now, at least 1.

    """

    slug = "overloaded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BlockedLoop(TenureError):
    """A unit of a ``Database`` would wait for a connection in a task of an event loop, which could not go on meanwhile."""

    slug = "blocked-loop"


class SecondConnection(TenureError):
    """A unit that holds a connection asked for a second one where all the others are held by units that do the same."""

    slug = "second-connection"


class CommitUnknown(TenureError):
    """The connection was lost, or the time limit passed, during COMMIT: the work may or may not be stored."""

    slug = "commit-unknown"


class DeadlineExceeded(TenureError, TimeoutError):
    """A unit has used up its ``timeout``, waiting for a connection, in SQL or in its own code; it is rolled back."""

    slug = "deadline-exceeded"


class LostWork(TenureError):
    """Work was left uncommitted at the end of a request that is to commit explicitly. Logged, never raised."""

    slug = "lost-work"


class EarlyEnqueue(TenureError):
    """A job was sent by a unit whose work is not committed, so that its worker may not find it. Logged, never raised."""

    slug = "early-enqueue"


def brief(error: BaseException) -> str:
    """*error* in a few words that hold no statement, parameter or password: a database error is its class and SQLSTATE. No full stop."""
    kind = type(error).__name__
    if isinstance(error, StatementError):  # DBAPIError, or a value that could not be bound: both show statement and parameters
        code = sqlstate(error)
        return f"{kind} {code}" if code else kind
    try:
        text = str(error)
    except Exception:  # what cannot be put into words must not keep a unit from ending
        text = ""
    return f"{kind}: {text.removesuffix('.')}" if text else kind


def annotate(error: BaseException, note: str) -> None:
    """Add *note* to *error*, unless it takes none: a frozen dataclass refuses to be changed."""
    with suppress(Exception):
        error.add_note(note)


def link_broke(error: BaseException) -> bool:
    """Whether *error* is the operating system's, which asyncpg lets through; ``DeadlineExceeded``, a TimeoutError, is none of these."""
    return isinstance(error, OSError) and not isinstance(error, TenureError)


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE (five characters) or the MySQL error number of a database error, if its driver gives one."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    args = getattr(origin, "args", ())
    if args and isinstance(args[0], int):  # MySQL: newer drivers give an SQLSTATE as well, which says less
        return str(args[0])
    for name in ("sqlstate", "pgcode", "sqlite_errorname"):
        if value := getattr(origin, name, None):
            return str(value)
    return None
