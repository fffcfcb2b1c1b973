"""``once``: of all the processes that fire a job at the same time, one runs it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar, overload

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.util import greenlet_spawn

from tenure import callsite, workers
from tenure.callsite import Site, words
from tenure.checks import check_seconds
from tenure.core import events
from tenure.core.aio import AsyncDatabase
from tenure.core.database import Database
from tenure.core.inject import carry_over, check
from tenure.core.shield import finish
from tenure.exceptions import BadOption, UnexpectedUnit, brief
from tenure.jobs import ticks
from tenure.jobs.locks import Lock, check_lockable, digest, own_connections, writing
from tenure.jobs.ticks import Run, table

__all__ = ["once", "table"]

P = ParamSpec("P")
R = TypeVar("R")
_SHIELD: Final = 10.0  # seconds that noting the end of a run may take once the task is cancelled
_LONGEST_NAME: Final = 190


class _Job:
    """A decorated function, and what both wrappers know of it."""

    def __init__(self, database: Database | AsyncDatabase, name: str, every: float, function: Any) -> None:
        check(function, is_async=database.is_async)
        self.database = database
        self.engine: Engine = database.supply.engine
        self.name = name
        self.every = every
        self.key = digest(name)
        self.site: Site | None = callsite.of_function(function)

    def refuse_within_a_unit(self) -> None:
        """Raise UnexpectedUnit where the COMMIT of the run would come after its lock is given back."""
        unit = self.database.current_place.here()
        if unit is not None and not unit.ended:
            raise UnexpectedUnit(
                f"job {self.name!r} ({words(self.site)}) is called within {unit.root.name!r} ({words(unit.root.site)}), whose COMMIT would"
                " come after the job's lock is given back. Call it outside; its own unit goes below: @once(…), then @db.unit."
            )

    def dress(self, wrapper: Any, function: Any) -> Any:
        """Let *wrapper* look like the function. Hosts are told that it wants no unit around it."""
        carry_over(wrapper, function)
        wrapper.tenure_databases = (*getattr(function, "tenure_databases", ()), self.database)
        return wrapper


class _Firing:
    """One firing of a job: ``begin`` says whether it is to run, and then ``end`` must follow. Both block; asyncio calls them in a greenlet."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self._own = own_connections(job.engine)
        self._lock = Lock(job.engine, f"once {job.name}", job.every)
        self._run: Run | None = None
        self._here = f"{socket.gethostname()}, pid {os.getpid()}, {workers.describe(workers.here())}"

    def begin(self) -> bool:
        try:
            self._run = self._begun()
        finally:
            if self._run is None:
                try:
                    self._lock.release()
                finally:
                    self._own.dispose()
        return self._run is not None

    def _begun(self) -> Run | None:
        job = self.job
        last, now = self._asked()
        if ticks.tick_of(last, now, job.every) is None:
            self._skipped(last, now)
            return None
        if not self._lock.acquire():
            self._skipped(*self._asked())
            return None
        last, now = self._asked(self._lock.connection)  # again, now that nobody can begin it
        if (tick := ticks.tick_of(last, now, job.every)) is None:
            self._skipped(last, now)
            return None
        run = Run(tick, now, None, self._here[:250])
        with writing(self._own) as connection:  # for all to see, while the lock is held on the other connection
            ticks.begins(connection, job.key, job.name, run)
        self._own.dispose()
        return run

    def end(self) -> None:
        """Note that the run is over, and give the lock back. What fails here changes nothing for the caller of the job."""
        assert self._run is not None
        try:
            try:
                assert self._lock.connection is not None
                ticks.ends(self._lock.connection, self.job.key, self._run)
            finally:
                self._lock.release()
        except (SQLAlchemyError, OSError) as error:  # asyncpg lets an OSError through as it is
            events.tell(events.RunNotNoted(self.job.database.name, self.job.name, self.job.site, brief(error)))

    def _asked(self, held: Connection | None = None) -> tuple[Run | None, float]:
        if held is not None:
            found = ticks.last_run(held, self.job.key)
            self._lock.pause()
            return found
        try:
            with self._own.begin() as connection:
                return ticks.last_run(connection, self.job.key)
        except DBAPIError:  # most likely for want of the table; if not, it comes again
            with writing(self._own) as connection:
                ticks.create(connection)
        with self._own.begin() as connection:
            return ticks.last_run(connection, self.job.key)

    def _skipped(self, last: Run | None, now: float) -> None:
        job = self.job
        told = (job.database.name, job.name, job.site)
        if last is None:
            why = "another process is about to begin it"
        elif last.finished is not None:
            why = f"it ran {now - last.started:.1f} s ago in {last.holder}"
        elif not ticks.overdue(last, now, job.every):
            why = f"it runs since {now - last.started:.1f} s in {last.holder}"
        else:
            events.tell(events.JobStillRuns(*told, now - last.started, last.holder, job.every))
            return
        events.tell(events.JobSkipped(*told, why))


@overload
def once(
    db: AsyncDatabase, name: str, *, every: float
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R | None]]]: ...
@overload
def once(db: Database, name: str, *, every: float) -> Callable[[Callable[P, R]], Callable[P, R | None]]: ...
def once(db: Any, name: Any, *, every: float) -> Any:
    """Decorate a job that several processes fire: of each tick's firings one runs it, the others are logged and give None.

    ``@once(db, "nightly", every=86400)`` above ``@db.unit``. The run holds a lock in the database, on a connection of its own and not of
    the pool. What counts is the database's clock: a firing up to a quarter of the interval early or late is for the same tick, so
    the machines' clocks may differ by that. While a run goes on no other begins, also past its tick. A run whose process has died
    holds nothing and does not count: the next firing runs. One that raised has run.

    Args:
        db: On which database; all processes must use the same.
        name: The job's name, the same in all processes. At most 190 characters.
        every: The interval between two ticks, in seconds.

    Raises:
        BadOption: There is no name, the interval is impossible, or the database has no lock for this.
        UnsupportedCallable: The function is a generator, or ``async def`` under a ``Database``, or a plain one under ``AsyncDatabase``.
        UnexpectedUnit: By the call: it is within an open unit of *db*.

    """
    if not isinstance(db, Database | AsyncDatabase):
        raise BadOption(f"once({type(db).__name__}, …): give the Database or AsyncDatabase in which the lock is to be.")
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
        raise BadOption(
            f"once(name={name!r}): give the job's name, the same in all processes, of at most {_LONGEST_NAME} characters."
        )
    check_seconds("once(every)", every, above=0.0)
    check_lockable(db.supply.engine.url)

    def decorate(function: Any) -> Any:
        job = _Job(db, name, every, function)
        return _async_wrapper(job, function) if db.is_async else _wrapper(job, function)

    return decorate


def _wrapper(job: _Job, function: Callable[..., Any]) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        job.refuse_within_a_unit()
        firing = _Firing(job)
        if not firing.begin():
            return None
        try:
            return function(*args, **kwargs)
        finally:
            firing.end()

    return job.dress(wrapper, function)


def _async_wrapper(job: _Job, function: Callable[..., Any]) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        job.refuse_within_a_unit()
        firing = _Firing(job)
        begun, cancelled = await finish(greenlet_spawn(firing.begin), _SHIELD)
        if not begun and cancelled is None:
            return None
        try:
            if cancelled is not None:
                raise cancelled
            return await function(*args, **kwargs)
        except asyncio.CancelledError as error:
            cancelled = error
            raise
        finally:
            if begun:
                _, late = await finish(greenlet_spawn(firing.end), _SHIELD, cancelled=cancelled is not None)
                if late is not None:
                    raise late

    return job.dress(wrapper, function)
