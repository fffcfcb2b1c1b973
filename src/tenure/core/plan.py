"""Decides the steps that begin and end a unit. Pure generators: no I/O, no await, no SQLAlchemy.

A shell carries each step out and sends back what became of it: ``drive`` for threads, its twin ``adrive`` for asyncio.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from tenure.exceptions import annotate, brief

T = TypeVar("T")
R = TypeVar("R")


class Step(enum.Enum):
    """One thing that a shell must do to the session of a unit."""

    FLUSH = "flush"
    SAVEPOINT = "begin a savepoint"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    RELEASE = "release the savepoint"
    ROLLBACK_TO = "roll back to the savepoint"
    ASK = "ask what became of the COMMIT"
    INVALIDATE = "invalidate"
    CLOSE = "close"


class Outcome(enum.Enum):
    """How a unit ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    READ_ONLY = "read only"
    UNKNOWN = "unknown"


class Opening(enum.Enum):
    """What entering a unit means here."""

    OWN = "a session of its own"
    JOIN = "the session of the unit around it"
    SAVEPOINT = "a savepoint in the unit around it"
    MISSING = "refused: there is no unit to join"
    UNEXPECTED = "refused: there is a unit around it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the end of a unit came to. Frozen: many units share those of the common ends.

    Attributes:
        outcome: What is known about the unit's work.
        error: What the caller is to see; the body's own error, or that of the ending.
        trouble: An error of the ending that changes nothing for the caller; it is reported.

    """

    outcome: Outcome
    error: BaseException | None = None
    trouble: BaseException | None = None


class Facts(Protocol):
    """What a plan asks about a unit."""

    @property
    def rollback_asked(self) -> bool:
        """Whether ``rollback_only()`` was called."""
        ...

    @property
    def doubtful(self) -> bool:
        """Whether it is not known if the COMMIT of a checkpoint took place."""
        ...

    def swallowed(self) -> Exception | None:
        """The error for a failure that was caught but not undone."""

    def stored(self) -> bool:
        """Whether the COMMIT that has just succeeded stored something."""
        ...

    def took_place(self) -> bool:
        """Whether the COMMIT was done, although an error came: what raised it ran after the COMMIT."""
        ...

    def in_doubt(self, error: BaseException) -> BaseException | None:
        """The error to raise when it is not known whether the COMMIT that raised *error* took place."""

    @property
    def verifies(self) -> bool:
        """Whether the server is to be asked then."""
        ...

    @property
    def answer(self) -> bool | None:
        """What it said; None while it was not asked or could not say."""
        ...


Plan: TypeAlias = Generator[Step, None, Verdict]


# What entering a unit means, by its propagation: where no unit is open, and within one.
OPENINGS: Final[Mapping[str, tuple[Opening, Opening]]] = {
    "required": (Opening.OWN, Opening.JOIN),
    "new": (Opening.OWN, Opening.OWN),
    "nested": (Opening.OWN, Opening.SAVEPOINT),
    "mandatory": (Opening.MISSING, Opening.JOIN),
    "never": (Opening.OWN, Opening.UNEXPECTED),
}


def begin(how: Opening, readonly: bool, inside_readonly: bool) -> Generator[Step, None, None]:
    """Begin a unit that is within another.

    A read-only part of a writing unit first writes what waits, so that what is unwritten at its end is its own.
    """
    if how is not Opening.OWN and readonly and not inside_readonly:
        yield Step.FLUSH
    if how is Opening.SAVEPOINT:
        yield Step.SAVEPOINT


def settle(body: BaseException | None, facts: Facts, keep: Step = Step.COMMIT, undo: Step = Step.ROLLBACK) -> Plan:
    """Keep or undo the work of a unit whose body raised *body*, or nothing. The session stays open."""
    error = body
    if error is None and not facts.rollback_asked:
        error = facts.swallowed()
    if error is not None or facts.rollback_asked:
        undone = yield from _undone(error, undo)
        return Verdict(Outcome.UNKNOWN if facts.doubtful else Outcome.ROLLED_BACK, undone)
    try:
        yield keep
    except BaseException as failed:  # whatever it was, what has begun must be ended
        if facts.took_place():
            annotate(failed, "tenure: this was raised after the COMMIT, which stands.")
            return Verdict(_kept(facts), failed)
        verdict = yield from became(failed, facts)
        if verdict.error is None:
            return verdict
        return Verdict(verdict.outcome, (yield from _undone(verdict.error, undo)))
    return Verdict(_kept(facts))


def became(failed: BaseException, facts: Facts) -> Plan:
    """What became of a COMMIT that raised *failed*, and what the caller is to see. Never a guess."""
    doubt = facts.in_doubt(failed)
    if doubt is None:
        return Verdict(Outcome.ROLLED_BACK, failed)
    if not facts.verifies or not isinstance(doubt, Exception):  # an interruption is not kept waiting
        return Verdict(Outcome.UNKNOWN, doubt)
    try:
        yield Step.ASK
    except BaseException as worse:
        return Verdict(Outcome.UNKNOWN, _first(doubt, worse))
    if facts.answer is None:
        annotate(doubt, "tenure: verify_commit asked the server, which did not answer or does not know.")
        return Verdict(Outcome.UNKNOWN, doubt)
    if facts.answer:
        return Verdict(_kept(facts))
    annotate(failed, "tenure: verify_commit asked the server: this COMMIT did not take place, and all was rolled back.")
    return Verdict(Outcome.ROLLED_BACK, failed)


def end(body: BaseException | None, facts: Facts, settled: Verdict | None = None) -> Plan:
    """End a unit that has its own session: settle it, unless *settled* says that this was done before, then close it."""
    verdict = (yield from settle(body, facts)) if settled is None else settled
    try:
        yield Step.CLOSE
    except BaseException as failed:
        return unclosed(verdict, failed)
    return verdict


def unclosed(verdict: Verdict, failed: BaseException) -> Verdict:
    """What a unit of *verdict* came to when closing its session raised *failed*: the outcome is known, and closing must not hide it."""
    if isinstance(failed, Exception):
        return Verdict(verdict.outcome, verdict.error, failed)
    return Verdict(verdict.outcome, failed, verdict.trouble)


def _kept(facts: Facts) -> Outcome:
    return Outcome.COMMITTED if facts.stored() else Outcome.READ_ONLY


def _undone(error: BaseException | None, undo: Step) -> Generator[Step, None, BaseException | None]:
    """Undo, and say what the caller is to see: *error*, unless something that must not be lost came in between."""
    try:
        yield undo
    except BaseException as failed:  # the state of the connection is unknown now: it must not go back to the pool
        try:
            yield Step.INVALIDATE
        except BaseException as worse:
            failed = _first(failed, worse)
        return failed if error is None else _first(error, failed)
    return error


def _first(error: BaseException, later: BaseException) -> BaseException:
    """Which of two errors the caller sees; an interruption or a cancellation goes before an ordinary error."""
    if isinstance(error, Exception) and not isinstance(later, Exception):
        error, later = later, error
    annotate(error, f"tenure: ending the unit failed as well ({brief(later)}); its connection was discarded.")
    return error


def attach(error: BaseException, outcome: Outcome) -> None:
    """Let an interruption or a cancellation carry what became of the unit: ``error.tenure_outcome``."""
    with suppress(Exception):  # a frozen dataclass refuses to be changed
        error.tenure_outcome = outcome  # type: ignore[attr-defined]
    annotate(error, f"tenure: the unit was {outcome.value} when this was raised.")


Call: TypeAlias = tuple[T, BaseException]


def each(hooks: Iterable[T]) -> Generator[T, None, list[Call[T]]]:
    """Run every hook in order, whatever the others do; the failed ones come back with their errors."""
    failed: list[Call[T]] = []
    for hook in hooks:
        try:
            yield hook
        except BaseException as error:  # remembered: an interruption is raised after the last hook has run
            failed.append((hook, error))
    return failed


def drive(plan: Generator[T, Any, R], act: Callable[[T], Any]) -> R:
    """Carry a plan out in this thread; each step becomes what *act* gives for it."""
    try:
        step = next(plan)
        while True:
            try:
                done = act(step)
            except BaseException as error:
                step = plan.throw(error)
            else:
                step = plan.send(done)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def adrive(plan: Generator[T, Any, R], act: Callable[[T], Awaitable[Any]]) -> R:
    """Carry a plan out in this task; each step becomes what awaiting *act* gives for it."""
    try:
        step = next(plan)
        while True:
            try:
                done = await act(step)
            except BaseException as error:
                step = plan.throw(error)
            else:
                step = plan.send(done)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
