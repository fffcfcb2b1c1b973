"""Very many units: waiting at once in one event loop, and one after another. What one takes must not depend on how many there are."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from contextvars import Context

from benchmarks.bench import Bench, run
from benchmarks.memory import resident
from tenure import Admission, AsyncDatabase, Database

SLICES = 10


async def _wait_all(db: AsyncDatabase, count: int, now: Callable[[], float]) -> float:
    """How much of what *now* measures each of *count* units takes that wait."""
    gc.collect()

    async def one() -> None:
        async with db.unit() as session:
            await session.connection()

    before = now()
    tasks = [asyncio.create_task(one(), context=Context()) for _ in range(count)]  # no part of the unit around
    while db.status().waiting < count:
        await asyncio.sleep(0.01)
        if failed := next((task for task in tasks if task.done()), None):
            failed.result()
    taken = now() - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert db.status().waiting == 0
    return taken / count


async def _waiting(bench: Bench) -> None:
    db = AsyncDatabase(bench.on("asyncpg"), pool_size=1, max_overflow=0, admission=Admission(max_wait=3600.0))
    lines, found = [], list[tuple[float, float]]()
    async with db.unit() as session:
        await session.connection()
        await _wait_all(db, 1_000, time.process_time)
        for count in (bench.units, 10 * bench.units):
            taken = await _wait_all(db, count, time.process_time)
            tracemalloc.start()
            memory = await _wait_all(db, count, lambda: float(tracemalloc.get_traced_memory()[0]))
            tracemalloc.stop()
            found.append((taken, memory))
            lines.append((f"tenure: {count:,} at once", f"{found[-1][0] * 1e6:.0f} µs", f"{found[-1][1] / 1024:.1f} KiB"))
    await db.close()
    bench.report.counted("Units that wait for one connection, in one event loop", ("waiting", "CPU each", "memory each"), lines)
    bench.report.target("memory of a waiting unit, most / fewest", 1.15, found[-1][1] / found[0][1])
    bench.report.target("CPU of a waiting unit, most / fewest", 1.25, found[-1][0] / found[0][0])


def _one_after_another(bench: Bench) -> None:
    db = Database("sqlite://")
    count, times = 10 * bench.units, list[float]()
    for _ in range(2):
        with db.unit() as session:
            session.connection()
    before = resident()
    for _ in range(SLICES):
        began = time.process_time()
        for _ in range(count):
            with db.unit():
                pass
        times.append((time.process_time() - began) / count)
    grown = resident() - before
    db.close()
    first, last = statistics.median(times[: SLICES // 2]), statistics.median(times[SLICES // 2 :])
    line = (f"tenure: {SLICES * count:,}", f"{first * 1e6:.2f} µs", f"{last * 1e6:.2f} µs", f"{grown / 1024:+,.0f} KiB")
    bench.report.counted("Units one after another", ("units", "CPU each, first half", "second half", "resident"), [line])
    bench.report.target("CPU of a unit, second half / first half", 1.10, last / first)


def masses(bench: Bench) -> None:
    """Very many units."""
    run(_waiting(bench))
    _one_after_another(bench)
