"""What owners that are gone have left behind in the ledger of a gate, given back before anyone waits for it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tenure.engines.ledger import Lease, Stranger

if TYPE_CHECKING:
    from tenure.engines.gate import Gate

_COLLECT_EVERY: Final = 10.0  # seconds: a full collection of a large program takes a tenth of one


class Sweep:
    """Called, it gives back what dead threads, finished tasks and dropped units hold; one at a time, for each is given back once."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._collected = 0.0
        self.lock = threading.Lock()

    def start_anew(self) -> None:
        """As ``Heir``: who swept is in the parent."""
        self.lock = threading.Lock()

    def __call__(self, which: Callable[[Lease], bool] | None = None) -> None:
        """Look at each lease; only at those for which *which* holds, if it is given."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            self._look_at_each(which)
        finally:
            self.lock.release()

    def look(self) -> None:
        """Somebody has waited for a second."""
        self()
        if (now := time.monotonic()) - self._collected > _COLLECT_EVERY:
            self._collected = now
            gc.collect()  # a dropped unit in a reference cycle still holds its connection
            self()

    def _look_at_each(self, which: Callable[[Lease], bool] | None) -> None:
        gate = self._gate
        mine = gate.queue
        for lease in gate.ledger.leases():
            if lease.queue is not mine or (which is not None and not which(lease)):
                continue  # that of another loop can only be given back there
            holder = lease.holder()
            if holder is None:
                gate.counts.leaked += 1
                with suppress(Exception):  # the connection is broken and discarded; whoever waits has no part in it
                    self._recover(lease)
            elif holder.owner_is_gone():
                gate.counts.leaked += not isinstance(holder, Stranger)
                holder.reclaim()

    def _recover(self, lease: Lease) -> None:
        """Give back the connection of a holder that no longer exists."""
        if not hasattr(lease, "connection") or lease.connection.closed:  # an interruption has kept it here
            self._gate.ledger.leave(lease)
            return
        try:
            lease.connection.rollback()
        except BaseException:  # its transaction may still be open
            lease.connection.invalidate()
            raise
        finally:
            self._gate.give_back(lease)
