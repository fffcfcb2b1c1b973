"""Writes events to the standard library's logger ``tenure``: one line per unit at DEBUG, what went wrong above it."""

from __future__ import annotations

import logging
from typing import Final

from tenure.callsite import words
from tenure.core import events
from tenure.exceptions import brief

_log: Final = logging.getLogger("tenure")
_LEVELS: Final[dict[type[events.Event], int]] = {
    events.UnitClosed: logging.DEBUG,
    events.InDoubt: logging.ERROR,
    events.HookFailed: logging.ERROR,
    events.EndTroubled: logging.ERROR,
    events.Retried: logging.INFO,
    events.GuardTripped: logging.WARNING,
    events.UnitLeaked: logging.WARNING,
    events.UnitDrained: logging.WARNING,
    events.HeldIdle: logging.WARNING,
    events.UnitTooOld: logging.WARNING,
    events.TooManyObjects: logging.WARNING,
    events.WorkLost: logging.WARNING,
    events.ReplicaOut: logging.WARNING,
    events.ReplicaBack: logging.INFO,
    events.JobSkipped: logging.INFO,
    events.JobStillRuns: logging.WARNING,
    events.RunNotNoted: logging.WARNING,
    events.MessageDead: logging.ERROR,
    events.RelayFailed: logging.WARNING,
}


class LogReader:
    """The reader that ``import tenure`` puts in place."""

    def wants(self, kind: type[events.Event]) -> bool:
        """Whether the logger lets a line of this event's level through."""
        return _log.isEnabledFor(_LEVELS[kind])

    def __call__(self, event: events.Event) -> None:
        """Write one line. No statement, parameter or password is in it."""
        _log.log(_LEVELS[type(event)], "tenure: %s", _line(event))


def _line(event: events.Event) -> str:
    match event:
        case events.UnitClosed():
            took = f"{event.seconds * 1000:.1f} ms"
            return f"{event.unit!r} ({words(event.site)}) on {event.database!r}: {event.outcome.value}, {event.reason}, {took}"
        case events.InDoubt():
            opened = f"{event.unit!r} ({words(event.site)}) on {event.database!r}"
            return f"it is not known whether {opened} was committed: {event.reason}. Check before a rerun. [commit-unknown]"
        case events.HookFailed():
            return (
                f"hook {event.hook!r} ({words(event.site)}) of {event.unit!r} failed after the outcome was known"
                f" ({event.outcome.value}), which stands: {brief(event.error)}. [hook-failed]"
            )
        case events.EndTroubled():
            opened = f"{event.unit!r} ({words(event.site)})"
            return f"closing {opened} failed after it was {event.outcome.value}: {brief(event.error)}. [close-failed]"
        case events.Retried():
            return f"{event.unit!r} runs again as attempt {event.attempt} in {event.wait * 1000:.0f} ms: {brief(event.error)}"
        case events.UnitLeaked():
            return f"rolled back {event.unit!r} ({words(event.site)}): {event.why}. Use a with-block. [leaked-unit]"
        case events.UnitDrained():
            became = "has not answered yet" if event.outcome is None else f"is {event.outcome.value}"
            return (
                f"{event.unit!r} ({event.site}) on {event.database!r} was open for {event.seconds:.1f} s, in {event.owner} at {event.line},"
                f" when the drain ran out of time; it was stopped and {became}. Give it a timeout=, or the drain more time. [drained-unit]"
            )
        case events.HeldIdle():
            return (
                f"{event.unit!r} holds a connection of {event.database!r}, idle for {event.seconds:.0f} s since {words(event.since)}."
                f" Commit and unit.release() before {words(event.until)}. [held-idle]"
            )
        case events.UnitTooOld():
            return (
                f"{event.unit!r} ({words(event.site)}) on {event.database!r} is open for {event.seconds:.0f} s, at {words(event.line)}."
                " Give each piece of work a unit of its own. [unit-too-old]"
            )
        case events.TooManyObjects():
            return (
                f"{event.unit!r} ({words(event.site)}) on {event.database!r} has {event.objects} objects in its session at {words(event.line)}."
                " Give each part a unit of its own, or commit and expunge_all() in between. [too-many-objects]"
            )
        case events.ReplicaOut():
            return f"{event.database!r} does without its replica {event.replica}: {event.why}. [replica-left-out]"
        case events.ReplicaBack():
            return f"{event.database!r} uses its replica {event.replica} again."
        case events.JobSkipped():
            return f"job {event.job!r} ({words(event.site)}) on {event.database!r} is skipped here: {event.why}."
        case events.JobStillRuns():
            return (
                f"job {event.job!r} ({words(event.site)}) on {event.database!r} is skipped: its run of {event.seconds:.1f} s ago still goes on"
                f" in {event.holder}. Make it shorter, or its interval longer than {event.every:g} s. [job-still-runs]"
            )
        case events.RunNotNoted():
            return (
                f"job {event.job!r} ({words(event.site)}) on {event.database!r} has run, but that could not be noted: {event.why}. The next"
                " firing runs it again, and if its connection was lost before, another process may have. [run-not-noted]"
            )
        case events.MessageDead():
            return (
                f"message {event.number} ({event.topic!r}) on {event.database!r} is given up after {event.attempts} attempts, the last at"
                f" {words(event.site)}: {brief(event.error)}. Mend that, and outbox.revive({event.number}). [message-dead]"
            )
        case events.RelayFailed():
            return (
                f"the relay of {event.table!r} ({words(event.site)}) on {event.database!r} could not take a batch: {event.why}. It tries again"
                f" in {event.wait:.1f} s; no message is lost. [relay-failed]"
            )
        case events.GuardTripped() | events.WorkLost():
            return event.message
