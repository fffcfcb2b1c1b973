"""taskiq: each run of a task, and each retry, is a unit named after the task. It commits before the message is acknowledged."""

from __future__ import annotations

from typing import Any

from taskiq import AsyncBroker, TaskiqMessage, TaskiqMiddleware

from tenure.core.aio import AsyncDatabase
from tenure.exceptions import BadOption
from tenure.jobs import job, sending


def install(broker: AsyncBroker, database: AsyncDatabase) -> None:
    """Let each run of each task of *broker* be a unit of *database*. Call it before the tasks are defined.

    A run commits when its task returns and rolls back when it raises. taskiq acknowledges the message after it, where the broker has
    acknowledgements. Whatever ``InMemoryBroker`` runs within a unit has one of its own as well; a task that is awaited as a function
    joins. One that is decorated with ``@db.unit(...)`` has its own options and name.

    Raises:
        BadOption: *broker* is no ``AsyncBroker``, has tasks already, or was given *database* before; or *database* is no
            ``AsyncDatabase`` or was closed.

    """
    job.check_runner(broker, AsyncBroker, "install(broker, db)")
    if broker.local_task_registry:
        raise BadOption(
            "install(broker, …) comes after tasks of the broker were defined. Call it right after the broker was made."
        )
    job.take(broker, database, AsyncDatabase, "install(broker, …)")
    untyped: Any = broker
    earlier: Any = untyped.decorator_class

    class UnitTask(earlier):  # type: ignore[misc]
        """A task whose function has a unit around it."""

        def __init__(self, *, original_func: Any, task_name: str, **others: Any) -> None:
            self._joins = job.in_unit(database, original_func, task_name)
            made: Any = super()
            made.__init__(original_func=job.apart(database, self._joins), task_name=task_name, **others)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self._joins(*args, **kwargs)

    untyped.decorator_class = UnitTask
    broker.add_middlewares(_Sending())


class _Sending(TaskiqMiddleware):
    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Warn if the work that the task is about is not committed."""
        name = message.task_name
        sending.noticed(f"task {name!r}", f"db.on_commit({name.rpartition(':')[2].rpartition('.')[2]}.kiq, …)")
        return message
