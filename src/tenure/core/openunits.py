"""Which units of a database are open, with a connection or without, and whether new ones may begin."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from tenure.engines import fork

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit


class OpenUnits:
    """The units that have not ended. Known weakly: one that is dropped goes as if it were not here.

    Every unit passes here, so entering and leaving are single operations on a dict, which need no lock.

    Attributes:
        draining: Only units within others begin, and those of hooks.
        over: None begins any more.

    """

    __slots__ = ("__weakref__", "_units", "draining", "over")

    def __init__(self) -> None:
        self._units: dict[int, tuple[weakref.ref[BaseUnit[Any]], int]] = {}
        self.draining = False
        self.over = False
        fork.register(self)

    def start_anew(self) -> None:
        """As ``Heir``: the units are the parent's, where they go on."""
        for unit in self.now():
            unit.stays_behind()
        self._units.clear()

    def enter(self, unit: BaseUnit[Any]) -> None:
        """*unit* has begun, in this thread."""
        self._units[id(unit)] = weakref.ref(unit), threading.get_ident()

    def leave(self, unit: BaseUnit[Any]) -> None:
        """*unit* is over."""
        self._units.pop(id(unit), None)

    def now(self) -> dict[BaseUnit[Any], int]:
        """The units that are open, the oldest first, each with the number of the thread in which it began."""
        found = [(unit, thread) for known, thread in list(self._units.values()) if (unit := known()) is not None]
        return dict(sorted(found, key=lambda one: one[0].opened))
