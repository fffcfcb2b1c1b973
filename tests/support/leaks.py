"""What a test may not leave behind: open units, connections, tasks and threads."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from support.face import Face

JOIN = 2.0
"""Seconds that threads which are just ending get, all together."""


def units_left(faces: Iterable[Face]) -> list[str]:
    """The units that are still current here, and those that the database counts as open anywhere."""
    found = []
    for face in faces:
        unit = _current(face)
        if unit is not None:
            found.append(f"{face}: the unit {unit!r} is still open")
    return found


def connections_left(faces: Iterable[Face]) -> list[str]:
    """The connections that are out of their pools. Garbage is collected only when there are any."""
    pools = [(face, supply.engine.pool) for face in faces for supply in face.db.supplies]
    pools = [(face, pool) for face, pool in pools if hasattr(pool, "checkedout")]
    if any(pool.checkedout() for _, pool in pools):
        gc.collect()
    return [f"{face}: {pool.checkedout()} connection(s) are out of the pool" for face, pool in pools if pool.checkedout()]


def tasks_left(runner: asyncio.Runner | None) -> list[str]:
    """The tasks that are not done on the test's event loop."""
    if runner is None:
        return []

    async def others() -> list[str]:
        await asyncio.sleep(0)  # a task whose end is decided gets the one turn that it needs
        mine = asyncio.current_task()
        return [f"the task {task!r} is not done" for task in asyncio.all_tasks() if task is not mine]

    return runner.run(others())


def threads_left(before: Sequence[threading.Thread]) -> list[str]:
    """The threads, daemon or not, that were not there *before* and do not end within `JOIN` seconds."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    deadline = time.monotonic() + JOIN
    for thread in new:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [f"the thread {thread!r} still runs" for thread in new if thread.is_alive()]


def _current(face: Face) -> Any:
    from tenure.exceptions import NoUnit

    try:
        return face.db.current
    except NoUnit:
        return None
