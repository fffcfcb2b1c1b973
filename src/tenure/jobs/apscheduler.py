"""APScheduler 3: each firing of a job is a unit, named after the job."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.pool import ProcessPoolExecutor

from tenure.core.aio import AsyncDatabase
from tenure.core.database import Database
from tenure.exceptions import BadOption
from tenure.jobs.job import check_runner, in_unit

_INSTEAD: Final = "Give in_units(…) an AsyncDatabase, under AsyncIOScheduler, or make it a plain def."

E = TypeVar("E", bound=BaseExecutor)


def in_units(executor: E, database: Database | AsyncDatabase) -> E:
    """Let *executor* run each firing in a unit of *database*.

    ``BackgroundScheduler(executors={"default": in_units(ThreadPoolExecutor(4), db)})``. A firing commits when its job returns and
    rolls back when it raises; APScheduler then reports the error as ever. Overlapping firings have separate units. Works with
    executors that run in this process: threads, asyncio, gevent. A job that is decorated with ``@db.unit(...)`` itself has its own unit,
    with its own options and name; that is also the way for a process pool, and for a job with a parameter for its session.

    Raises:
        BadOption: *executor* is none, or runs its jobs in other processes, or *database* is none.

    """
    check_runner(executor, BaseExecutor, "in_units(executor, db)")
    if isinstance(executor, ProcessPoolExecutor):
        raise BadOption("in_units(ProcessPoolExecutor): a unit does not reach another process. Decorate the jobs with @db.unit.")
    if not isinstance(database, Database | AsyncDatabase):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadOption(
            f"in_units(…, {type(database).__name__}): give the Database or AsyncDatabase whose units the firings are to be."
        )
    submit: Any = executor.submit_job  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def submit_job(job: Any, run_times: Any) -> Any:
        return submit(_JobInUnit(job, database), run_times)

    executor.submit_job = submit_job
    return executor


class _JobInUnit:
    """A job as the executor sees it: its function has a unit around it. The stored job stays as it is."""

    def __init__(self, job: Any, database: Database | AsyncDatabase) -> None:
        self._job = job
        self.func = in_unit(database, job.func, job.name, _INSTEAD)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __str__(self) -> str:
        return str(self._job)
