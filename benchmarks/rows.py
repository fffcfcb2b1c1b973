"""The rows: what is measured on what, and which target belongs to it."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, make_url

from benchmarks import (
    async_peers,
    cluster,
    connections,
    contention,
    distance,
    floors,
    imports,
    jobs,
    masses,
    memory,
    peers,
    requests,
    sharing,
    streams,
    throughput,
    web,
)
from benchmarks.bench import Bench
from benchmarks.rounds import Timed, measure, measure_async

_MIB = 2**20


def _work(variants: dict[str, Any], name: str) -> dict[str, Callable[[], Any]]:
    return {key: getattr(peer, name) for key, peer in variants.items()}


def _ratio(found: dict[str, Timed], over: str, under: str) -> float:
    pairs = zip(found[over].seconds, found[under].seconds, strict=True)
    return statistics.median(one / other for one, other in pairs)


@contextmanager
def _all_on(url: URL) -> Any:
    variants = peers.all_on(url)
    try:
        yield variants
    finally:
        for one in variants.values():
            one.close()


def nothing(bench: Bench) -> None:
    """A unit without a statement, and a request that never asks for the session."""
    with _all_on(make_url("sqlite://")) as variants:
        db = variants[peers.TENURE].db
        without = web.requests(db)
        found = measure({**_work(variants, "nothing"), **floors.nothing(), **without}, bench.rounds)
    units = {name: one for name, one in found.items() if name not in without}
    bench.report.timed("A unit without a statement", units)
    bench.report.target("a unit without a statement", 1.30, found[peers.TENURE].median)

    added = Timed("tenure's middleware, less the application")
    for wrapped, empty, base in zip(*(found[name].seconds for name in (web.WRAPPED, web.EMPTY, peers.BASE)), strict=True):
        added.seconds.append(wrapped - empty)
        added.ratios.append((wrapped - empty) / base)
    shown = {peers.BASE: found[peers.BASE], **{name: found[name] for name in without}, added.name: added}
    bench.report.timed("A request that never asks for the session", shown)
    bench.report.target("such a request, by the middleware", 0.10, added.median)
    bench.report.target("such a request, by its slot", 0.10, found[web.SLOT].median)
    with _all_on(make_url("sqlite://")) as variants:
        pages = measure(web.flask_requests(variants[peers.TENURE].db), bench.rounds)
    bench.report.timed("A page of Flask without SQL", pages)
    bench.report.target("a page without SQL, with tenure / Flask alone", 1.05, _ratio(pages, web.FLASK_WRAPPED, web.FLASK))


def sqlite(bench: Bench) -> None:
    """One read, SQLite in memory; what the guards cost."""
    url = make_url("sqlite://")
    with _all_on(url) as variants:
        beneath = floors.reads(url, variants[peers.BASE].engine)
        found = measure({**_work(variants, "read"), **beneath}, bench.rounds)
    bench.report.timed("One read by primary key, SQLite in memory", found)
    bench.report.target("one read, SQLite in memory", 1.50, found[peers.TENURE].median)
    bench.report.target("guards on / all guards off", 1.05, _ratio(found, peers.TENURE, peers.UNGUARDED))


def postgresql(bench: Bench) -> None:
    """One read, and one insert with its COMMIT, on the embedded PostgreSQL."""
    url = bench.postgresql.set(drivername="postgresql+psycopg")
    with _all_on(url) as variants:
        engine = variants[peers.BASE].engine
        found = measure({**_work(variants, "read"), **floors.reads(url, engine)}, bench.rounds)
        bench.report.timed("One read by primary key, PostgreSQL (psycopg)", found)
        bench.report.target("one read, PostgreSQL", 0.85, found[peers.TENURE].median)
        found = measure({**_work(variants, "insert"), **floors.inserts(url, engine)}, bench.rounds)
        bench.report.timed("One insert and COMMIT, PostgreSQL (psycopg)", found)
        bench.report.target("one insert and COMMIT, PostgreSQL", 1.10, found[peers.TENURE].median)


def async_postgresql(bench: Bench) -> None:
    """The same in asyncio, on both drivers."""
    with asyncio.Runner() as runner:
        for number, driver in enumerate(("psycopg", "asyncpg")):
            url = bench.postgresql.set(drivername=f"postgresql+{driver}")

            async def made(url: URL = url) -> dict[str, async_peers.AsyncPeer]:
                return {name: peer(url) for name, peer in async_peers.PEERS.items()}

            variants = runner.run(made())
            try:
                if not number:
                    found = measure_async(_work(variants, "nothing"), bench.rounds, runner)
                    bench.report.timed("A unit without a statement, asyncio", found)
                found = measure_async(_work(variants, "read"), bench.rounds, runner)
                bench.report.timed(f"One read by primary key, PostgreSQL, asyncio ({driver})", found)
                found = measure_async(_work(variants, "insert"), bench.rounds, runner)
                bench.report.timed(f"One insert and COMMIT, PostgreSQL, asyncio ({driver})", found)
            finally:
                for one in variants.values():
                    runner.run(one.close())


def importing(bench: Bench) -> None:
    """What ``import tenure`` costs beside the import of what it needs anyway."""
    found = imports.measure(bench.rounds)
    base = found[imports.BASE]
    lines = []
    for name, runs in found.items():
        time = statistics.median(one[0] / other[0] for one, other in zip(runs, base, strict=True))
        added = statistics.median(one[1] for one in runs) / _MIB
        lines.append((name, f"{time:.2f}", f"{added:.1f} MiB", str(runs[-1][2])))
        if name == imports.TENURE:
            bench.report.target("import tenure / import sqlalchemy.orm", 1.05, time)
            bench.report.target(
                "memory that import tenure adds", 1.0, added - statistics.median(one[1] for one in base) / _MIB, "MiB"
            )
    bench.report.counted("Imports, each in a fresh interpreter", ("import", "time", "memory", "modules"), lines)


def left_behind(bench: Bench) -> None:
    """Memory over many units and many tasks."""
    with _all_on(make_url("sqlite://")) as variants:
        after_units = memory.units(variants[peers.TENURE].db, bench.units)
    with asyncio.Runner() as runner:
        after_tasks = memory.tasks(bench.postgresql.set(drivername="postgresql+asyncpg"), bench.units, runner)
    lines = []
    for name, left in (("tenure: units one after another", after_units), ("tenure: asyncio tasks, a unit each", after_tasks)):
        lines.append(
            (
                name,
                f"{left.count:,}",
                str(left.sessions),
                f"{left.objects:+,}",
                f"{left.traced / 1024:+,.0f} KiB",
                f"{left.resident / 1024:+,.0f} KiB",
            )
        )
        bench.report.target(f"{name[8:]}: sessions left", 0, left.sessions, "sessions")
        bench.report.target(f"{name[8:]}: memory per unit", 1, max(left.traced, 0) / left.count, "bytes")
    columns = ("after", "units", "sessions left", "objects", "traced", "resident")
    bench.report.counted("Memory, as many again after a first run", columns, lines)


def of_jobs(bench: Bench) -> None:
    """A job's unit beside a session by hand, in a thread pool and through Celery, RQ and Dramatiq."""
    url = bench.on("psycopg")
    found = jobs.threads(url, bench.rounds)
    bench.report.timed("A job that stores a row, in a thread pool", found)
    bench.report.target("a job in a thread pool", 1.10, found[jobs.UNIT].median)
    for runner in jobs.RUNNERS:
        if missing := jobs.missing(runner):
            bench.report.console.print(f"{runner} is left out: {missing}", style="bold red")
            continue
        found = jobs.through(runner, url, bench.rounds)
        bench.report.timed(f"A job that stores a row, through {runner}", found)
        bench.report.target(f"a job through {runner}", 1.05, found[jobs.UNIT].median)


ROWS: dict[str, Callable[[Bench], None]] = {
    "nothing": nothing,
    "sqlite": sqlite,
    "postgresql": postgresql,
    "async": async_postgresql,
    "imports": importing,
    "memory": left_behind,
    "taking": connections.taking,
    "later": connections.later,
    "far": distance.far,
    "requests": requests.requests,
    "streams": streams.streams,
    "flask": throughput.flask,
    "fastapi": throughput.fastapi,
    "slow": throughput.slow_neighbour,
    "overload": contention.overload,
    "fairness": contention.fairness,
    "masses": masses.masses,
    "sharing": sharing.sharing,
    "jobs": of_jobs,
    "once": cluster.once,
    "outbox": cluster.relays,
}
