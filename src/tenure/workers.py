"""Who works: the thread or asyncio task in which code runs, known in a way that keeps neither alive longer than it lives."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any


def here() -> Any:
    """The running task, weakly, else the thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        task = None
    return threading.current_thread() if task is None else weakref.ref(task)


def alive(worker: Any) -> Any:
    """*worker* itself, or None for a task that is gone."""
    return worker() if isinstance(worker, weakref.ref) else worker  # pyright: ignore[reportUnknownVariableType]


def is_gone(worker: Any) -> bool:
    """Whether *worker* has ended, so that nobody can go on where it stopped."""
    worker = alive(worker)
    if isinstance(worker, threading.Thread):
        return not worker.is_alive()
    return worker is None or (isinstance(worker, asyncio.Task) and worker.done())


def describe(worker: Any) -> str:
    """``thread 'Thread-3'`` or ``task 'fetch_a'``."""
    worker = alive(worker)
    if isinstance(worker, asyncio.Task):
        return f"task {worker.get_name()!r}"
    return f"thread {worker.name!r}" if isinstance(worker, threading.Thread) else "an owner that is gone"
