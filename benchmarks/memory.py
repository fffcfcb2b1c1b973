"""What is left behind: objects, Python's memory and the process's, after many units and after many tasks."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from sqlalchemy.orm import Session

from benchmarks.models import KEY, User
from tenure import AsyncDatabase, Database

_AT_ONCE = 500  # tasks; the pool makes them wait for each other anyway


@dataclass(frozen=True)
class Left:
    """What *count* units have left, beside what as many before them had left.

    Attributes:
        count: How many units there were.
        objects: Objects that the garbage collector knows, more than before.
        sessions: Sessions among all objects.
        traced: Bytes that Python has allocated, more than before.
        resident: Bytes of the process in memory, more than before.

    """

    count: int
    objects: int
    sessions: int
    traced: int
    resident: int


def resident() -> int:
    """Bytes of this process in memory."""
    import resource

    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _compare(work: Callable[[], Any], count: int) -> Left:
    work()  # fills the caches, and lets the process grow to the size that the work takes
    gc.collect()
    before, held = len(gc.get_objects()), resident()
    work()
    gc.collect()
    after = gc.get_objects()
    grown = resident() - held
    sessions = sum(1 for one in after if isinstance(one, Session))
    objects = len(after) - before
    del after
    tracemalloc.start()
    work()
    gc.collect()
    first = tracemalloc.get_traced_memory()[0]
    work()
    gc.collect()
    traced = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    return Left(count, objects, sessions, traced, grown)


def units(db: Database, count: int) -> Left:
    """*count* units after each other; each reads, each tenth writes."""

    def work() -> None:
        for number in range(count):
            with db.unit() as session:
                session.get(User, KEY)
                if number % 10 == 0:
                    session.add(User(name="new"))

    return _compare(work, count)


def tasks(url: URL, count: int, runner: asyncio.Runner) -> Left:
    """*count* asyncio tasks, each with a unit that reads."""

    async def open_database() -> AsyncDatabase:
        return AsyncDatabase(url)

    db = runner.run(open_database())

    async def read() -> None:
        async with db.unit() as session:
            await session.get(User, KEY)

    async def many() -> None:
        for _ in range(count // _AT_ONCE):
            await asyncio.gather(*(read() for _ in range(_AT_ONCE)))

    try:
        return _compare(lambda: runner.run(many()), count)
    finally:
        runner.run(db.close())
