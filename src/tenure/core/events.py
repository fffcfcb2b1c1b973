"""The frozen facts about a unit's life, and who is told. Logs, metrics and the page read them; nobody reaches into a unit."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple, Protocol, TypeAlias

from tenure.callsite import Site, of_error, words
from tenure.core.plan import Outcome
from tenure.exceptions import brief

_log: Final = logging.getLogger("tenure")


class UnitClosed(NamedTuple):
    """A unit has ended.

    Attributes:
        database: Name of the database.
        unit: Name of the unit.
        site: Where it was opened.
        outcome: What became of its work.
        reason: Why, as ``returned``, ``status 404`` or the error's class.
        seconds: How long it was open.

    """

    database: str
    unit: str
    site: Site | None
    outcome: Outcome
    reason: str
    seconds: float


class InDoubt(NamedTuple):
    """It is not known whether the COMMIT of a unit took place; told as well as its end, which few listen to."""

    database: str
    unit: str
    site: Site | None
    reason: str


class HookFailed(NamedTuple):
    """A hook raised after the outcome was settled; it changed nothing."""

    database: str
    unit: str
    hook: str
    site: Site | None
    outcome: Outcome
    error: BaseException


class EndTroubled(NamedTuple):
    """Something failed while a unit was being closed, after its outcome was known."""

    database: str
    unit: str
    site: Site | None
    outcome: Outcome
    error: BaseException


class Retried(NamedTuple):
    """A function is about to run again in a new unit."""

    database: str
    unit: str
    attempt: int
    wait: float
    error: BaseException


class GuardTripped(NamedTuple):
    """A guard that is set to warn has seen something."""

    database: str
    slug: str
    message: str


class UnitLeaked(NamedTuple):
    """A unit was left open by an owner that is gone, and was rolled back."""

    database: str
    unit: str
    site: Site | None
    why: str


class UnitDrained(NamedTuple):
    """A unit was still open when ``drain()`` ran out of time, and was ended.

    Attributes:
        database: Name of the database.
        unit: Name of the unit.
        site: Where it was opened, as ``orders.py:12``.
        owner: The thread or task that works in it.
        line: Where that was then.
        seconds: How long it was open.
        outcome: What became of it; None where that was not known yet.

    """

    database: str
    unit: str
    site: str
    owner: str
    line: str
    seconds: float
    outcome: Outcome | None


class HeldIdle(NamedTuple):
    """A unit holds its connection in a transaction, and for a long time has run no statement.

    Attributes:
        database: Name of the database.
        unit: Name of the unit.
        site: Where it was opened.
        seconds: For how long.
        since: The line of its last statement.
        until: Where it has come to meanwhile: its next statement, or where its thread or task waits.

    """

    database: str
    unit: str
    site: Site | None
    seconds: float
    since: Site | None
    until: Site | None


class UnitTooOld(NamedTuple):
    """A unit has been open for a long time, in *seconds*, and has come to *line*."""

    database: str
    unit: str
    site: Site | None
    seconds: float
    line: Site | None


class TooManyObjects(NamedTuple):
    """The session of a unit holds many objects, after the call at *line*."""

    database: str
    unit: str
    site: Site | None
    objects: int
    line: Site | None


class WorkLost(NamedTuple):
    """A request that is to commit explicitly ended with work left uncommitted."""

    database: str
    unit: str
    message: str


class ReplicaOut(NamedTuple):
    """A replica is left out: read-only units use the others, or the primary."""

    database: str
    replica: str
    why: str


class ReplicaBack(NamedTuple):
    """A replica that was left out is used again."""

    database: str
    replica: str


class JobSkipped(NamedTuple):
    """A firing of a job that runs once in the cluster came to nothing, for the reason *why*; all is well."""

    database: str
    job: str
    site: Site | None
    why: str


class JobStillRuns(NamedTuple):
    """A tick of such a job is lost, because the run before it still goes on.

    Attributes:
        database: Name of the database.
        job: Its name.
        site: Where it is defined.
        seconds: For how long the run has gone on.
        holder: In which process.
        every: The interval, in seconds.

    """

    database: str
    job: str
    site: Site | None
    seconds: float
    holder: str
    every: float


class RunNotNoted(NamedTuple):
    """Such a job has run, and that could not be stored: the next firing runs it again."""

    database: str
    job: str
    site: Site | None
    why: str


class MessageFailed(NamedTuple):
    """A relay could not send a message of an outbox, and tries again in *wait* seconds; *site* is where it failed.

    Told at a message's first attempt, and not of others of its topic before one of them was sent.
    """

    database: str
    number: int
    topic: str
    site: Site | None
    wait: float
    attempts: int
    error: BaseException


class MessageDead(NamedTuple):
    """A relay has given up a message of an outbox, after *attempts* attempts; *site* is where the last failed."""

    database: str
    number: int
    topic: str
    site: Site | None
    attempts: int
    error: BaseException


class RelayFailed(NamedTuple):
    """A relay could not take a batch from its outbox, and tries again in *wait* seconds; *site* is where it runs."""

    database: str
    table: str
    site: Site | None
    wait: float
    why: str


Event: TypeAlias = (
    UnitClosed
    | InDoubt
    | HookFailed
    | EndTroubled
    | Retried
    | GuardTripped
    | UnitLeaked
    | UnitDrained
    | HeldIdle
    | UnitTooOld
    | TooManyObjects
    | WorkLost
    | ReplicaOut
    | ReplicaBack
    | JobSkipped
    | JobStillRuns
    | RunNotNoted
    | MessageFailed
    | MessageDead
    | RelayFailed
)


class Reader(Protocol):
    """Somebody who is told. Called in the thread of the unit, after its connection has gone home; but what tells that a unit is over
    a limit comes while it works, and a reader must not use its session.
    """

    def wants(self, kind: type[Event]) -> bool:
        """Whether events of this class are worth making now."""
        ...

    def __call__(self, event: Event) -> None:
        """Take note of *event*."""


READERS: Final[list[Reader]] = []


def wanted(kind: type[Event]) -> bool:
    """Whether any reader wants events of this class."""
    for reader in READERS:  # not any(_wants(…)): each unit asks
        try:
            if reader.wants(kind):
                return True
        except Exception as error:  # as in tell()
            _say_failed(reader, error)
    return False


def tell(event: Event) -> None:
    """Tell every reader that wants it. A failing reader never disturbs a unit."""
    for reader in READERS:
        if _wants(reader, type(event)):
            try:
                reader(event)
            except Exception as error:  # a reader is somebody else's code; what it raises must not reach the unit
                _say_failed(reader, error)


def _wants(reader: Reader, kind: type[Event]) -> bool:
    try:
        return reader.wants(kind)
    except Exception as error:  # as in tell()
        _say_failed(reader, error)
        return False


def _say_failed(reader: Reader, error: Exception) -> None:
    # Not with its traceback: that goes on with the error of the unit, which shows statements and their parameters.
    site = words(of_error(error))
    _log.error("tenure: the event reader %s failed (%s): %s. [reader-failed]", type(reader).__qualname__, site, brief(error))
