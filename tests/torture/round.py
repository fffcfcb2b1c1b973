"""One round: workers on a small pool, faults around them, and then the account of it all."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

import tenure
from tenure import Admission
from torture import book as books
from torture import models
from torture.book import Book
from torture.faults import APPLICATION, Faults
from torture.scenario import Scenario

from support.cluster import Cluster
from support.face import AsyncFace, Face, SyncFace, drive
from support.proxy import Proxy
from support.servers import DRIVERS

SETTINGS = """
max_connections = 100
fsync = off
full_page_writes = off
autovacuum = off
shared_buffers = 16MB
deadlock_timeout = 20ms
"""
"""Of the cluster. A COMMIT that was answered must outlive a crash of the server, so `synchronous_commit` stays on."""

WORKERS = {False: 8, True: 24}
"""Threads, and tasks."""

LAST = 60.0
"""Seconds after which a worker that has not come back from its last call is a find."""


class Round:
    """*seconds* of work on *driver*. `run` gives the book, in which everything found is `wrong`."""

    def __init__(self, driver: str, seed: str, seconds: float, *, url: sa.URL, **engine: Any) -> None:
        self.driver = driver
        self.seed = seed
        self.book = Book()
        self.cancelled = 0
        self.stop = threading.Event()
        self.seconds = seconds
        self.took = 0.0
        self._ends = float("inf")
        self._runner = asyncio.Runner() if DRIVERS[driver].is_async else None
        options: dict[str, Any] = {
            "pool_size": 4,
            "max_overflow": 0,
            "admission": Admission(max_wait=3.0, max_waiting=WORKERS[DRIVERS[driver].is_async] - 4),
            **engine,
        }
        self.face: Face
        if self._runner is not None:
            database = tenure.AsyncDatabase(url, finish_within=2.0, **options)
            self.face = AsyncFace(database, driver, DRIVERS[driver].dialect, runner=self._runner)
        else:
            self.face = SyncFace(tenure.Database(url, **options), driver, DRIVERS[driver].dialect)
        self.scenario = Scenario(self.face, self.book, seed)

    def goes_on(self) -> bool:
        """Whether the workers begin anything more."""
        return not self.stop.is_set() and time.monotonic() < self._ends

    def run(self, *, when_over: Callable[[], None] = lambda: None) -> Book:
        """Work, end, and look at what is left. *when_over* mends what is broken, before the workers' last calls are waited for."""
        began = time.monotonic()
        self._ends = began + self.seconds
        try:
            if self._runner is not None:
                self._runner.run(self._tasks(when_over))
            else:
                self._threads(when_over)
            for found in self.face.run(self.scenario.left_over()):
                self.book.find(found)
        finally:
            self.face.run(self.face.close())
            if self._runner is not None:
                self._runner.close()
            self.took = time.monotonic() - began
        return self.book

    # ------------------------------------------------------------------------ threads

    def _threads(self, when_over: Callable[[], None]) -> None:
        async def launch(body: Callable[[], Awaitable[Any]]) -> Any:
            return await body()

        def work(number: int) -> None:
            try:
                drive(self.scenario.work(number, self.goes_on, launch))
            except BaseException as error:
                self.book.saw("worker", error)
                self.book.find(f"worker {number} ended with {error!r}")

        threads = [threading.Thread(target=work, args=(n,), name=f"worker-{n}", daemon=True) for n in range(WORKERS[False])]
        for one in threads:
            one.start()
        while self.goes_on():
            time.sleep(0.02)
        when_over()
        ends = time.monotonic() + LAST
        for one in threads:
            one.join(max(0.0, ends - time.monotonic()))
            if one.is_alive():
                self._stuck(one.name)

    # ------------------------------------------------------------------------ tasks

    async def _tasks(self, when_over: Callable[[], None]) -> None:
        running: set[asyncio.Task[Any]] = set()

        async def launch(body: Callable[[], Awaitable[Any]]) -> Any:
            task = asyncio.ensure_future(_begin(body))
            running.add(task)
            try:
                await asyncio.wait({task})
            finally:
                running.discard(task)
            return task.result()

        workers = [
            asyncio.create_task(self.scenario.work(n, self.goes_on, launch), name=f"worker-{n}") for n in range(WORKERS[True])
        ]
        dice = random.Random(f"{self.seed}/cancellations")
        while self.goes_on():
            await asyncio.sleep(dice.choice((0, 0.02, 0.1, 0.3)))
            if running:
                dice.choice(sorted(running, key=asyncio.Task.get_name)).cancel()
                self.cancelled += 1
        await asyncio.to_thread(when_over)
        _, late = await asyncio.wait(workers, timeout=LAST)
        for one in workers:
            if one in late:
                self._stuck(one.get_name())
                one.cancel()
            elif one.exception() is not None:
                self.book.saw("worker", one.exception())
                self.book.find(f"{one.get_name()} ended with {one.exception()!r}")

    def _stuck(self, name: str) -> None:
        holders = "\n".join(f"  {one}" for one in self.face.db.holders())
        self.book.find(f"{name} has not come back in {LAST:.0f} s\n{holders}")


async def _begin(body: Callable[[], Awaitable[Any]]) -> Any:
    return await body()


def postgresql(cluster: Cluster, driver: str, seed: str, seconds: float, **faults: float) -> tuple[Round, Faults]:
    """A round on *cluster*, by way of a proxy, with faults; it is over when `play` has come back."""
    models.create(cluster.base)
    socket = f"{cluster.base.query['host']}/.s.PGSQL.5432"
    proxy = Proxy(socket, cluster.base)
    named: dict[str, Any] = (
        {"server_settings": {"application_name": APPLICATION, "lock_timeout": "2s"}}
        if driver == "asyncpg"
        else {"application_name": APPLICATION, "options": "-c lock_timeout=2s"}
    )
    made = Round(driver, seed, seconds, url=proxy.url(driver), connect_args=named)
    return made, Faults(cluster, proxy, seed, **faults)


def play(cluster: Cluster, made: Round, faults: Faults) -> Book:
    """Run a round and hold its book against what is stored."""
    faults.begin()
    try:
        made.run(when_over=faults.end)
    finally:
        faults.end()
        faults.proxy.close()
    made.book.settle(books.read(cluster.base))
    ends = time.monotonic() + 5
    while (left := faults.backends()) and time.monotonic() < ends:
        time.sleep(0.05)
    if left:
        made.book.find(f"the server still has {len(left)} connections of a database that was closed")
    return made.book
