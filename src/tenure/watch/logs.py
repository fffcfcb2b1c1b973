"""Writes events to the standard library's logger ``tenure``: one line per unit at DEBUG, what went wrong above it."""

from __future__ import annotations

import logging
import string
from collections.abc import Callable
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any, Final

from tenure.callsite import words
from tenure.core import events
from tenure.exceptions import brief

_log: Final = logging.getLogger("tenure")

# How urgent each event is, and what is said of it: its fields by their names, put into words as _Sentence knows.
SAID: Final[dict[type[events.Event], tuple[int, str]]] = {
    events.UnitClosed: (DEBUG, "{unit!r} ({site:line}) on {database!r}: {outcome:outcome}, {reason}, {seconds:ms}"),
    events.InDoubt: (
        ERROR,
        "it is not known whether {unit!r} ({site:line}) on {database!r} was committed: {reason}. Check before a rerun. [commit-unknown]",
    ),
    events.HookFailed: (
        ERROR,
        (
            "hook {hook!r} ({site:line}) of {unit!r} failed after the outcome was known ({outcome:outcome}), which stands: {error:error}."
            " [hook-failed]"
        ),
    ),
    events.EndTroubled: (
        ERROR,
        "closing {unit!r} ({site:line}) failed after it was {outcome:outcome}: {error:error}. [close-failed]",
    ),
    events.Retried: (INFO, "{unit!r} runs again as attempt {attempt} in {wait:ms}: {error:error}"),
    events.GuardTripped: (WARNING, "{message}"),
    events.UnitLeaked: (WARNING, "rolled back {unit!r} ({site:line}): {why}. Use a with-block. [leaked-unit]"),
    events.UnitDrained: (
        WARNING,
        (
            "{unit!r} ({site}) on {database!r} was open for {seconds:.1f} s, in {owner} at {line}, when the drain ran out of time; it was"
            " stopped and {outcome:became}. Give it a timeout=, or the drain more time. [drained-unit]"
        ),
    ),
    events.HeldIdle: (
        WARNING,
        (
            "{unit!r} holds a connection of {database!r}, idle for {seconds:.0f} s since {since:line}. Commit and unit.release() before"
            " {until:line}. [held-idle]"
        ),
    ),
    events.UnitTooOld: (
        WARNING,
        (
            "{unit!r} ({site:line}) on {database!r} is open for {seconds:.0f} s, at {line:line}. Give each piece of work a unit of its own."
            " [unit-too-old]"
        ),
    ),
    events.TooManyObjects: (
        WARNING,
        (
            "{unit!r} ({site:line}) on {database!r} has {objects} objects in its session at {line:line}. Give each part a unit of its own,"
            " or commit and expunge_all() in between. [too-many-objects]"
        ),
    ),
    events.WorkLost: (WARNING, "{message}"),
    events.ReplicaOut: (WARNING, "{database!r} does without its replica {replica}: {why}. [replica-left-out]"),
    events.ReplicaBack: (INFO, "{database!r} uses its replica {replica} again."),
    events.JobSkipped: (INFO, "job {job!r} ({site:line}) on {database!r} is skipped here: {why}."),
    events.JobStillRuns: (
        WARNING,
        (
            "job {job!r} ({site:line}) on {database!r} is skipped: its run of {seconds:.1f} s ago still goes on in {holder}. Make it shorter,"
            " or its interval longer than {every:g} s. [job-still-runs]"
        ),
    ),
    events.RunNotNoted: (
        WARNING,
        (
            "job {job!r} ({site:line}) on {database!r} has run, but that could not be noted: {why}. The next firing runs it again, and if"
            " its connection was lost before, another process may have. [run-not-noted]"
        ),
    ),
    events.MessageFailed: (
        WARNING,
        (
            "message {number} ({topic!r}) on {database!r} could not be sent, at {site:line}: {error:error}. It is tried again in {wait:.1f} s,"
            " {attempts} times in all; what fails with it is not named. [message-failed]"
        ),
    ),
    events.MessageDead: (
        ERROR,
        (
            "message {number} ({topic!r}) on {database!r} is given up after {attempts} attempts, the last at {site:line}: {error:error}."
            " Mend that, and outbox.revive({number}). [message-dead]"
        ),
    ),
    events.RelayFailed: (
        WARNING,
        (
            "the relay of {table!r} ({site:line}) on {database!r} could not take a batch: {why}. It tries again in {wait:.1f} s; no message"
            " is lost. [relay-failed]"
        ),
    ),
}

_IN_WORDS: Final[dict[str, Callable[[Any], str]]] = {
    "became": lambda outcome: "has not answered yet" if outcome is None else f"is {outcome.value}",
    "error": brief,
    "line": words,
    "ms": lambda seconds: f"{seconds * 1000:.1f} ms",
    "outcome": lambda outcome: str(outcome.value),
}


class _Sentence(string.Formatter):
    """``str.format`` that also knows how lines, outcomes and errors are put into words: ``{site:line}``, ``{error:error}``."""

    def format_field(self, value: Any, format_spec: str) -> str:
        in_words = _IN_WORDS.get(format_spec)
        return str(super().format_field(value, format_spec)) if in_words is None else in_words(value)


_SENTENCE: Final = _Sentence()


class LogReader:
    """The reader that ``import tenure`` puts in place."""

    def wants(self, kind: type[events.Event]) -> bool:
        """Whether the logger lets a line of this event's level through."""
        return _log.isEnabledFor(SAID[kind][0])

    def __call__(self, event: events.Event) -> None:
        """Write one line. No statement, parameter or password is in it."""
        level, said = SAID[type(event)]
        _log.log(level, "tenure: %s", _SENTENCE.vformat(said, (), event._asdict()))
