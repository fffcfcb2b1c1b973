"""What failed within a unit and must be undone before the unit can commit."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.orm import SessionTransaction

from tenure.callsite import Site
from tenure.core.hooks import Savepoints


class Failure(NamedTuple):
    """Something that failed; *within* are the savepoints that were open, the innermost first."""

    error: BaseException
    site: Site | None
    within: Savepoints


class Failures:
    """Those of one unit, the first one first."""

    def __init__(self) -> None:
        self._all: list[Failure] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def note(self, failure: Failure) -> None:
        """One more, unless it is known: an error passes several doors on its way out."""
        if not any(one.error is failure.error and one.within == failure.within for one in self._all):
            self._all.append(failure)

    def rename(self, error: BaseException, other: BaseException) -> None:
        """*error* is raised as *other*."""
        self._all = [one._replace(error=other) if one.error is error else one for one in self._all]

    def undo(self, savepoint: SessionTransaction | None) -> None:
        """What failed in *savepoint* was undone, or everything was (None)."""
        self._all = [] if savepoint is None else [one for one in self._all if savepoint not in one.within]

    def first(self, savepoint: SessionTransaction | None) -> Failure | None:
        """The first that concerns *savepoint*, or the whole unit (None)."""
        return next((one for one in self._all if savepoint is None or savepoint in one.within), None)
