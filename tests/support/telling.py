"""For tests with servers and schedulers in other threads: what was told, once enough was; and the rows, seen from outside."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tenure.core import events

from support import probe
from support.face import PATIENCE, Face
from support.models import User


class Told(probe.Told):
    """The events told while it listens, and a wait until there are enough of them."""

    def __init__(self) -> None:
        super().__init__()
        self._news = threading.Condition()

    def __call__(self, event: Any) -> None:
        with self._news:
            self.append(event)
            self._news.notify_all()

    def of(self, kind: type[Any], count: int = 0) -> list[Any]:
        """The events of *kind*, once there are at least *count* of them."""
        with self._news:
            if not self._news.wait_for(lambda: len(super(Told, self).of(kind)) >= count, PATIENCE):
                message = f"{len(super().of(kind))} of {count} {kind.__name__} events came"
                raise TimeoutError(message)
            return super().of(kind)

    def closed(self, count: int = 0) -> list[tuple[str, str, str]]:
        """Name, outcome and reason of each unit that has ended, once *count* have."""
        return [(one.unit, one.outcome.value, one.reason) for one in self.of(events.UnitClosed, count)]


@pytest.fixture
def told() -> Iterator[Told]:
    """What tenure tells its readers during the test."""
    with probe.reading(Told()) as told:
        yield told


@pytest.fixture
def stored(face: Face) -> Callable[..., list[Any]]:
    """``stored()`` gives the users' names, ``stored(column)`` another column's values, on a connection of its own."""
    return lambda column=User.name: probe.stored(face, column)
