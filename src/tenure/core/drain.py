"""How a database is drained: no new units, a time for those that are open, and then an end for the rest.

Synchronous code for both faces: for asyncio it runs in SQLAlchemy's greenlet, where *pause* awaits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tenure import callsite, workers
from tenure.callsite import words
from tenure.core import events
from tenure.core.plan import Outcome

if TYPE_CHECKING:
    from tenure.core.base import BaseDatabase
    from tenure.core.unit import BaseUnit

CLOSING: Final = 1.0  # seconds that close() leaves to units which are open
_LOOK: Final = 0.005  # seconds between two looks at those that are waited for
_UNWIND: Final = 1.0  # seconds in which a unit whose statement was stopped can end by itself


class DrainedUnit(NamedTuple):
    """A unit that did not end in time.

    Attributes:
        unit: Its name.
        site: Where it was opened, as ``orders.py:12``.
        owner: The thread or task that works in it.
        line: Where that is now.
        age: Seconds since it was opened.
        outcome: What became of it; None if its thread is stuck in the database's driver and has not said yet.

    """

    unit: str
    site: str
    owner: str
    line: str
    age: float
    outcome: Outcome | None


class Drained(NamedTuple):
    """What a drain came to.

    Attributes:
        seconds: How long it took.
        ended: How many units ended by themselves meanwhile.
        stuck: Those that did not, the oldest first.

    """

    seconds: float
    ended: int
    stuck: tuple[DrainedUnit, ...]


def drain(database: BaseDatabase[Any], timeout: float, pause: Callable[[float], None]) -> Drained:
    """Let the open units of *database* end, for at most *timeout* seconds, and then end them."""
    began = time.monotonic()
    units = database.units
    units.draining = True
    open_before = len(units.now())
    own = set(_around(database))  # these cannot end as long as this call lasts
    while units.now().keys() - own and time.monotonic() < began + timeout:
        pause(_LOOK)
    units.over = True
    stuck = units.now()
    found = {unit: _describe(unit, thread) for unit, thread in stuck.items()}
    if stuck:
        _end(list(stuck), pause)
    told = tuple(one._replace(outcome=unit.outcome) for unit, one in found.items())
    for one in told:
        events.tell(events.UnitDrained(database.name, *one))
    for supply in database.supplies:
        supply.gate.empty()
    return Drained(round(time.monotonic() - began, 3), max(open_before - len(stuck), 0), told)


def _around(database: BaseDatabase[Any]) -> list[BaseUnit[Any]]:
    found: list[BaseUnit[Any]] = []
    unit = database.current_place.here()
    while unit is not None:
        found.append(unit)
        unit = unit.parent
    return found


def _describe(unit: BaseUnit[Any], thread: int) -> DrainedUnit:
    worker: Any = next((one for one in threading.enumerate() if one.ident == thread), None)
    if unit.door is not None:  # which knows of tasks, and of threads to which it was handed on
        worker = unit.door.worker()
    line = words(callsite.of_worker(workers.alive(worker)))
    return DrainedUnit(
        unit.name, words(unit.site), workers.describe(worker), line, round(time.monotonic() - unit.opened, 3), None
    )


def _end(stuck: list[BaseUnit[Any]], pause: Callable[[float], None]) -> None:
    """End *stuck* units: those that are idle here and now, the others by making their statements fail."""
    ends = time.monotonic() + _UNWIND
    doors = [(unit, unit.door) for unit in stuck]
    try:
        while left := [(unit, door) for unit, door in doors if not unit.ended]:
            # Those that wait for a connection first, or they would be given those of the others.
            for unit, door in sorted(left, key=lambda one: one[1] is not None and one[1].holds_connection):
                if door is not None:
                    door.cut_short()
                elif not unit.ending:  # it has no session, so there is nothing to undo
                    unit.close(unit.outcome or Outcome.ROLLED_BACK, None, None)
            if time.monotonic() > ends:
                break
            pause(_LOOK)
    finally:
        for _, door in doors:
            if door is not None:
                with suppress(Exception):  # its connection is gone
                    door.let_be()
