"""One process of a cluster, for `benchmarks.cluster`: ``once URL NAME EVERY`` fires a job, ``relay URL TABLE`` sends."""

from __future__ import annotations

import sys
import time

from sqlalchemy import MetaData, text
from sqlalchemy.orm import Session

from tenure import Database
from tenure.jobs import outbox
from tenure.jobs.once import once


def fire(url: str, name: str, every: float) -> None:
    """Fire the job at each line of the standard input; prints whether it ran here, and how long that took."""
    db = Database(url, pool_size=1)

    @once(db, name, every=every)
    @db.unit
    def job(session: Session, tick: int) -> bool:
        session.execute(text("INSERT INTO bench_runs VALUES (:tick)"), {"tick": tick})
        return True

    print("ready", flush=True)
    for tick, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        ran = job(tick)
        print(int(bool(ran)), time.perf_counter() - began, flush=True)
    db.close()


def relay(url: str, table: str) -> None:
    """Send, which is to do nothing, until SIGTERM; prints when it begins."""
    db = Database(url)
    box = outbox.Outbox(db, outbox.table(MetaData(), table))
    print("ready", flush=True)
    box.relay(lambda _message: None, poll=0.02).run()
    db.close()


if __name__ == "__main__":
    kind, url, name, *rest = sys.argv[1:]
    if kind == "once":
        fire(url, name, float(rest[0]))
    else:
        relay(url, name)
