"""Whether somebody wants it all to end. Whatever waits asks here, so that nothing is interrupted in the middle of being started."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

PATIENCE = 60.0  # seconds that something may take to become true


class ClusterError(Exception):
    """The cluster cannot be started, or not go on."""


class Stop:
    """Asked for once while clients order, a run ends with its account; else, and when it is asked for twice, at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.runs = False  # from when on there is something to give an account of

    def listen(self) -> None:
        """Heed Ctrl-C, SIGTERM, and a terminal that is closed."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked += 1

    @property
    def too_early(self) -> str:
        """Why there is no account; nothing if there is to be one."""
        if self.asked and not self.runs:
            return "interrupted before it began"
        return "interrupted twice" if self.asked > 1 else ""

    def check(self) -> None:
        """Raise ClusterError where nothing is to be waited for any more."""
        if self.too_early:
            raise ClusterError(self.too_early)


stop = Stop()


def until(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Wait for *condition*; whether it holds by then."""
    ends = time.monotonic() + patience
    while not (holds := condition()) and time.monotonic() < ends:
        stop.check()
        time.sleep(0.02)
    return bool(holds)
