"""When a queue is not just busy but overloaded. Pure: the caller brings the time."""

from __future__ import annotations

from typing import Final

_INTERVAL: Final = 10.0  # in targets
_PATIENCE: Final = 2.0  # in targets


class Overload:
    """Tells a standing queue from a burst, by the shortest wait of an interval.

    After Kathleen Nichols and Van Jacobson, *Controlling Queue Delay*, ACM Queue 10(5), 2012, in the form of Elixir's DBConnection:
    a queue is overloaded when even its shortest wait over a whole interval was longer than the target; while it is, whoever has
    waited longer than twice the target is turned away, so that those who come now are served in time.

    Args:
        target: The wait that is still good service, in seconds.

    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._interval_ends: float | None = None
        self._shortest = float("inf")
        self.overloaded = False

    def sheds(self, now: float, waited: float) -> bool:
        """Whether the one whose turn it is, after *waited* seconds, is to be turned away. *now* never goes back."""
        if self._interval_ends is None:
            self._interval_ends = now + _INTERVAL * self._target
        elif now >= self._interval_ends:
            self.overloaded = self._shortest > self._target
            self._shortest = float("inf")
            self._interval_ends = now + _INTERVAL * self._target
        self._shortest = min(self._shortest, waited)
        if waited <= self._target:
            self.overloaded = False  # the queue is short again
        return self.overloaded and waited > _PATIENCE * self._target
