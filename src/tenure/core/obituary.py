"""What is said to those who come to a unit that is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tenure import callsite, workers
from tenure.callsite import words
from tenure.engines import fork
from tenure.exceptions import ForkedUnit, UnitEnded

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit


def gone(unit: BaseUnit[Any]) -> UnitEnded | ForkedUnit:
    """How and where *unit* ended, and what to do instead."""
    root = unit.root
    if root.inherited:
        parent, here = fork.processes()
        return ForkedUnit(
            f"{root.name!r} was opened in process {parent} ({words(root.site)}) and used in process {here}, at {words(callsite.here(3))}."
            " It goes on in the first. Open a unit after the fork."
        )
    end = ["ended"]
    if root.outcome is not None:
        end.append(root.outcome.value)
    if callsite.is_users(root.end_site):  # not where a host has ended it
        end.append(f"at {words(root.end_site)}")
    if root.end_time:
        end.append(f"{time.monotonic() - root.end_time:.1f} s ago")
    line = callsite.here(3)
    where = (
        f"in {workers.describe(workers.here())}" if line is None else f"at {words(line)}"
    )  # a task may run no line of the user's
    return UnitEnded(
        f"the session of {root.name!r} ({words(root.site)}) {', '.join(end)}, and was used again {where}."
        " Later work needs its own unit: db.unit(function)."
    )
