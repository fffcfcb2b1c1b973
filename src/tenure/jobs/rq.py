"""RQ: each run of a job, and each retry, is a unit named after its function."""

from __future__ import annotations

from functools import lru_cache
from types import FunctionType
from typing import Any

from rq.job import Job

from tenure.core.database import Database
from tenure.jobs import job, sending


def unit_job(database: Database) -> type[Job]:
    """The class of jobs whose runs are units of *database*: give it as ``job_class`` to the queues and to the worker.

    A run commits when its function returns and rolls back when it raises. A queue with ``is_async=False`` runs the job where it is
    enqueued, in a unit of its own all the same. A function that is decorated with ``@db.unit(...)`` has its own options and name, and
    may then be ``async def`` under an ``AsyncDatabase``.

    Raises:
        BadOption: *database* is no ``Database``, or was closed.

    """
    job.check(database, Database, "unit_job(…)")

    def carried(function: Any, name: str) -> Any:
        if job.brings_loop(function):
            return function
        return job.apart(database, job.in_unit(database, function, name, job.MAKE_IT_PLAIN))

    remembered = lru_cache(maxsize=1024)(carried)  # decorating takes longer than a unit, and RQ asks for each run, twice

    class UnitJob(Job):
        """A job whose function has a unit around it. What is stored in Redis is as ever."""

        @classmethod
        def create(cls, func: Any, *args: Any, **kwargs: Any) -> Job:
            """As RQ, with a warning if the work that the job is about is not committed."""
            name = str(getattr(func, "__name__", func))
            sending.noticed(f"job {name!r}", f"db.on_commit(queue.enqueue, {name.rpartition('.')[2]}, …)")
            made: Any = super()
            return made.create(func, *args, **kwargs)  # type: ignore[no-any-return]

        @property
        def func(self) -> Any:
            """The function, as this job runs it."""
            function: Any = super().func
            if function is None:
                return None
            known = remembered if isinstance(function, FunctionType) else carried  # what else there is may not be hashable
            return known(function, str(self.func_name))

    return UnitJob
