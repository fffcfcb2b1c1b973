"""What a database with replicas knows of its clients: what each has written, and so must be able to read."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tenure.core import events
from tenure.core.plan import Outcome
from tenure.exceptions import BadOption

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit
    from tenure.engines.replicas import Replicas, ReplicaStatus
    from tenure.engines.routing import Routing
    from tenure.engines.supply import Supply


class Replicated:
    """The part of a database that has to do with its replicas; without any it does nothing."""

    name: str
    supply: Supply
    routing: Routing | None

    def route(self, settings: Replicas, supplies: Sequence[Supply]) -> Routing | None:
        """The choice among *supplies*, None where there are none."""
        if not supplies:
            return None
        from tenure.engines.routing import Routing

        return Routing(self.supply, supplies, settings, self._tell)

    def replica_numbers(self) -> tuple[ReplicaStatus, ...]:
        """The numbers of each replica."""
        return () if self.routing is None else self.routing.numbers()

    @property
    def supplies(self) -> list[Supply]:
        """Where connections come from: the primary's, then those of the replicas."""
        return [self.supply, *([] if self.routing is None else (one.supply for one in self.routing.replicas))]

    def position(self) -> str:
        """What was written here, as a token for ``after()``: by this request, or else this thread or task. Empty if nothing was, or
        without replicas.
        """
        return "" if self.routing is None else self.routing.token()

    @contextmanager
    def after(self, token: str | None) -> Generator[None]:
        """Within the block read-only units see what was written when ``position()`` gave *token*.

        Args:
            token: Text from anywhere, a client's request included: what is not a token counts as none.

        Raises:
            BadOption: *token* is neither text nor None.

        """
        if token is not None and type(token) is not str:
            raise BadOption(f"after({type(token).__name__}): give what position() gave, or None.")
        if self.routing is None:
            yield
            return
        before = self.routing.after(token)
        try:
            yield
        finally:
            self.routing.clients.var.reset(before)

    def _tell(self, replica: str, why: str | None) -> None:
        events.tell(events.ReplicaBack(self.name, replica) if why is None else events.ReplicaOut(self.name, replica, why))

    def remember(self, unit: BaseUnit[Any], outcome: Outcome) -> None:
        """What *unit* has stored, or may have, is to be seen by what its client reads next. Called in the unit's own context."""
        if self.routing is None or not unit.owns:
            return
        if unit.mark is None and (outcome in (Outcome.COMMITTED, Outcome.UNKNOWN) or unit.partly_stored):
            unit.mark = self.routing.written(None)
        if unit.mark is not None:
            self.routing.clients.wrote(unit.mark)
