"""In the server's process: what tenure says became of every request and every job."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from tenure.core import events
from tenure.core.base import BaseDatabase

TROUBLES = (events.HookFailed, events.EndTroubled, events.GuardTripped, events.UnitLeaked, events.UnitDrained, events.WorkLost)
LAST_LINE = "The account of the server: "


class Probe:
    """A reader of tenure's events.

    Args:
        db: The database of the server.
        act: Gives the header ``X-Act`` of the request that is current in this thread or task, or None.

    """

    def __init__(self, db: BaseDatabase[Any], act: Callable[[], str | None]) -> None:
        self._db = db
        self._act = act
        self._lock = threading.Lock()
        self._outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._troubles: Counter[str] = Counter()
        self._returned: defaultdict[str, list[str]] = defaultdict(list)
        self._raised: Counter[str] = Counter()
        events.READERS.append(self)

    def wants(self, kind: type[events.Event]) -> bool:
        """All that concern the end of a unit, or something that should not be."""
        return kind is events.UnitClosed or kind in TROUBLES

    def __call__(self, event: events.Event) -> None:
        """Count *event*, in the thread or task of its unit."""
        with self._lock:
            if isinstance(event, events.UnitClosed):
                self._outcomes[self._act() or event.unit][event.outcome.value] += 1
            else:
                self._troubles[type(event).__name__] += 1

    def job_ended(self, event: Any) -> None:
        """Count a run of a job; an APScheduler listener. A job returns the token of the row it wrote."""
        with self._lock:
            if event.exception is None:
                self._returned[event.job_id].append(event.retval)
            else:
                self._raised[event.job_id] += 1

    def last_line(self) -> str:
        """Everything, on one line. Ask for it when requests and jobs have ended and the database is still open."""
        with self._lock:
            found = {
                "status": self._db.status()._asdict(),
                "holders": [one._asdict() for one in self._db.holders()],
                "outcomes": self._outcomes,
                "troubles": self._troubles,
                "returned": self._returned,
                "raised": self._raised,
            }
        return LAST_LINE + json.dumps(found)
