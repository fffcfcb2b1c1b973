"""A scheduler, as every node has one, until SIGTERM: ``python -m examples.cluster.scheduler``."""

from __future__ import annotations

import logging
import signal
import threading
import time

from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from examples.cluster import ledger, settings
from examples.cluster.models import Night, Order, runs
from examples.cluster.shop import db, leave
from tenure.jobs.once import once


@once(db, "nightly", every=settings.EVERY)
@db.unit
def nightly(session: Session) -> None:
    """Count the orders. In the ledger it says when it begins, for a run that is killed leaves nothing in the database."""
    tick = session.scalars(select(runs.c.tick).where(runs.c.name == "nightly")).one()
    ledger.note("night", tick=tick)
    orders = session.scalars(select(func.count()).select_from(Order)).one()
    session.add(Night(tick=tick, node=settings.NODE, process=settings.PROCESS, orders=orders))
    session.flush()
    time.sleep(settings.NIGHT)


def main() -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    scheduler = BackgroundScheduler(timezone="UTC")
    # Four firings in a tick: the next one makes up for a run that was killed.
    scheduler.add_job(nightly, "interval", seconds=settings.EVERY / 4, coalesce=True)
    scheduler.start()
    ledger.note("up")
    ended.wait()
    scheduler.shutdown()
    leave()


if __name__ == "__main__":
    logging.basicConfig()
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a firing that comes while the last goes on is as it should be
    main()
