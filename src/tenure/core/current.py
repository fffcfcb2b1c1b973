"""Which unit is current here: a context variable for each database, and the line of units above it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from tenure.engines import fork

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit

Place: TypeAlias = "Callable[[], BaseUnit[Any] | None]"


class Slot(Protocol):
    """A place at which a unit opens when it is first asked for, as a web request is."""

    def __call__(self) -> BaseUnit[Any] | None:
        """The unit, if it was opened."""

    def open(self) -> BaseUnit[Any] | None:
        """The unit, opened now if it was not; None when its time is over."""


def nobody() -> None:
    """The place where no unit is."""
    return


def afterwards() -> None:
    """The place where the hooks of a unit run: no unit is current, but the work of one is not over."""
    return


class Here(weakref.ref["BaseUnit[Any]"]):
    """The place of one unit. When that is gone, a task or thread which was begun in it is where the unit was opened."""

    __slots__ = ("around",)
    around: Place


class Apart:
    """The place of a job that is run in the midst of somebody's unit, which is none of its own and goes on when it is done."""

    __slots__ = ("around",)

    def __init__(self, around: Place) -> None:
        self.around = around

    def __call__(self) -> None:
        """No unit is here."""

    def open(self) -> None:
        """None opens here by itself."""


def found_at(place: Place) -> tuple[BaseUnit[Any] | None, Place]:
    """The unit at *place*, or the nearest around it that is not gone, and where that is."""
    while (unit := place()) is None and isinstance(place, Here):
        place = place.around
    return unit, place


class Current:
    """Where the current unit of one database is kept.

    The variable holds a unit weakly: what a thread's context still knows must not keep alive a unit that was dropped.
    """

    __slots__ = ("__weakref__", "var")

    def __init__(self, name: str) -> None:
        self.var: ContextVar[Place] = ContextVar(f"tenure.{name}", default=nobody)
        fork.register(self)
        _EVERY.add(self)

    def start_anew(self) -> None:
        """As ``Heir``: the child has no part in what its parent does here."""
        self.var.set(nobody)

    def here(self) -> BaseUnit[Any] | None:
        """The innermost unit of this context, open or ended; never opens one."""
        place = self.var.get()
        return None if place is nobody else found_at(place)[0]

    def open(self) -> BaseUnit[Any] | None:
        """The innermost open unit of this context; opens the one that a host has prepared."""
        place = self.var.get()
        if place is nobody:
            return None
        unit, place = found_at(place)
        if unit is None:
            return None if place is nobody or place is afterwards else cast("Slot", place).open()
        return innermost_open(unit)

    def enter(self, unit: BaseUnit[Any]) -> Token[Place]:
        """Make *unit* current until ``reset`` is called with the token."""
        around = self.var.get()
        place = Here(unit)
        # Not one that is gone, or dropped units would form an endless chain.
        place.around = around if around is nobody else found_at(around)[1]
        return self.var.set(place)

    def set(self, place: Place) -> Token[Place]:
        """Make *place* current until ``reset`` is called with the token."""
        return self.var.set(place)

    @contextmanager
    def afterwards(self) -> Generator[None]:
        """Have no unit current in the block, which is part of one all the same: a hook, or a message that is sent."""
        token = self.var.set(afterwards)
        try:
            yield
        finally:
            self.reset(token)

    @contextmanager
    def apart(self) -> Generator[None]:
        """Have no unit current in the block, whatever is around it; for jobs that their caller's own thread or task runs."""
        token = self.var.set(Apart(self.var.get()))
        try:
            yield
        finally:
            self.reset(token)

    def around(self) -> Iterator[BaseUnit[Any]]:
        """The units in whose midst the calling code is, the innermost first: what holds a connection there cannot go on before it."""
        place: Place | None = self.var.get()
        while place is not None:
            unit, place = found_at(place)
            while unit is not None:
                yield unit
                unit = unit.parent
            while isinstance(place, Here):
                place = place.around
            place = place.around if isinstance(place, Apart) else None

    def reset(self, token: Token[Place]) -> None:
        """Undo a ``set``. In another context than that of the ``set`` nothing is current afterwards."""
        try:
            self.var.reset(token)
        except ValueError:  # entered in one context and left in another, as a generator fixture may be
            self.var.set(nobody)


_EVERY: weakref.WeakSet[Current] = weakref.WeakSet()


def every() -> list[Current]:
    """That of each database of this process."""
    return list(_EVERY)


def innermost_open(unit: BaseUnit[Any] | None) -> BaseUnit[Any] | None:
    """*unit*, or the first further out that has not ended: a task may outlive the part of a unit in which it was begun.

    One that was dropped, and under asyncio waits for its loop to roll it back, counts as ended: what joined it would be lost.
    """
    while unit is not None and (unit.ended or unit.root.ended or unit.root.dropped):
        unit = unit.parent
    return unit
