"""Celery: each run of a task, and each retry, is a unit named after the task. It commits before the message is acknowledged."""

from __future__ import annotations

import inspect
from typing import Any, Final

from celery import Celery, current_task, signals
from celery.app import annotations as changing

from tenure.core.database import Database
from tenure.exceptions import BadOption
from tenure.jobs import job, sending

_signals: Any = signals  # Celery carries no types
_changing: Any = changing
_INSTEAD: Final = "Celery awaits nothing. Make it a plain def, which may call asyncio.run(…)."
_LATE: Final = ("task_acks_late", "task_reject_on_worker_lost")


def install(app: Celery, database: Database) -> None:
    """Let each run of each task of *app* be a unit of *database*.

    Call it right after ``Celery(...)``, before its tasks are used. A run commits when its task returns and rolls back when it raises,
    ``Retry`` and ``Ignore`` included. Whatever ``task_always_eager`` or ``apply()`` runs within a unit has one of its own as well;
    a task that is called as a function joins. A task that is decorated with ``@db.unit(...)`` has its own options and name.

    The message is acknowledged after the commit: the settings ``task_acks_late`` and ``task_reject_on_worker_lost`` are True unless
    the app says otherwise. So a task whose worker was killed runs again, even if the commit had just been done.

    Raises:
        BadOption: *app* is no ``Celery``, has bound tasks already, or was given *database* before; or *database* is no ``Database`` or
            was closed.

    """
    job.check_runner(app, Celery, "install(app, db)")
    untyped: Any = app
    earlier = vars(app).get("annotations")  # asked for when the first task is bound, and kept
    if untyped.finalized or not (earlier is None or any(isinstance(one, _InUnits) for one in earlier)):
        raise BadOption("install(app, …) comes after tasks of the app were used. Call it right after Celery(…).")
    job.take(app, database, Database, "install(app, …)")
    untyped.annotations = [_InUnits(database, app, earlier)]
    untyped.on_after_configure.connect(_acknowledge_late, dispatch_uid="tenure")
    if untyped.configured:
        _acknowledge_late(untyped.conf)
    _signals.before_task_publish.connect(_publishing, dispatch_uid="tenure")


def _acknowledge_late(source: Any, **_: Any) -> None:
    said = source.without_defaults()
    for setting in _LATE:
        if setting not in said:
            source[setting] = True


def _publishing(sender: str, headers: Any, **_: Any) -> None:
    if not headers.get("retries"):  # a retry is sent by the very run whose work is about to be rolled back
        sending.noticed(f"task {sender!r}", f"db.on_commit({sender.rpartition('.')[2]}.delay, …)")


class _InUnits:
    """What Celery asks for changes to each task, whatever its class is, as ``task_annotations`` has it.

    Celery takes those of the first that answers, so the others are asked from here.
    """

    def __init__(self, database: Database, app: Any, earlier: list[_InUnits] | None) -> None:
        self._database = database
        self._app = app
        self._earlier = earlier

    def annotate(self, task: Any) -> dict[str, Any]:
        """The attributes to set on *task*."""
        changes: dict[str, Any] = {}
        others = self._earlier or _changing.prepare(self._app.conf.task_annotations)
        for found in _changing.resolve_all(others, task):
            changes.update(found)
        if not task.name.startswith("celery."):  # Celery's own
            changes["run"] = self._carried(changes.get("run") or inspect.getattr_static(task, "run"), task.name)
        return changes

    def _carried(self, run: Any, name: str) -> Any:
        if isinstance(run, staticmethod):
            return staticmethod(self._carried(run.__func__, name))  # pyright: ignore[reportUnknownMemberType]
        return job.apart(self._database, job.in_unit(self._database, run, name, _INSTEAD), _is_eager)


def _is_eager() -> bool:
    return bool(getattr(getattr(current_task, "request", None), "is_eager", False))
