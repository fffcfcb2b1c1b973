"""One answer, several databases: their units end together, in the order in which they were opened, and never look like one.

Each database has its own boundary around the application, and so a request of its own. The inner ones know the status first. They
leave their end to the outermost, whose status is what the client gets: nobody commits while another may still say no.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any

from tenure.callsite import Site, words
from tenure.core.base import BaseDatabase
from tenure.core.current import Here, Place
from tenure.core.plan import Outcome
from tenure.exceptions import annotate

if TYPE_CHECKING:
    from tenure.web.request import Request, Step

# The databases whose requests a boundary in this process has units for. Where that is one, nothing has to be looked for.
# Never changed, always replaced: the garbage collector may let one go while a request goes through them.
_served: tuple[weakref.ref[BaseDatabase[Any]], ...] = ()
_lock = RLock()  # which the garbage collector may find held by the thread that it interrupts


def serves(database: BaseDatabase[Any]) -> None:
    """A boundary for *database* was made."""
    global _served
    with _lock:
        known = weakref.ref(database, _gone)
        if known not in _served:
            _served = (*_served, known)


def _gone(known: weakref.ref[BaseDatabase[Any]]) -> None:
    global _served
    with _lock:
        _served = tuple(one for one in _served if one is not known)


def join(request: Request) -> None:
    """*request* is about to open its unit: let it end together with those of other databases that are under way here."""
    if len(_served) < 2 or request.alone:
        return
    for database in filter(None, [known() for known in _served]):
        other = _around(database.current_place.var.get())
        if other is not request and _alike(other, request) and other.unit is not None and other.settled is None:
            other.together = request.together = ends = other.together or Together(other)
            ends.members.append(request)
            return


def _alike(other: Any, request: Request) -> bool:
    """Whether *other* is a request that ends in the same way: in its thread, or awaited."""
    return getattr(other, "awaited", None) is request.awaited and not other.alone


def _around(place: Place) -> Any:
    """The request in which code at *place* runs, also from within a unit of its own."""
    while isinstance(place, Here):
        place = place.around
    return place


class Together:
    """The requests of several databases within one of a client's, in the order in which their units were opened."""

    def __init__(self, first: Request) -> None:
        self.members = [first]
        self._left: list[tuple[Request, BaseException | None, Site | None]] = []

    def settling(self, status: int, error: BaseException | None) -> Generator[Step, Any, None]:
        """The plan of ``settle`` once all of them know what is answered: the last to know is the outermost, so its status counts."""
        if any(one.asked is None and not one.over for one in self.members):
            return
        failed: BaseException | None = None
        for one in self.members:
            own = (one.asked or (status, error))[1]
            token = one.enter()
            try:
                yield from one.settling_alone(status, failed or own or error)
            except BaseException as raised:  # a cancellation too: the others must not stay open
                failed = failed or raised
            finally:
                one.leave(token)
        if failed is not None:
            _tell(failed, self.members)
        try:
            for one, own, site in self._left:
                yield from one.leaving(own, site)
        finally:
            if failed is not None:
                raise failed

    def leaves(self, request: Request, error: BaseException | None, site: Site | None) -> None:
        """*request* was finished before the others know what is answered: it ends when they do."""
        self._left.append((request, error, site))


def _tell(error: BaseException, members: Iterable[Request]) -> None:
    """Let *error* carry what became of each database, as a note and as ``error.tenure_outcomes``."""
    known = [(unit, one.settled.outcome) for one in members if one.settled is not None and (unit := one.unit) is not None]
    names = _names([unit.database.name for unit, _ in known])
    with suppress(Exception):  # an error that refuses to be changed
        error.tenure_outcomes = dict(zip(names, [outcome for _, outcome in known], strict=True))  # type: ignore[attr-defined]
    each = zip(names, known, strict=True)
    said = ", ".join(f"{name!r} ({words(unit.site)}) is {_WORDS[outcome]}" for name, (unit, outcome) in each)
    stored = any(outcome in _STORED for _, outcome in known)
    move = (
        "Undo by hand what is committed, or have a job repeat the rest" if stored else "Nothing was stored, it may be tried again"
    )
    annotate(error, f"tenure: {len(known)} databases are as many transactions: {said}. {move}. [several-databases]")


_STORED = (Outcome.COMMITTED, Outcome.UNKNOWN)
_WORDS = {
    Outcome.COMMITTED: "committed",
    Outcome.ROLLED_BACK: "rolled back",
    Outcome.READ_ONLY: "unchanged",
    Outcome.UNKNOWN: "unknown",
}


def _names(names: list[str]) -> list[str]:
    """*names*; those of several databases with their place in line."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} #{place}" for place, name in enumerate(names, 1)]


def stored_partly(error: BaseException) -> bool:
    """Whether another database may have kept its part of a request that *error* has ended, so that it must not be sent again."""
    outcomes: dict[str, Outcome] = getattr(error, "tenure_outcomes", {})
    return any(outcome in _STORED for outcome in outcomes.values())
