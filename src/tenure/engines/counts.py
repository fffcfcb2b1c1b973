"""What has happened at a gate since it was built, in numbers."""

from __future__ import annotations


class Counts:
    """How often what has happened at a gate since it was built."""

    __slots__ = ("acquired", "cancelled", "discarded", "in_doubt", "leaked", "longest_wait", "refused", "timed_out", "waited")

    def __init__(self) -> None:
        self.acquired = self.timed_out = self.cancelled = self.refused = self.leaked = self.discarded = self.in_doubt = (
            self.waited
        ) = 0
        self.longest_wait = 0.0  # seconds

    def wait(self, seconds: float) -> None:
        """Somebody has stood in line, whatever came of it."""
        self.waited += 1
        self.longest_wait = max(self.longest_wait, seconds)
