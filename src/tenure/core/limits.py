"""What a unit should not come to: a connection held idle, great age, too many objects. Nothing is stopped; it is told.

There is no thread that watches. A unit is looked at when it runs a statement, when it ends, and when somebody asks who holds the
connections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenure.callsite import Site
from tenure.checks import check_seconds
from tenure.core import events
from tenure.exceptions import BadOption

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit


@dataclass(frozen=True, slots=True)
class Limits:
    """What a unit may come to before it is logged, once for each line of code. None or 0 switches a limit off.

    Args:
        idle: Seconds for which a unit may hold a connection in a transaction without a statement (``held-idle``). Default 30.
        age: Seconds for which a unit may be open (``unit-too-old``); the body of a web response does not count. Default 600.
        objects: How many objects its session may hold (``too-many-objects``). Default 10,000.

    Raises:
        BadOption: A value is no number, or below 0.

    """

    idle: float | None = 30.0
    age: float | None = 600.0
    objects: int | None = 10_000

    def __post_init__(self) -> None:
        for name in ("idle", "age"):
            if getattr(self, name) is not None:
                check_seconds(f"Limits({name})", getattr(self, name))
        if self.objects is not None and (type(self.objects) is not int or self.objects < 0):
            raise BadOption(f"Limits(objects={self.objects!r}): give a whole number, at least 0.")


class Notices:
    """Tells of the units of one database that are over its limits.

    Attributes:
        idle: The limit, in seconds; infinite where there is none.
        age: As *idle*.
        objects: The limit; infinite where there is none.

    """

    def __init__(self, limits: Limits) -> None:
        if not isinstance(limits, Limits):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadOption(f"limits={limits!r}: give Limits(idle=…, age=…, objects=…).")
        self.idle = limits.idle or math.inf
        self.age = limits.age or math.inf
        self.objects = limits.objects or math.inf
        self._told: set[tuple[type, str, int]] = set()

    def held_idle(self, unit: BaseUnit[Any], seconds: float, since: Site | None, until: Site | None) -> None:
        """*unit* has held its connection idle for *seconds*, since the line of its last statement until it came to another line."""
        if self._first(events.HeldIdle, since):
            events.tell(events.HeldIdle(unit.database.name, unit.name, unit.site, seconds, since, until))

    def too_old(self, unit: BaseUnit[Any], seconds: float, line: Site | None) -> None:
        """*unit* has been open for *seconds*, and is now at *line*."""
        if self._first(events.UnitTooOld, unit.site):
            events.tell(events.UnitTooOld(unit.database.name, unit.name, unit.site, seconds, line))

    def too_many(self, unit: BaseUnit[Any], count: int, line: Site | None) -> None:
        """The session of *unit* has *count* objects after *line*."""
        if self._first(events.TooManyObjects, unit.site):
            events.tell(events.TooManyObjects(unit.database.name, unit.name, unit.site, count, line))

    def _first(self, kind: type[events.Event], line: Site | None) -> bool:
        """Whether it is the first time at *line*. One entry for each line of code, so it does not grow with use."""
        key = (kind, "", 0) if line is None else (kind, line[0].co_filename, line[1])
        if key in self._told:
            return False
        self._told.add(key)
        return True
