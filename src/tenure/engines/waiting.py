"""Waiting for a turn: in a thread, and on an event loop, which goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeAlias

from sqlalchemy.util import await_only, greenlet_spawn

from tenure.engines.admission import Queue, Turn
from tenure.engines.ledger import Lease

# Seconds between two looks for holders that have died meanwhile.
_LOOK_EVERY: Final = 1.0
# Called with 1 when a thread of this context begins to wait, and with -1 when it goes on: a host that has a limit on its threads
# does not count the one that waits, or those who hold the connections might find no thread to finish in.
BESIDE: Final[ContextVar[Callable[[int], None] | None]] = ContextVar("tenure.beside", default=None)
Wait: TypeAlias = Callable[[Queue, Lease, float, Callable[[], None]], "Turn | Lease"]


def in_thread(queue: Queue, lease: Lease, limit: float, look: Callable[[], None]) -> Turn | Lease:
    """Wait in this thread for at most *limit* seconds.

    Args:
        queue: Where to stand in line.
        lease: For what.
        limit: The longest wait, in seconds.
        look: Gives back what dead owners hold; called every second.

    Returns:
        The turn, whose state says what became of it; or a spare lease to be given back, in whose place the caller is.

    """
    woken = threading.Lock()
    woken.acquire()

    def wake() -> bool:
        woken.release()
        return True

    turn = Turn(lease, wake)
    spare = queue.join(turn)
    if spare is not None:
        return spare
    ends = turn.since + limit
    beside = BESIDE.get()
    try:
        if beside is not None:
            beside(1)
        while (left := ends - time.monotonic()) > 0:
            if woken.acquire(timeout=min(left, _LOOK_EVERY)):
                return turn
            look()
        queue.abandon(turn)
    except BaseException:
        _give_up(queue, turn)
        raise
    finally:
        if beside is not None:
            beside(-1)
    return turn


def in_loop(queue: Queue, lease: Lease, limit: float, look: Callable[[], None]) -> Turn | Lease:
    """The same on the running event loop, from within SQLAlchemy's greenlet."""
    return await_only(_in_loop(queue, lease, limit, look))


async def _in_loop(queue: Queue, lease: Lease, limit: float, look: Callable[[], None]) -> Turn | Lease:
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not woken.done():
            woken.set_result(None)

    def wake() -> bool:
        try:
            if asyncio.get_running_loop() is loop:
                settle()
                return True
        except RuntimeError:  # another thread gives the connection back
            pass
        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop was closed, and with it whoever waited there
            return False
        return True

    turn = Turn(lease, wake)
    spare = queue.join(turn)
    if spare is not None:
        return spare
    _keep_looking(loop, queue, look)
    timer = loop.call_later(limit, settle)
    try:
        await woken
        queue.abandon(turn)
    except BaseException:
        _give_up(queue, turn)
        raise
    finally:
        timer.cancel()
    return turn


def _give_up(queue: Queue, turn: Turn) -> None:
    """Whoever waits was interrupted; a turn that came at that moment goes on to the next."""
    queue.abandon(turn)
    queue.leave(turn.lease)


def _keep_looking(loop: asyncio.AbstractEventLoop, queue: Queue, look: Callable[[], None]) -> None:
    """Look for dead owners every second, for all who wait on *loop* together, as long as somebody does."""
    if queue.watched_by is loop:
        return
    queue.watched_by = loop

    def tick() -> None:
        if not queue.waiting:
            queue.watched_by = None
            return
        task = loop.create_task(greenlet_spawn(look))
        task.add_done_callback(lambda _: loop.call_later(_LOOK_EVERY, tick))

    loop.call_later(_LOOK_EVERY, tick)
