"""Primary and replicas: which server a read-only unit reads from.

A replica that cannot be reached is left out for a time that grows with each failure, then one unit tries it again. A client that
has written reads from a replica that has its write, or from the primary.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from contextvars import Token
from typing import Any, Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from tenure.engines import position
from tenure.engines.ledger import Holder
from tenure.engines.masked import shown
from tenure.engines.position import Client, Clients, Mark, later
from tenure.engines.replicas import Replicas, ReplicaStatus
from tenure.engines.supply import Supply
from tenure.exceptions import brief

_LONGEST: Final = 30.0  # seconds that a replica is left out at most before it is tried again
_LOOK: Final = 1.0  # seconds for which a replica's lag is taken to be what it was
_POLL: Final = 0.005  # seconds between two looks at a replica that is waited for


class Replica:
    """What is known of one replica.

    Attributes:
        supply: Its connections.
        replayed: A position of the log that it is known to have.
        failures: How often in turn it could not be reached.
        until: When it is tried again, by the routing's clock.
        look_at: When its lag is measured again.
        behind: Its lag in seconds when that was measured last.

    """

    __slots__ = ("behind", "failures", "look_at", "replayed", "supply", "until")

    def __init__(self, supply: Supply) -> None:
        self.supply = supply
        self.replayed = 0
        self.failures = 0
        self.until = 0.0
        self.look_at = 0.0
        self.behind = 0.0

    @property
    def name(self) -> str:
        """Its URL, without the password."""
        return shown(self.supply.engine.url)


class Routing:
    """Chooses the server of each read-only unit.

    Args:
        primary: Serves all that writes, and whatever no replica can.
        supplies: Those of the replicas.
        settings: How far behind a replica may be.
        tell: Called with a replica's name and why it is left out, or None when it is back.

    """

    clock: Callable[[], float] = staticmethod(time.monotonic)
    wall: Callable[[], float] = staticmethod(time.time)

    def __init__(
        self, primary: Supply, supplies: Sequence[Supply], settings: Replicas, tell: Callable[[str, str | None], None]
    ) -> None:
        self.primary = primary
        self.replicas = [Replica(supply) for supply in supplies]
        self.settings = settings
        self.clients = Clients(primary.name)
        self._tell = tell
        self._turns = itertools.count()

    # -- which server ---------------------------------------------------------------------------------

    def choose(self, holder: Holder) -> Supply:
        """The supply for a read-only unit that is about to read for the first time."""
        mark = self.clients.mark()
        if mark.until > self.wall():
            return self.primary
        deadline: float | None = None
        while candidates := self._candidates():
            for replica in candidates:
                if self._fits(replica, mark, holder):
                    return replica.supply
            now = time.monotonic()
            deadline = now + self.settings.wait if deadline is None else deadline
            if not mark.position or now >= deadline:
                break
            self._pause(min(_POLL, deadline - now))
        return self.primary

    def _candidates(self) -> list[Replica]:
        """The replicas to try: that with the fewest connections in use first, so that a slow one gets less; in turn among equals."""
        now = self.clock()
        found: list[Replica] = []
        for replica in self.replicas:
            if replica.until <= now:
                found.append(replica)
                if replica.failures:  # this unit tries it; the others go on without
                    replica.until = now + self._left_out_for(replica)
        turn = next(self._turns) % len(found) if found else 0
        return sorted(found[turn:] + found[:turn], key=lambda one: one.supply.gate.out())

    def _fits(self, replica: Replica, mark: Mark, holder: Holder) -> bool:
        limit = self.settings.max_lag
        due = limit is not None and self.clock() >= replica.look_at
        if due or mark.position > replica.replayed:
            replica.look_at = self.clock() + _LOOK
            if not self._look(replica, holder):
                return False
        return mark.position <= replica.replayed and (limit is None or replica.behind <= limit)

    def _look(self, replica: Replica, holder: Holder) -> bool:
        """Ask *replica* how far it is; False if it cannot be asked."""
        try:
            lease = replica.supply.read(holder)
            try:
                replica.replayed, behind = position.replayed(lease.connection)
            finally:
                replica.supply.give_back(lease)
        except Exception as error:
            if not isinstance(error, DBAPIError) and not self.is_unreachable(error):
                raise
            self.left_out(replica.supply, error)
            return False
        self.answered(replica.supply)
        self._note_lag(replica, behind)
        return True

    def _note_lag(self, replica: Replica, behind: float) -> None:
        limit, before, replica.behind = self.settings.max_lag, replica.behind, behind
        if limit is not None and (before > limit) != (behind > limit):
            self._tell(replica.name, f"it is {behind:.1f} s behind, and max_lag is {limit:g} s" if behind > limit else None)

    def _pause(self, seconds: float) -> None:
        if self.primary.engine.dialect.is_async:
            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)

    # -- who answers ------------------------------------------------------------------------------------

    @staticmethod
    def is_unreachable(error: BaseException) -> bool:
        """Whether *error* says that a server could not be reached, or was lost, before it answered."""
        if isinstance(error, DBAPIError):
            return error.connection_invalidated or error.statement is None  # without a statement: on connecting
        # asyncpg's own errors on connecting come as they are
        return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "asyncpg"

    def left_out(self, supply: Supply, error: BaseException) -> None:
        """The replica behind *supply* was not reached: the next units do without it."""
        replica = self._of(supply)
        replica.failures += 1
        replica.replayed = 0  # it may come back as another
        seconds = self._left_out_for(replica)
        replica.until = self.clock() + seconds
        self._tell(replica.name, f"{brief(error)}. It is tried again in {seconds:g} s")

    def answered(self, supply: Supply) -> None:
        """The replica behind *supply* has answered."""
        replica = self._of(supply)
        if replica.failures:
            replica.failures, replica.until = 0, 0.0
            self._tell(replica.name, None)

    def is_left_out(self, replica: Replica) -> bool:
        """Whether units do without *replica* now."""
        limit = self.settings.max_lag
        return bool(replica.failures) or (limit is not None and replica.behind > limit)

    def numbers(self) -> tuple[ReplicaStatus, ...]:
        """The numbers of each replica."""
        return tuple(
            ReplicaStatus(one.name, one.supply.gate.queue.capacity, one.supply.gate.out(), self.is_left_out(one))
            for one in self.replicas
        )

    def _of(self, supply: Supply) -> Replica:
        return next(one for one in self.replicas if one.supply is supply)

    def _left_out_for(self, replica: Replica) -> float:
        return float(min(_LONGEST, 2 ** min(replica.failures - 1, 10)))

    # -- what was written ---------------------------------------------------------------------------------

    def written(self, connection: Any) -> Mark:
        """The mark of a COMMIT that was just done on *connection* of the primary; without one, of a COMMIT of late."""
        found = 0 if connection is None else position.written(self.primary, connection)
        return Mark(found) if found else Mark(until=self.wall() + self.settings.sticky)

    def token(self) -> str:
        """What the client of this context has written, as text."""
        return self.clients.mark().token(self.wall())

    def client(self, token: str | None) -> Client:
        """A client that has written what *token* says."""
        return Client(position.read(token or "", self.wall(), self.settings.sticky), shared=True)

    def after(self, token: str | None) -> Token[Client | None]:
        """One client from here on, which has written what *token* says, and what was written here before."""
        client = self.client(token)
        client.mark = later(client.mark, self.clients.mark())
        return self.clients.var.set(client)
