"""When a queue is not just busy but overloaded. Pure: the caller brings the time."""

from __future__ import annotations

from typing import Final

_INTERVAL: Final = 10.0  # in targets
_AGAIN: Final = 2.0  # the interval, in targets, where the queue was overloaded a moment ago
_PATIENCE: Final = 2.0  # in targets
_NOBODY: Final = float("inf")  # has waited in this interval


class Overload:
    """Tells a standing queue from a burst, by the shortest wait of an interval.

    After Kathleen Nichols and Van Jacobson, *Controlling Queue Delay*, ACM Queue 10(5), 2012, in the form of Elixir's DBConnection:
    a queue is overloaded when even its shortest wait over a whole interval was longer than the target; while it is, whoever has
    waited longer than twice the target is turned away, so that those who come now are served in time. One short wait ends that. As
    with CoDel, a queue that was overloaded a moment ago is found to be so again sooner than for the first time: a pause in what
    comes, as short as a garbage collection, is no end of the load.

    Args:
        target: The wait that is still good service, in seconds.

    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._interval_ends: float | None = None
        self._calm_at = float("-inf")  # when an overload will have been over for a whole interval
        self._shortest = _NOBODY
        self.overloaded = False

    def sheds(self, now: float, waited: float) -> bool:
        """Whether the one whose turn it is, after *waited* seconds, is to be turned away. *now* never goes back."""
        if self._interval_ends is None or now >= self._interval_ends:
            self.overloaded = self._target < self._shortest < _NOBODY
            self._begin(now, _AGAIN if now < self._calm_at else _INTERVAL)
        self._shortest = min(self._shortest, waited)
        if self.overloaded and waited <= self._target:  # the queue is short again
            self.overloaded = False
            self._begin(now, _AGAIN)
        if self.overloaded:
            self._calm_at = now + _INTERVAL * self._target
        return self.overloaded and waited > _PATIENCE * self._target

    def _begin(self, now: float, interval: float) -> None:
        self._shortest = _NOBODY
        self._interval_ends = now + interval * self._target
