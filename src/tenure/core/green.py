"""One warning where units run in greenlets and something in them blocks all the others."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from tenure.callsite import here, words
from tenure.core import events
from tenure.engines.green import library, obstacles


class GreenletsBlocked:
    """Asked when a session is used in a greenlet; tells once.

    Args:
        name: The database's name.
        engine: Whose connections they are.

    """

    def __init__(self, name: str, engine: Engine) -> None:
        self._name = name
        self._engine = engine
        self._told = False

    def __call__(self) -> None:
        """Look, the first time."""
        if self._told or (used := library()) is None:
            return
        self._told = True  # or nothing is to be told: neither patches nor drivers change while a program runs
        found = list(obstacles(used, self._engine))
        if found:
            what, remedies = "; ".join(one.what for one in found), " ".join(one.remedy for one in found)
            message = (
                f"units of {self._name!r} run in greenlets of {used} ({words(here(2))}), and one that waits stops all others:"
                f" {what}. {remedies} [greenlets-blocked]"
            )
            events.tell(events.GuardTripped(self._name, "greenlets-blocked", message))
