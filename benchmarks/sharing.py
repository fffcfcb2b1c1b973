"""Tasks that read one row and then do other work, 50 at a time on 5 connections: on greenlets, and in asyncio."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys

from sqlalchemy import create_engine

from benchmarks import models
from benchmarks.bench import Bench

WORKERS = 50
POOL = 5
WORK = 0.020  # seconds
SLICES = 5
FEWER = 5  # the usual way takes so much longer that it is given a part of the tasks: its rate is as steady
WAYS = {
    "usual": "with Session(engine), the whole task",
    "tenure": "tenure: with db.unit(), the whole task",
    "early": "with Session(engine), closed before the other work",
}
HOSTS = {"gevent": ("psycopg", "greenlets of gevent"), "asyncio": ("asyncpg", "tasks of asyncio")}


def _rates(bench: Bench, host: str, driver: str) -> dict[str, list[float]]:
    """Tasks for each second, of each way and slice."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.sharing_child", host]
    options = (bench.on(driver).render_as_string(hide_password=False), WORKERS, POOL, WORK)
    child = subprocess.Popen([*command, *map(str, options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    order, shuffle = list(WAYS), random.Random(1).shuffle
    try:
        for number in range(SLICES + 1):
            shuffle(order)
            for way in order:
                count = bench.units // SLICES // (1 if way == "tenure" else FEWER) if number else 2 * WORKERS
                print(way, count, file=child.stdin, flush=True)
                seconds = float(child.stdout.readline())
                if number:  # the first slice warms everything up
                    found[way].append(count / seconds)
    finally:
        child.kill()
        child.communicate()
    return found


def sharing(bench: Bench) -> None:
    """Many tasks share few connections."""
    models.create(engine := create_engine(bench.on("psycopg")))
    engine.dispose()
    for host, (driver, what) in HOSTS.items():
        rates = _rates(bench, host, driver)
        ratios = {
            way: statistics.median(one / other for one, other in zip(found, rates["usual"], strict=True))
            for way, found in rates.items()
        }
        bench.report.counted(
            f"{bench.units:,} tasks with one read and {WORK * 1e3:.0f} ms of other work, {WORKERS} {what}, {POOL} connections",
            ("holds the session", "ratio", "tasks"),
            [(WAYS[way], f"{ratios[way]:.2f}", f"{statistics.median(found):,.0f}/s") for way, found in rates.items()],
        )
        bench.report.target(f"{WORKERS} {what}, {POOL} connections / the usual way", 3.5, ratios["tenure"], least=True)
