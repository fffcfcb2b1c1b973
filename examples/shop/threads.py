"""The shop's day on a ``Database``: its tables, its courier and its jobs, in threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.orm import Session

from examples.shop import jobs, trade
from examples.shop.models import Base
from tenure import Database
from tenure.jobs.apscheduler import in_units

log = logging.getLogger(__name__)


class Shop:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.courier = threading.Thread(target=self._deliver, name="courier")
        self._orders: SimpleQueue[int | None] = SimpleQueue()
        self.scheduler: Any = BackgroundScheduler(timezone="UTC", executors={"default": in_units(ThreadPoolExecutor(4), db)})
        for job in jobs.ALL:
            name = job.__name__
            self.scheduler.add_job(self._run, "interval", args=[job], seconds=jobs.EVERY, id=name, name=name, max_instances=3)

    def open(self) -> None:
        Base.metadata.create_all(self.db.engine)
        self.db.unit(trade.open_accounts)()
        for number in self.db.unit(trade.unshipped)():  # from before the shop was last closed, or killed
            self.ship(number)
        self.courier.start()
        self.scheduler.start()

    def close(self) -> None:
        """Let the jobs under way end, and the courier ship what is left."""
        self.scheduler.shutdown()
        self._orders.put(None)
        self.courier.join()

    def ship(self, number: int) -> None:
        """Give an order to the courier: ``db.on_commit(shop.ship, number)``, never for one that was not stored."""
        self._orders.put(number)

    def _run(self, job: Callable[[Session], str]) -> str:
        return job(self.db.session)  # the run's own

    def _deliver(self) -> None:
        """The courier is a plain thread. Each delivery is a unit."""
        mark_shipped = self.db.unit(trade.mark_shipped)
        while (number := self._orders.get()) is not None:
            try:
                mark_shipped(number)
            except Exception:
                log.exception("order %s was not shipped", number)
