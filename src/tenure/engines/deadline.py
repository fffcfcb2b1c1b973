"""One deadline for all that a unit waits for, and where its time went."""

from __future__ import annotations

import time


class Deadline:
    """The seconds that a unit, or a part of one, may take.

    Attributes:
        seconds: As asked for.
        opened: When it began to count, by ``time.monotonic()``, in seconds.
        when: When it passes; never later than that of *outer*.
        waited: Seconds spent waiting for a connection.
        in_sql: Seconds spent in the session otherwise.

    """

    __slots__ = ("_outer", "in_sql", "opened", "seconds", "waited", "when")

    def __init__(self, seconds: float, outer: Deadline | None = None) -> None:
        self.seconds = seconds
        self.opened = time.monotonic()
        self.when = self.opened + seconds
        self.waited = self.in_sql = 0.0
        self._outer = outer

    def left(self) -> float:
        """Seconds that are left; below 0 once it has passed."""
        return self.when - time.monotonic()

    def spend(self, waited: float, in_sql: float) -> None:
        """Note where time went; it went there for the parts around this one, too."""
        self.waited += waited
        self.in_sql += in_sql
        if self._outer is not None:
            self._outer.spend(waited, in_sql)

    def within(self, seconds: float | None) -> Deadline:
        """The deadline of a part that asks for *seconds*: its own if that is the earlier one, else this."""
        if seconds is None or seconds >= self.left():
            return self
        return Deadline(seconds, self)

    def account(self, name: str, line: str, *, streamed: bool = False) -> str:
        """Where the time went, the connection being one of *name* and the last statement at *line*.

        With *streamed* some of it went where rows were fetched as they were read, which nobody measures.
        """
        total = time.monotonic() - self.opened
        elsewhere = max(total - self.waited - self.in_sql, 0.0)
        parts = [
            (self.waited, f"waiting for {name!r}"),
            (self.in_sql, f"in SQL ({line})"),
            (elsewhere, "reading rows and elsewhere" if streamed else "elsewhere"),
        ]
        told = [part for part in parts if part[0] >= 0.05 * total]
        return ", ".join(f"{seconds(spent)} {what}" for spent, what in told) + ("" if parts[1] in told else f", at {line}")

    def advice(self) -> str:
        """What may help, by where the time went."""
        total = time.monotonic() - self.opened
        elsewhere = total - self.waited - self.in_sql
        if elsewhere > max(self.waited, self.in_sql):
            return "do the slow work outside the unit"
        return "shorten the query" if self.in_sql > 0.25 * total else "see who holds the connections (db.holders())"


def earlier(outer: Deadline | None, timeout: float | None) -> Deadline | None:
    """The deadline of a part that asks for *timeout* within one that is bound by *outer*."""
    if outer is None:
        return None if timeout is None else Deadline(timeout)
    return outer.within(timeout)


def seconds(value: float) -> str:
    """``0.4 s``, or ``40 ms``."""
    return f"{value:.1f} s" if value >= 0.095 else f"{value * 1000:.0f} ms"
