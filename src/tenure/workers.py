"""Who works: the thread, greenlet or asyncio task in which code runs, known in a way that keeps none alive longer than it lives."""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from typing import Any, Final

from sqlalchemy.util.concurrency import in_greenlet

HOST: Final = object()  # in place of who works: a host that will end the unit, whoever has worked in it and is gone by then


def here() -> Any:
    """The running task, weakly, else the thread or greenlet."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        task = None
    return blocking() if task is None else weakref.ref(task)


def blocking() -> Any:
    """The greenlet in which code that blocks runs, weakly, else the thread."""
    modules = sys.modules
    if "gevent" not in modules and "eventlet" not in modules:
        return threading.current_thread()
    own = green()
    return threading.current_thread() if own is None else weakref.ref(own)


def green() -> Any:
    """The greenlet of gevent's or eventlet's in which code runs; None in a thread's main greenlet, and in SQLAlchemy's for asyncio."""
    modules = sys.modules
    if "gevent" not in modules and "eventlet" not in modules:
        return None
    own = modules["greenlet"].getcurrent()
    return None if own.parent is None or in_greenlet() else own


def alive(worker: Any) -> Any:
    """*worker* itself, or None for a task or greenlet that is gone."""
    return worker() if isinstance(worker, weakref.ref) else worker  # pyright: ignore[reportUnknownVariableType]


def is_gone(worker: Any) -> bool:
    """Whether *worker* has ended, so that nobody can go on where it stopped."""
    worker = alive(worker)
    if worker is HOST:
        return False
    if isinstance(worker, asyncio.Task):
        return worker.done()
    if hasattr(worker, "gr_frame"):
        return bool(worker.dead)
    return worker is None or not worker.is_alive()  # gevent and eventlet have threads of their own make


def describe(worker: Any) -> str:
    """``thread 'Thread-3'``, ``task 'fetch_a'`` or ``greenlet 'Greenlet-7'``."""
    worker = alive(worker)
    if worker is None:
        return "an owner that is gone"
    if worker is HOST:
        return "its host"
    if isinstance(worker, asyncio.Task):
        return f"task {worker.get_name()!r}"
    if hasattr(worker, "gr_frame"):
        return f"greenlet {getattr(worker, 'name', None) or hex(id(worker))!r}"
    return f"thread {worker.name!r}"
