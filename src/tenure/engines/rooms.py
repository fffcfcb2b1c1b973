"""A pool for each event loop: a connection for asyncio belongs to the loop in which it was made.

The first loop has the engine's own pool, one that runs beside it has another of the same kind. At the end of its loop a pool is closed;
whether it comes to that is told by the loop itself, which ends the asynchronous generators that were begun in it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection, QueuePool
from sqlalchemy.util import greenlet_spawn

from tenure.engines.admission import Queue
from tenure.engines.sockets import socket_of

if TYPE_CHECKING:
    from tenure.engines.gate import Gate

_PATIENCE: Final = 2.0  # seconds that the connections of a loop may take to say good-bye


class Room:
    """A pool, and those who wait for its connections. Code that blocks has one for all its threads.

    Attributes:
        pool: The pool.
        connect: What takes a connection from it.
        queue: Who waits for one.
        records: The pool's records of all its connections, out or not.
        loop: Whose it is, if it is one's.
        keeper: Ends it with its loop.

    """

    def __init__(self, pool: Pool, queue: Queue) -> None:
        self.pool = pool
        self.connect: Callable[[], PoolProxiedConnection] = pool.connect
        self.queue = queue
        self.records: weakref.WeakSet[ConnectionPoolEntry] = weakref.WeakSet()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.keeper: AsyncGenerator[None] | None = None


class Rooms:
    """The rooms of the loops that use one gate. Its ``home`` is the one of the engine's own pool."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._rooms: dict[asyncio.AbstractEventLoop, Room] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Room]:
        """The rooms that there are, the home too."""
        return [self._gate.home, *(one for one in list(self._rooms.values()) if one is not self._gate.home)]

    def known(self) -> Room:
        """The room of the running loop, else the home."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop runs in this thread
            return self._gate.home
        return self._rooms.get(loop, self._gate.home)

    def here(self) -> Room:
        """The room of the running loop, which gets one if it has none."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # the driver says so, in its own words
            return self._gate.home
        return self._rooms.get(loop) or self._make(loop)

    def _make(self, loop: asyncio.AbstractEventLoop) -> Room:
        with self._lock:
            self._leave_closed()
            home = self._gate.home
            if home.loop is None:
                room = home
            else:
                pool = home.pool.recreate()
                room = Room(pool, Queue(home.queue.capacity, home.queue.admission))
            room.loop = loop
            self._rooms[loop] = room
        room.keeper = self._keep(room)
        with suppress(StopIteration):  # its first step, at which the loop takes note of it
            room.keeper.__anext__().send(None)
        return room

    async def _keep(self, room: Room) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._end(room)

    async def _end(self, room: Room) -> None:
        """Close what rests in *room*, in its loop, which is about to end."""
        if not self._forget(room):
            return
        try:
            await asyncio.wait_for(greenlet_spawn(self._clear, room), _PATIENCE)
        except Exception:  # the server does not answer; each driver says that in its own way
            self._cut(room)

    def _forget(self, room: Room) -> bool:
        with self._lock:
            return room.loop is not None and self._rooms.pop(room.loop, None) is room

    def _leave_closed(self) -> None:
        """Drop the rooms of loops that were closed without their end: nothing can be said on their connections any more."""
        for loop, room in list(self._rooms.items()):
            if loop.is_closed():
                del self._rooms[loop]
                if self._gate.engine.dialect.name == "sqlite":
                    self._clear(room)  # a thread serves it, for whichever loop
                else:
                    self._cut(room)

    def _cut(self, room: Room) -> None:
        """As ``_clear``, where nothing can be said any more on the connections of *room*."""
        for record in list(room.records):
            with suppress(Exception):  # each driver has its own error for a connection that it has closed itself
                descriptor = socket_of(self._gate.engine)(record.driver_connection)
                if descriptor is not None and descriptor >= 0:
                    with socket.socket(fileno=os.dup(descriptor)) as link:
                        link.shutdown(socket.SHUT_RDWR)  # the server takes that for the end
        self._forget_leases(room)
        if room is self._gate.home:
            room.queue.take_spare()
            self._gate.engine.dispose(close=False)
            room.loop = None

    def _clear(self, room: Room) -> None:
        """Close what rests in *room*."""
        for lease in room.queue.take_spare():
            self._gate.discharge(lease)
        if room is self._gate.home:
            self._gate.engine.dispose()
            room.loop = None
        else:
            room.pool.dispose()
            self._forget_leases(room)

    def _forget_leases(self, room: Room) -> None:
        ledger = self._gate.ledger
        for lease in ledger.leases():
            if lease.queue is room.queue:
                ledger.leave(lease)

    async def end(self, *, home: bool) -> None:
        """End the rooms of all loops; the engine's own pool only if *home*."""
        for room in self.all():
            loop, keeper = room.loop, room.keeper
            if loop is None or keeper is None or (room is self._gate.home and not home):
                continue
            if loop is asyncio.get_running_loop():
                await keeper.aclose()
            elif not (loop.is_running() and await _in_its_loop(loop, keeper)):
                self._forget(room)
                self._cut(room)

    def renew(self, queue: Queue) -> None:
        """Have the connections of the room of *queue* replaced when they are taken next; SQLAlchemy sees to those of the engine's own pool."""
        for room in self.all():
            if room.queue is queue and room is not self._gate.home:
                for record in list(room.records):
                    record.invalidate(soft=True)

    def start_anew(self) -> None:
        """As ``Heir``: the loops have stayed in the parent."""
        self._rooms, self._lock = {}, threading.Lock()


async def _in_its_loop(loop: asyncio.AbstractEventLoop, keeper: AsyncGenerator[None]) -> bool:
    """End a room from another loop; whether that has worked."""

    async def close() -> None:
        await keeper.aclose()

    closing = close()
    try:
        done = asyncio.run_coroutine_threadsafe(closing, loop)
        await asyncio.wait_for(asyncio.wrap_future(done), _PATIENCE)
    except (RuntimeError, TimeoutError):  # it was closed in between, or is busy with something that blocks
        closing.close()
        return False
    return True


def out_of(room: Room) -> int:
    """How many connections are out of *room*, but for those that are only kept and may be taken."""
    pool, queue = room.pool, room.queue
    return (pool.checkedout() if isinstance(pool, QueuePool) else queue.used) - queue.spare


def idle_in(room: Room) -> int:
    """How many rest in *room*, or are only kept."""
    return (room.pool.checkedin() if isinstance(room.pool, QueuePool) else 0) + room.queue.spare


def capacity_of(pool: Pool) -> int | None:
    """How many connections *pool* hands out at most, or None where it has no bound."""
    if not isinstance(pool, QueuePool):
        return None
    # Private: no public name tells the bound of an engine made elsewhere. tests/engines/test_supply.py fails when it changes.
    overflow: int = pool._max_overflow  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return None if overflow < 0 or pool.size() == 0 else pool.size() + overflow
