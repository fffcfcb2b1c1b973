"""Jobs that are sent too early: a worker may look for rows that are not committed yet, or never will be."""

from __future__ import annotations

from tenure import callsite
from tenure.callsite import words
from tenure.core import events
from tenure.core.current import every, innermost_open
from tenure.exceptions import EarlyEnqueue


def noticed(what: str, remedy: str) -> None:
    """Warn if the code that sends *what* is in a unit whose work is not committed, of whichever database.

    Args:
        what: ``task 'receipt'``.
        remedy: How to send it after the commit: ``db.on_commit(receipt.delay, …)``.

    """
    for place in every():
        unit = innermost_open(place.here())
        if unit is None or unit.door is None or unit.database.modes["early-enqueue"] == "off":
            continue
        if unsaved := unit.door.unsaved():
            error = EarlyEnqueue(
                f"{what} was sent at {words(callsite.here(2))} by unit {unit.root.name!r} ({words(unit.root.site)}), which has"
                f" {unsaved.rstrip(',')}. Use {remedy}."
            )
            events.tell(events.GuardTripped(unit.database.name, error.slug, str(error)))
