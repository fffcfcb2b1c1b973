"""A reader of events for the tests: what was told, and a wait until enough was."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from tenure.core import events

from support.face import PATIENCE

E = TypeVar("E")


class Told:
    """The events told while it listens."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        self._news = threading.Condition()

    def wants(self, kind: type) -> bool:
        return True

    def __call__(self, event: Any) -> None:
        with self._news:
            self._all.append(event)
            self._news.notify_all()

    def of(self, kind: type[E], count: int = 0) -> list[E]:
        """The events of *kind*, once there are at least *count* of them."""

        def found() -> list[E]:
            return [event for event in self._all if isinstance(event, kind)]

        with self._news:
            if not self._news.wait_for(lambda: len(found()) >= count, PATIENCE):
                message = f"{len(found())} of {count} {kind.__name__} events came"
                raise TimeoutError(message)
            return found()

    def closed(self, count: int = 0) -> list[tuple[str, str, str]]:
        """Name, outcome and reason of each unit that has ended, once *count* have."""
        return [(one.unit, one.outcome.value, one.reason) for one in self.of(events.UnitClosed, count)]


@contextlib.contextmanager
def listening() -> Iterator[Told]:
    """Hear all that is told."""
    told = Told()
    events.READERS.append(told)
    try:
        yield told
    finally:
        events.READERS.remove(told)
