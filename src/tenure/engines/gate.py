"""The gate in front of an engine's pool: whoever takes a connection passes admission and is in the ledger, tenure's units and
those who call ``engine.connect()`` alike.

``Pool.connect`` is where every connection is taken; the gate stands there as an attribute of the pool, also of one that
``dispose()`` has put in its place. What a connection's lease is rests in the ``record_info`` of its pool record, and so is found
however the connection comes back: returned, invalidated, detached, or dropped and found by the garbage collector.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, TypeAlias

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection, QueuePool

from tenure.engines import fork, waiting
from tenure.engines.admission import Admission, Queue, State
from tenure.engines.counts import Counts
from tenure.engines.dialects import before, listen_in_passing
from tenure.engines.ledger import Holder, Lease, Ledger, Stranger
from tenure.engines.profile import say
from tenure.engines.rooms import Room, Rooms, capacity_of, out_of
from tenure.engines.sockets import socket_of
from tenure.engines.sweep import Sweep
from tenure.exceptions import BadOption

_LEASE: Final = "tenure.lease"  # in the record_info of a connection that is out
_making = threading.Lock()
# What code of this context has taken around tenure and not given back.
_TAKEN: Final[ContextVar[tuple[Stranger, ...]]] = ContextVar("tenure.taken", default=())
# Who holds connections in this context, as units that are open around the code that asks.
Around: TypeAlias = Callable[[], Iterable[Holder]]


class Gate:
    """The gate of one engine; several ``Database`` objects on one engine share it.

    Args:
        engine: Whose pool.
        name: The database's name, as errors show it.
        admission: How to wait.

    """

    def __init__(self, engine: Engine, name: str, admission: Admission) -> None:
        self.engine = engine
        self.name = name
        self.ledger = Ledger()
        self.counts = Counts()
        self.home = Room(engine.pool, Queue(capacity_of(engine.pool), admission))
        self.rooms = Rooms(self) if engine.dialect.is_async and isinstance(engine.pool, QueuePool) else None
        self.around: list[Around] = []
        self._asking = threading.local()
        self.sweep = Sweep(self)
        self._users = 0
        self._wait: waiting.Wait = waiting.in_loop if engine.dialect.is_async else waiting.in_thread
        self._stand_before(engine.pool)
        listen_in_passing(engine, "engine_disposed", self._renewed)
        event.listen(engine, "connect", self._made)
        before(engine.dialect, "do_commit", _commit_is_sent)
        for name_of_event, listener in (("checkin", _came_back), ("detach", _detached), ("invalidate", _discarded)):
            if not event.contains(engine, name_of_event, listener):  # left there when the gate goes, for leases that outlive it
                event.listen(engine, name_of_event, listener)
        fork.register(self)

    @property
    def queue(self) -> Queue:
        """Who waits for a connection, here."""
        return self.home.queue if self.rooms is None else self.rooms.known().queue

    def all_rooms(self) -> list[Room]:
        """The pools that there are, with those who wait for their connections; one, but for asyncio with several loops."""
        return [self.home] if self.rooms is None else self.rooms.all()

    # -- taking --------------------------------------------------------------------------------------------

    def take(self, holder: Holder) -> Lease:
        """A lease for *holder*.

        Raises:
            Overloaded: Too many wait already.
            PoolExhausted: None came free in time.
            SecondConnection: The holder has one already, and all others are held by those who wait as well.
            BlockedLoop: The wait would stop an event loop.

        """
        lease = Lease(holder)
        self._asking.lease = lease  # the call below is the next to reach the pool: nothing can come in between
        try:
            connection = self.engine.connect()
        finally:
            self._asking.lease = None
        if not hasattr(lease, "gate"):  # dispose() has just put a pool there before which nobody stood yet
            lease.gate, lease.queue = self, self.queue
            connection.connection.record_info[_LEASE] = lease  # type: ignore[index]
            self.ledger.enter(lease)
        self.ledger.connected(lease, connection)
        return lease

    def _pass(self) -> PoolProxiedConnection:
        """In place of ``Pool.connect``."""
        lease: Lease | None = getattr(self._asking, "lease", None)
        strange = lease is None
        if lease is None:
            lease = Stranger().lease
        else:
            self._asking.lease = None
        room = self.home if self.rooms is None else self.rooms.here()
        lease.gate, lease.queue = self, room.queue
        try:
            if not room.queue.enter(lease):
                self._stand_in_line(lease)
            fairy = room.connect()
            fairy.record_info[_LEASE] = lease  # type: ignore[index]
        except BaseException:  # refused, cancelled or interrupted: the place goes to the next
            lease.queue.leave(lease)
            raise
        lease.since = time.monotonic()
        self.counts.acquired += 1
        self.ledger.enter(lease)
        if strange:
            _TAKEN.set((*(one for one in _TAKEN.get() if one.lease.place), lease.holder()))  # type: ignore[arg-type]
        return fairy

    def _stand_in_line(self, lease: Lease) -> None:
        """Wait for a place."""
        from tenure.engines import verdict  # with the words of its errors, which a program may never need

        self.sweep()
        if self.queue.enter(lease):
            return
        if not self.queue.spare:
            self.refuse_if_full()
        holder = lease.holder()
        lease.behind = self.behind()
        if holder is not None:
            verdict.refuse_deadlock(self, lease, holder)
            if self._wait is waiting.in_thread:
                verdict.refuse_blocked_loop(self, holder)
        limit, began = self.limit(holder), time.monotonic()
        try:
            got = self._wait(lease.queue, lease, limit, self.sweep.look)
        except BaseException:  # counted and passed on: a wait raises only when it is cancelled or interrupted
            self.counts.cancelled += 1
            self.counts.wait(time.monotonic() - began)
            raise
        if isinstance(got, Lease):
            self.discharge(got)
            return
        self.counts.wait(time.monotonic() - began)
        if got.state is State.SHED:
            self.counts.refused += 1
            raise verdict.overloaded(self, "target")
        if got.state is State.DISMISSED:
            raise verdict.dismissed(self, holder)
        if got.state is not State.SERVED:
            self.sweep()
            if not self.queue.enter(lease):
                self.counts.timed_out += 1
                raise verdict.exhausted(self, lease, limit)

    def refuse_if_full(self) -> None:
        """Raise Overloaded if one more would be too many in line."""
        limit = self.queue.admission.max_waiting
        if limit is not None and self.queue.waiting >= limit:
            from tenure.engines import verdict

            self.counts.refused += 1
            raise verdict.overloaded(self, "max_waiting")

    def behind(self) -> tuple[Holder, ...]:
        """Who has connections, or may have, around the code that asks, and cannot go on before it does."""
        return (*(one for one in _TAKEN.get() if one.lease.place), *(one for find in self.around for one in find()))

    def limit(self, holder: Holder | None) -> float:
        """How long *holder* may wait, in seconds."""
        pool = self.engine.pool
        limit = self.queue.admission.max_wait
        if limit is None:
            limit = float(pool.timeout()) if isinstance(pool, QueuePool) else 30.0
        own = None if holder is None else holder.patience()
        return limit if own is None else min(own, limit)

    # -- giving back ----------------------------------------------------------------------------------------

    def give_back(self, lease: Lease) -> None:
        """End a lease. The connection is returned, or discarded if it can no longer be used."""
        connection = lease.connection
        try:
            if lease.undo is not None and not connection.closed and not connection.invalidated:
                if connection.in_transaction():
                    connection.rollback()
                say(connection, lease.undo)
        except BaseException:  # an interruption, too
            connection.invalidate()  # what was set could not be unset: nobody else may get it
            raise
        finally:
            try:
                if lease.queue.is_past(lease) and not connection.closed:
                    connection.invalidate()  # the old pool would not close it
                connection.close()
            finally:
                # Else an interruption has cut it off, and a sweep is to find it. Without a place the pool has it back, whatever
                # the connection says: that of SQLAlchemy 2.0 stays open when its close() is cancelled.
                if connection.closed or lease.place is None:
                    self.ledger.leave(lease)

    def park(self, lease: Lease) -> bool:
        """Keep an idle lease for its unit's next read until somebody else needs it; False when it must be given back now."""
        return lease.keepable and not lease.connection.invalidated and lease.queue.park(lease)

    def unpark(self, lease: Lease) -> bool:
        """Have a parked lease back; False when it was taken."""
        return lease.queue.unpark(lease)

    def empty(self) -> None:
        """Give back all that is parked."""
        for lease in self.queue.take_spare():
            self.discharge(lease)

    def dismiss(self, holder: Holder) -> None:
        """Send *holder* away, if it waits for a connection"""
        for room in self.all_rooms():
            room.queue.dismiss(holder)

    def discharge(self, spare: Lease) -> None:
        """Give a lease back on which nothing is open."""
        self.ledger.leave(spare)
        with suppress(Exception):  # SQLAlchemy has logged it and discarded the connection; nothing was open on it
            spare.connection.close()

    # -- the pool -------------------------------------------------------------------------------------------

    def out(self) -> int:
        """How many connections are out of the pool now, whoever took them, but for those that are only kept and may be taken."""
        return sum(out_of(room) for room in self.all_rooms())

    def _stand_before(self, pool: Pool) -> None:
        self.home.pool, self.home.connect = pool, pool.connect
        pool.connect = self._pass  # type: ignore[method-assign]

    def _renewed(self, engine: Engine) -> None:
        """``dispose()`` has put a new pool in the place of the old; connections of that which are out go their own way."""
        self._stand_before(engine.pool)
        spare = self.home.queue.renew(capacity_of(engine.pool))
        for lease in spare:
            lease.connection.invalidate()  # the old pool would not close it
            self.discharge(lease)

    async def leave_loops(self, *, home: bool) -> None:
        """The last ``Database`` for asyncio is about to leave: end the pools of its loops, the engine's own only if *home*."""
        if self.rooms is not None and self._users == 1:
            await self.rooms.end(home=home)

    def join(self, admission: Admission | None) -> Gate:
        """One ``Database`` more has this gate."""
        if admission is not None and admission != self.home.queue.admission:
            raise BadOption(
                f"{admission!r}: another Database has this engine, with {self.home.queue.admission!r}. One pool has one queue:"
                " give both the same."
            )
        self._users += 1
        return self

    def abandon(self) -> None:
        """One less; the last one leaves the engine as it was found."""
        self.empty()
        self._users -= 1
        if not self._users:
            if self.rooms is not None:
                self.rooms.start_anew()
            self.engine.pool.__dict__.pop("connect", None)
            event.remove(self.engine, "engine_disposed", self._renewed)
            event.remove(self.engine, "connect", self._made)
            fork.forget(self)

    def _made(self, _connection: Any, record: ConnectionPoolEntry) -> None:
        """Pool event ``connect``."""
        room = self.home if self.rooms is None else self.rooms.known()
        room.records.add(record)

    def start_anew(self) -> None:
        """As ``Heir``: what is pooled, out or parked is the parent's."""
        rooms = self.all_rooms()
        fork.keep(self.engine.pool, *rooms, *self.ledger.leases())
        for room in rooms:
            for record in list(room.records):
                fork.sever(record, socket_of(self.engine))
        self.ledger.clear()
        self.home.queue.start_anew()
        self.home = Room(self.engine.pool, self.home.queue)
        if self.rooms is not None:
            self.rooms.start_anew()
        self.counts = Counts()
        self._asking = threading.local()
        self.sweep.start_anew()
        _TAKEN.set(())
        self.engine.dispose(close=False)


def gate_of(engine: Engine, name: str, admission: Admission | None) -> Gate:
    """The gate of *engine*, built if it has none.

    Raises:
        BadOption: It has one already, with another *admission*.

    """
    with _making:
        there: Any = getattr(engine.pool.connect, "__self__", None)
        gate = there if isinstance(there, Gate) else Gate(engine, name, admission or Admission())
        return gate.join(admission)


def _start_anew() -> None:
    global _making
    _making = threading.Lock()
    waiting.BESIDE.set(None)


fork.in_child(_start_anew)


def _commit_is_sent(connection: PoolProxiedConnection) -> None:
    info = connection.info if connection.record_info is None else connection.record_info  # a detached one has no record
    lease: Lease | None = info.get(_LEASE)
    if lease is not None:
        lease.commit_sent = True


def _came_back(_connection: Any, record: Any) -> None:
    lease: Lease | None = record.record_info.pop(_LEASE, None)
    if lease is not None:
        if isinstance(lease.holder(), Stranger):
            lease.gate.ledger.leave(lease)
        lease.queue.leave(lease)


def _detached(connection: Any, record: Any) -> None:
    lease: Lease | None = record.record_info.get(_LEASE)
    _came_back(connection, record)
    if lease is not None and hasattr(lease, "connection"):
        lease.connection.connection.info[_LEASE] = lease  # which is the connection's own from now on


def _discarded(_connection: Any, record: Any, _error: Any) -> None:
    lease: Lease | None = record.record_info.get(_LEASE)
    if lease is not None:
        lease.gate.counts.discarded += 1
