"""``python -m benchmarks.sharing_child HOST URL WORKERS POOL WORK``: tasks that read one row and then do other work, *WORKERS* at a time.

*HOST* is ``gevent`` or ``asyncio``. Each line of the standard input, ``usual 500``, has so many tasks done in one way; the answer is the
seconds that they took. ``usual`` has a session for the whole task, ``early`` one that is closed before the other work, by hand.
"""

from __future__ import annotations

import sys

if sys.argv[1:2] == ["gevent"]:
    from gevent import monkey

    monkey.patch_all()  # before anything else is imported

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.models import KEY, User
from tenure import AsyncDatabase, Database


def greenlets(url: str, workers: int, options: dict[str, Any], work: float) -> Iterator[float]:
    """The seconds that each line's tasks took, on greenlets."""
    import gevent

    engine, db = create_engine(url, **options), Database(url, **options)

    def usual() -> None:
        with Session(engine) as session:
            session.get(User, KEY)
            time.sleep(work)

    def early() -> None:
        with Session(engine) as session:
            session.get(User, KEY)
        time.sleep(work)

    def tenure() -> None:
        with db.unit() as session:
            session.get(User, KEY)
            time.sleep(work)

    ways: dict[str, Callable[[], None]] = {"usual": usual, "early": early, "tenure": tenure}
    for way, count in _asked():
        numbers = iter(range(count))

        def several(task: Callable[[], None] = ways[way], numbers: Iterator[int] = numbers) -> None:
            for _ in numbers:
                task()

        began = time.perf_counter()
        gevent.joinall([gevent.spawn(several) for _ in range(workers)], raise_error=True)
        yield time.perf_counter() - began


def tasks(url: str, workers: int, options: dict[str, Any], work: float) -> Iterator[float]:
    """The same on tasks of asyncio."""
    engine, db = create_async_engine(url, **options), AsyncDatabase(url, **options)

    async def usual() -> None:
        async with AsyncSession(engine) as session:
            await session.get(User, KEY)
            await asyncio.sleep(work)

    async def early() -> None:
        async with AsyncSession(engine) as session:
            await session.get(User, KEY)
        await asyncio.sleep(work)

    async def tenure() -> None:
        async with db.unit() as session:
            await session.get(User, KEY)
            await asyncio.sleep(work)

    ways: dict[str, Callable[[], Awaitable[None]]] = {"usual": usual, "early": early, "tenure": tenure}

    async def all_of(task: Callable[[], Awaitable[None]], count: int) -> float:
        numbers = iter(range(count))

        async def several() -> None:
            for _ in numbers:
                await task()

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(several())
        return time.perf_counter() - began

    with asyncio.Runner() as runner:
        for way, count in _asked():
            yield runner.run(all_of(ways[way], count))


def _asked() -> Iterator[tuple[str, int]]:
    for line in sys.stdin:
        way, count = line.split()
        yield way, int(count)


def main() -> None:
    host, url, workers, pool, work = sys.argv[1:]
    run = {"gevent": greenlets, "asyncio": tasks}[host]
    for seconds in run(url, int(workers), {"pool_size": int(pool), "max_overflow": 0}, float(work)):
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
