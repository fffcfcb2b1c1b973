"""Processes that work together: a job that runs once a tick, and an outbox with its relays."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import MetaData, text

from benchmarks.bench import Bench
from tenure import Database
from tenure.jobs import outbox

PROCESSES = 16
EVERY = 3600.0  # seconds
RATE = 500  # messages for each second
IN_A_UNIT = 10


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cluster_child", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def once(bench: Bench) -> None:
    """16 processes fire one job at once, 500 times; in between an interval passes, by what is remembered of the last run."""
    ticks, skipped, ran = bench.units // 20, list[float](), list[float]()
    url = bench.on("psycopg").render_as_string(hide_password=False)
    db = Database(url)
    with db.unit() as session:
        session.execute(text("CREATE TABLE bench_runs (tick integer)"))
    children = [_start("once", url, "bench", EVERY) for _ in range(PROCESSES)]
    for one in children:
        _said(one)
    for _ in range(ticks):
        for one in children:
            _say(one)
        for one in children:
            here, seconds = _said(one).split()
            (ran if here == "1" else skipped).append(float(seconds))
        with db.unit() as session:
            session.execute(
                text(
                    "UPDATE tenure_once SET tick = tick - :s, started = started - :s, finished = finished - :s WHERE name = 'bench'"
                ),
                {"s": EVERY},
            )
    for one in children:
        one.communicate()
    with db.unit() as session:
        runs = Counter(session.scalars(text("SELECT tick FROM bench_runs")))
        session.execute(text("DROP TABLE bench_runs"))
    db.close()
    twice, lost = sum(count > 1 for count in runs.values()), ticks - len(runs)
    medians = [f"{statistics.median(found) * 1e3:.1f} ms" for found in (ran, skipped)]
    bench.report.counted(
        f"A job that {PROCESSES} processes fire at once",
        ("ticks", "runs", "run twice", "lost", "a firing that runs", "one that is skipped"),
        [(str(ticks), str(runs.total()), str(twice), str(lost), *medians)],
    )
    bench.report.target("once: ticks run twice", 0, twice, "ticks")
    bench.report.target("once: ticks lost", 0, lost, "ticks")


def _say(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def _said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


@contextmanager
def _relays(count: int, url: str, table: str) -> Iterator[None]:
    children = [_start("relay", url, table) for _ in range(count)]
    try:
        yield
    finally:
        for one in children:
            one.terminate()
        for one in children:
            one.communicate()


def _put(db: Database, box: outbox.Outbox, count: int) -> None:
    with db.unit():
        for number in range(count):
            box.put("bench", number)


def _sent(url: str, db: Database, box: outbox.Outbox, count: int, relays: int) -> float:
    """Messages that *relays* send for each second, from the first that is sent to the last."""
    for _ in range(count // 100):
        _put(db, box, 100)
    before = box.numbers().sent
    with _relays(relays, url, box.table.name):
        while box.numbers().pending:
            time.sleep(0.05)
    with db.unit() as session:
        statement = text(
            f"SELECT max(sent) - min(sent) FROM (SELECT sent FROM {box.table.name} ORDER BY id OFFSET :before) AS these"
        )
        return count / float(session.execute(statement, {"before": before}).scalar_one())


def _lag(url: str, db: Database, box: outbox.Outbox, seconds: float) -> list[float]:
    """The waits of messages that are put at a steady rate, from when they were stored to when their batch was."""
    with db.unit() as session:
        first = session.execute(text(f"SELECT coalesce(max(id), 0) FROM {box.table.name}")).scalar_one()
    with _relays(1, url, box.table.name):
        time.sleep(1.5)  # for it to be up
        begin = time.perf_counter()
        for number in range(int(seconds * RATE / IN_A_UNIT)):
            time.sleep(max(0.0, begin + number * IN_A_UNIT / RATE - time.perf_counter()))
            _put(db, box, IN_A_UNIT)
        while box.numbers().pending:
            time.sleep(0.05)
    with db.unit() as session:
        rows: Any = session.scalars(text(f"SELECT sent - created FROM {box.table.name} WHERE id > :first"), {"first": first})
        return sorted(rows)


def relays(bench: Bench) -> None:
    """An outbox: messages for each second with one relay and with four, and how long one waits under a steady load."""
    url = bench.on("psycopg").render_as_string(hide_password=False)
    db, metadata = Database(url), MetaData()
    box = outbox.Outbox(db, outbox.table(metadata, "bench_outbox"))
    metadata.create_all(db.engine)
    began = time.perf_counter()
    for _ in range(bench.units // IN_A_UNIT):
        _put(db, box, IN_A_UNIT)
    put = bench.units / (time.perf_counter() - began)
    with _relays(1, url, box.table.name):
        while box.numbers().pending:
            time.sleep(0.05)
    rates = {count: _sent(url, db, box, bench.units, count) for count in (1, 4)}
    waits = _lag(url, db, box, 2 * bench.seconds)
    metadata.drop_all(db.engine)
    db.close()
    tail = waits[int(len(waits) * 0.99)]
    lines = [
        (f"put, {IN_A_UNIT} in a unit", f"{put:,.0f} /s", ""),
        *((f"sent by {count} relay{'s' * (count > 1)}", f"{rate:,.0f} /s", "") for count, rate in rates.items()),
        (
            f"{RATE} /s by 1 relay",
            f"{len(waits) / (2 * bench.seconds):,.0f} /s",
            f"{statistics.median(waits) * 1e3:.0f} / {tail * 1e3:.0f} ms",
        ),
    ]
    bench.report.counted("An outbox on PostgreSQL, sending to nowhere", ("outbox", "messages", "wait: median / 99 %"), lines)
    bench.report.target("outbox: messages of one relay", 1_000, rates[1], "/s", least=True)
    bench.report.target(f"outbox: wait of 99 % at {RATE} /s", 0.25, tail, "s")
