"""More work than connections: who is served, and how soon."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.bench import Bench, run
from tenure import Admission, AsyncDatabase, Database
from tenure.exceptions import Overloaded, PoolExhausted

POOL = 5
HELD = 0.020  # seconds
DEADLINE = 0.250
THREADS = 16
CONNECTIONS = 2
SHORT = 0.005

Open = Callable[[], AbstractAsyncContextManager[Any]]
_SLEEP = text(f"SELECT pg_sleep({HELD})")


@dataclass
class Offered:
    """What became of the work that was offered to one pool."""

    count: int = 0
    in_time: int = 0
    late: int = 0
    refused: int = 0
    waits: list[float] = field(default_factory=list)


async def _one(open_session: Open, offered: Offered) -> None:
    offered.count += 1
    came = time.perf_counter()
    try:
        async with open_session() as session:
            await session.connection()
            waited = time.perf_counter() - came
            await session.execute(_SLEEP)
    except (PoolTimeout, PoolExhausted, Overloaded):
        offered.refused += 1
        return
    in_time = time.perf_counter() - came <= DEADLINE
    offered.in_time += in_time
    offered.late += not in_time
    offered.waits.append(waited)


async def _capacity(open_session: Open, seconds: float) -> float:
    offered, end = Offered(), time.perf_counter() + seconds

    async def loop() -> None:
        while time.perf_counter() < end:
            await _one(open_session, offered)

    await asyncio.gather(*(loop() for _ in range(POOL)))
    return offered.count / seconds


async def _offer(open_session: Open, rate: float, seconds: float) -> Offered:
    offered, tasks = Offered(), list[asyncio.Task[None]]()
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        tasks += [asyncio.create_task(_one(open_session, offered)) for _ in range(int(passed * rate) - len(tasks))]
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    return offered


async def _overload(bench: Bench) -> None:
    url, options = bench.on("asyncpg"), {"pool_size": POOL, "max_overflow": 0}
    seconds = 2 * bench.seconds
    plain = create_async_engine(url, **options)
    short = create_async_engine(url, **options, pool_timeout=DEADLINE)
    await _capacity(lambda: AsyncSession(plain), 0.3)  # its connections are made
    capacity = await _capacity(lambda: AsyncSession(plain), bench.seconds)
    waiting = int(DEADLINE * capacity / 2)  # half of what is served before the deadline, as docs/how-to/admission.md has it
    bound = AsyncDatabase(url, admission=Admission(max_waiting=waiting), **options)
    aimed = AsyncDatabase(url, admission=Admission(target=0.05), **options)
    bounded = f"tenure, max_waiting={waiting}"
    ways: dict[str, Open] = {
        "the pool alone, pool_timeout=30": lambda: AsyncSession(plain),
        "the pool alone, pool_timeout=0.25": lambda: AsyncSession(short),
        bounded: bound.unit,
        "tenure, target=0.05": aimed.unit,
    }
    lines, share = [], dict[str, float]()
    for name, open_session in ways.items():
        await _capacity(open_session, 0.3)  # its connections are made
        found = await _offer(open_session, 2 * capacity, seconds)
        share[name] = found.in_time / seconds / capacity
        wait = f"{statistics.median(found.waits) * 1e3:.0f} ms" if found.waits else "none served"
        lines.append((name, f"{share[name]:.2f}", str(found.in_time), str(found.late), str(found.refused), wait))
    bench.report.counted(
        f"Twice the capacity of {POOL} connections ({capacity:.0f}/s), deadline {DEADLINE * 1e3:.0f} ms, asyncio",
        ("in front of the pool", "in time / capacity", "in time", "late", "refused", "median wait"),
        lines,
    )
    bench.report.target("twice the capacity offered: in time / capacity", 0.95, share[bounded], least=True)
    for one in (plain, short):
        await one.dispose()
    for db in (bound, aimed):
        await db.close()


def overload(bench: Bench) -> None:
    """Twice the capacity offered, with a deadline."""
    run(_overload(bench))


def _loops(open_session: Callable[[], AbstractContextManager[Any]], seconds: float) -> tuple[list[int], list[float], float]:
    """How many units each thread was served, the longest wait of each, and for how long a connection was held."""
    served, longest, held = [0] * THREADS, [0.0] * THREADS, list[float]()
    barrier, end = threading.Barrier(THREADS), time.perf_counter() + seconds

    def loop(number: int) -> None:
        barrier.wait()
        while (asked := time.perf_counter()) < end:
            with open_session() as session:
                session.connection()
                got = time.perf_counter()
                longest[number] = max(longest[number], got - asked)
                served[number] += 1
                time.sleep(SHORT)
            held.append(time.perf_counter() - got)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return served, longest, statistics.mean(held)


def fairness(bench: Bench) -> None:
    """Threads in a tight loop over too few connections."""
    url, options = bench.on("psycopg"), {"pool_size": CONNECTIONS, "max_overflow": 0}
    engine, db = create_engine(url, **options), Database(url, **options)
    lines = []
    for name, open_session in (("the pool alone", lambda: Session(engine)), ("tenure", db.unit)):
        served, longest, held = _loops(open_session, 2 * bench.seconds)
        fair = held * (THREADS - CONNECTIONS) / CONNECTIONS
        share, wait = min(served) / max(served), max(longest)
        lines.append((name, f"{min(served)} / {max(served)}", f"{share:.2f}", f"{wait * 1e3:.0f} ms", f"{fair * 1e3:.0f} ms"))
    bench.report.counted(
        f"{THREADS} looping threads on {CONNECTIONS} connections, {SHORT * 1e3:.0f} ms each",
        ("in front of the pool", "least / most served", "ratio", "longest wait", "a fair wait"),
        lines,
    )
    bench.report.target("looping threads: least served / most served", 0.5, share, least=True)
    bench.report.target("looping threads: longest wait / a fair wait", 2.0, wait / fair)
    engine.dispose()
    db.close()
