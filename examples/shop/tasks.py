"""The shop's day on an ``AsyncDatabase``: its tables, its courier and its jobs, on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_SUBMITTED
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy.orm import Session

from examples.shop import jobs, trade
from examples.shop.models import Base
from examples.shop.settings import GRACE
from tenure import AsyncDatabase
from tenure.jobs.apscheduler import in_units

log = logging.getLogger(__name__)


class Shop:
    def __init__(self, db: AsyncDatabase) -> None:
        self.db = db
        self._orders: asyncio.Queue[int | None] = asyncio.Queue()
        self._under_way = 0
        self._idle = asyncio.Event()  # no job is under way
        self._idle.set()
        self.scheduler: Any = AsyncIOScheduler(timezone="UTC", executors={"default": in_units(AsyncIOExecutor(), db)})
        self.scheduler.add_listener(self._count, EVENT_JOB_SUBMITTED | EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
        for job in jobs.ALL:
            name = job.__name__
            self.scheduler.add_job(self._run, "interval", args=[job], seconds=jobs.EVERY, id=name, name=name, max_instances=3)

    @asynccontextmanager
    async def opened(self, _app: object = None) -> AsyncIterator[None]:
        """From the server's start to its end: the ``lifespan`` of an ASGI application."""
        async with self.db.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with self.db.unit(name="open_accounts") as session:
            await session.run_sync(trade.open_accounts)
        async with self.db.unit(name="unshipped") as session:
            left = await session.run_sync(trade.unshipped)
        for number in left:  # from before the shop was last closed, or killed
            self.ship(number)
        courier = asyncio.create_task(self._deliver(), name="courier")
        self.scheduler.start()
        try:
            yield
        finally:
            await self._end_jobs()
            self._orders.put_nowait(None)
            await courier  # ships what is left
            await self.db.drain(GRACE / 2)
            await self.db.close()

    def ship(self, number: int) -> None:
        """Give an order to the courier: ``db.on_commit(shop.ship, number)``, never for one that was not stored."""
        self._orders.put_nowait(number)

    async def _run(self, job: Callable[[Session], str]) -> str:
        return await self.db.session.run_sync(job)  # the run's own

    async def _deliver(self) -> None:
        """The courier is a plain task. Each delivery is a unit."""
        while (number := await self._orders.get()) is not None:
            try:
                async with self.db.unit(name="mark_shipped") as session:
                    await session.run_sync(trade.mark_shipped, number)
            except Exception:
                log.exception("order %s was not shipped", number)

    def _count(self, event: Any) -> None:
        self._under_way += 1 if event.code == EVENT_JOB_SUBMITTED else -1
        self._idle.clear() if self._under_way else self._idle.set()

    async def _end_jobs(self) -> None:
        """Let the jobs under way end. APScheduler's shutdown() would cancel them."""
        self.scheduler.pause()
        await self._idle.wait()
        self.scheduler.shutdown()
