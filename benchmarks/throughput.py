"""Requests that read one row and then do other work: how many a server answers with few connections."""

from __future__ import annotations

import random
import statistics
from contextlib import ExitStack

from sqlalchemy import create_engine

from benchmarks import clients, models
from benchmarks.bench import Bench, program, run
from benchmarks.clients import Served

CLIENTS = 40
POOL = 5
WORK = 0.020  # seconds
SLOW = 0.500
CROWD = 400

_USUAL = {"flask": "Flask-SQLAlchemy", "fastapi": "FastAPI, yield dependency"}
_TARGETS = {"flask": 3.3, "fastapi": 5.0}


def _url(bench: Bench, stack: str) -> str:
    models.create(create_engine(bench.on("psycopg")))
    return bench.on("psycopg" if stack == "flask" else "asyncpg").render_as_string(hide_password=False)


def _rounds(bench: Bench, stack: str, variants: dict[str, tuple[str, int]], rounds: int) -> dict[str, list[Served]]:
    url = _url(bench, stack)
    found: dict[str, list[Served]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(1).shuffle
    with ExitStack() as servers:
        ports = {
            name: servers.enter_context(program("serve", stack, way, url, pool, WORK, CLIENTS))
            for name, (way, pool) in variants.items()
        }
        for number in range(rounds + 1):
            shuffle(order)
            for name in order:
                served = run(clients.ask(ports[name], CLIENTS, bench.seconds if number else 0.5))
                if number:  # the first round warms everything up
                    found[name].append(served)
    return found


def _over(found: dict[str, list[Served]], over: str, under: str) -> float:
    return statistics.median(one.rate / other.rate for one, other in zip(found[over], found[under], strict=True))


def throughput(bench: Bench, stack: str) -> None:
    """One read and 20 ms of other work, 40 clients."""
    usual = _USUAL[stack]
    tenure, early, wide = (
        f"tenure, {POOL} connections",
        f"{usual}, ended by hand, {POOL} connections",
        f"{usual}, {CLIENTS} connections",
    )
    base = f"{usual}, {POOL} connections"
    variants = {base: ("usual", POOL), tenure: ("tenure", POOL), early: ("early", POOL), wide: ("usual", CLIENTS)}
    found = _rounds(bench, stack, variants, max(3, bench.rounds // 4))
    lines = []
    for name, runs in found.items():
        rate, wait = (statistics.median(getattr(one, what) for one in runs) for what in ("rate", "median"))
        failed = sum(one.failed for one in runs)
        lines.append((name, f"{_over(found, name, base):.2f}", f"{rate:,.0f}/s", f"{wait * 1e3:.0f} ms", str(failed)))
    server = "Flask on cheroot" if stack == "flask" else "FastAPI on uvicorn"
    bench.report.counted(
        f"Requests with one read and {WORK * 1e3:.0f} ms of other work, {CLIENTS} clients, {server}",
        ("ends the session", "ratio", "requests", "median", "failed"),
        lines,
    )
    bench.report.target(
        f"requests, {stack}, {POOL} connections / the usual way", _TARGETS[stack], _over(found, tenure, base), least=True
    )
    bench.report.target(f"requests, {stack} / session ended by hand", 0.95, _over(found, tenure, early), least=True)
    bench.report.target(
        f"requests, {stack}, {POOL} connections / {CLIENTS} in the usual way", 0.95, _over(found, tenure, wide), least=True
    )


def slow_neighbour(bench: Bench) -> None:
    """One read and 500 ms of other work, 400 clients, in asyncio."""
    url, found = _url(bench, "fastapi"), dict[str, Served]()
    for way, name, seconds in (("usual", _USUAL["fastapi"], 8.0), ("tenure", "tenure", 5.0)):
        with program("serve", "fastapi", way, url, POOL, SLOW, CROWD) as port:
            found[name] = run(clients.ask(port, CROWD, min(seconds, 4 * bench.seconds), warm=2.0))
    lines = [(name, f"{one.rate:,.1f}/s", f"{one.median:.2f} s", str(one.failed)) for name, one in found.items()]
    bench.report.counted(
        f"Requests with one read and {SLOW * 1e3:.0f} ms of other work, {CROWD} clients, {POOL} connections, FastAPI on uvicorn",
        ("ends the session", "requests", "median", "failed"),
        lines,
    )
    usual, ours = found.values()
    bench.report.target("the same with 500 ms and 400 clients / the usual way", 50, ours.rate / max(usual.rate, 0.1), least=True)
    bench.report.target("such requests that failed", 0, ours.failed, "requests")


def flask(bench: Bench) -> None:
    """Flask on cheroot."""
    throughput(bench, "flask")


def fastapi(bench: Bench) -> None:
    """FastAPI on uvicorn."""
    throughput(bench, "fastapi")
