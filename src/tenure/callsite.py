"""The user's line: where a unit was opened or a statement was run, kept as code and line, put into words only for a report."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeAlias

import sqlalchemy

Site: TypeAlias = tuple[CodeType, int]

_LIBRARY = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep for path in (__file__, str(sqlalchemy.__file__), str(contextlib.__file__))
)
_DECORATORS = 32  # above one function; more of them are a circle
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_COMMANDS = sysconfig.get_path("scripts") + os.sep  # `uvicorn`, `celery`: written by the installer, without ".py"
_BOUNDARIES = os.path.join(_LIBRARY[0], "web", "")
_LOOPS = tuple(os.path.join(_LIBRARY[2], "asyncio", name) for name in ("base_events.py", "events.py", "runners.py"))

# Whose line a file's lines are, remembered by file name: 0 the user's, 1 an installed package's, 2 tenure's, SQLAlchemy's
# or the standard library's, 3 a web boundary's, 4 an event loop's. One entry a source file, so it does not grow with use.
_RANKS: dict[str, int] = {}


def _rank(filename: str) -> int:
    if filename.startswith(_BOUNDARIES):
        rank = 3
    elif filename in _LOOPS:
        rank = 4
    elif any(part in filename for part in _INSTALLED):
        rank = 2 if filename.startswith(_LIBRARY[:2]) else 1
    elif filename.startswith(_COMMANDS) and not filename.endswith(".py"):
        rank = 1
    else:
        rank = 2 if filename.startswith((*_LIBRARY, "<frozen", "<sqlalchemy")) else 0
    _RANKS[filename] = rank
    return rank


def _is_users(code: CodeType) -> bool:
    rank = _RANKS.get(code.co_filename)
    return (_rank(code.co_filename) if rank is None else rank) == 0


def is_users(site: Site | None) -> bool:
    """Whether *site* is a line of the user's own code, not of an installed package."""
    return site is not None and _is_users(site[0])


def here(depth: int = 1) -> Site | None:
    """The innermost line of the user's code above the caller, or of an installed package if no other frame is left.

    In a greenlet of SQLAlchemy's asyncio bridge the walk goes on in the coroutine that waits for it.
    """
    try:
        frame = sys._getframe(depth)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, with an underscore
    except ValueError:  # a greenlet's stack may be shorter; what it has are frames of tenure and SQLAlchemy
        return of_frame(None)
    code = frame.f_code
    if _RANKS.get(code.co_filename) == 0:  # as a rule: nothing to look for
        return code, frame.f_lineno or code.co_firstlineno
    return of_frame(frame)


def greenlet_finder() -> Callable[[], Any] | None:
    """``greenlet.getcurrent``, or None where nobody has loaded that library: then there are threads only.

    It is not loaded here. A program that does without would pay 1.1 MiB, and for the import 3 % of what SQLAlchemy takes.
    """
    return getattr(sys.modules.get("greenlet"), "getcurrent", None)


def of_frame(frame: FrameType | None) -> Site | None:
    """The user's line at or above *frame*.

    Beyond the boundary of a web request is the server: no line there, as that of ``uvicorn.run(app)``, is one of the request. Beyond
    an event loop is whoever runs it: ``asyncio.run(main())`` is not where a task works.
    """
    second: Site | None = None
    bridge: Any = None
    while True:
        while frame is not None:
            code = frame.f_code
            rank = _RANKS.get(code.co_filename)
            if rank is None:
                rank = _rank(code.co_filename)
            if rank == 0:
                return code, frame.f_lineno or code.co_firstlineno
            if rank == 1:
                second = second or (code, frame.f_lineno or code.co_firstlineno)
            elif rank > 2 and (rank == 4 or second is not None):
                return second
            frame = frame.f_back
        greenlets = greenlet_finder()
        if greenlets is None:
            return second
        bridge = greenlets().parent if bridge is None else bridge.parent
        if bridge is None:
            return second
        frame = bridge.gr_frame


def of_error(error: BaseException) -> Site | None:
    """The user's line at which *error* was raised: the innermost one of its traceback."""
    found: Site | None = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if _is_users(code) and not _is_generated(trace.tb_frame):
            found = (code, trace.tb_lineno)
        trace = trace.tb_next
    return found


def _is_generated(frame: FrameType) -> bool:
    """Whether *frame* is code that was made from text for tenure or SQLAlchemy, as the ``__init__`` of a dataclass is."""
    if frame.f_code.co_filename != "<string>":  # which is where the program of ``python -c`` is, too
        return False
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("tenure", "sqlalchemy")


def of_task(task: Any) -> Site | None:
    """The user's line at which a suspended asyncio task waits: the innermost of its chain of coroutines. None for what is no task."""
    found: Site | None = None
    coro = task.get_coro() if hasattr(task, "get_coro") else None
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "ag_frame", None) or getattr(coro, "gi_frame", None)
        if frame is not None and _is_users(frame.f_code):
            found = (frame.f_code, frame.f_lineno)
        coro = getattr(coro, "cr_await", None) or getattr(coro, "ag_await", None) or getattr(coro, "gi_yieldfrom", None)
    return found


def of_thread(thread: Any) -> Site | None:
    """The user's line at which a thread is now."""
    frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, with an underscore
    frame = frames.get(getattr(thread, "ident", None) or 0)
    while frame is not None and not _is_users(frame.f_code):
        frame = frame.f_back
    return None if frame is None else (frame.f_code, frame.f_lineno)


def of_worker(worker: Any) -> Site | None:
    """The user's line at which a thread or task is now; None for one that is gone."""
    if hasattr(worker, "gr_frame"):
        return of_frame(worker.gr_frame) if worker.gr_frame is not None else None
    return of_task(worker) if hasattr(worker, "get_coro") else of_thread(worker)


def core_of(function: Any) -> Any:
    """The Python function behind a partial, a bound method or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.ismethod(function):
        function = function.__func__
    if not inspect.isroutine(function) and not isinstance(function, type):
        call: Any = type(function).__call__ if callable(function) else None  # pyright: ignore[reportUnknownMemberType]
        function = call if inspect.isfunction(call) else function
    return function


def source_of(function: Any) -> Any:
    """The function as it was written, behind its decorators as far as they tell (``functools.wraps``)."""
    for _ in range(_DECORATORS):
        inner = getattr(function, "__wrapped__", None) or getattr(core_of(function), "__wrapped__", None)
        if inner is None:
            break
        function = inner
    return core_of(function)


def of_function(function: Any) -> Site | None:
    """Where *function* was written, if that was in Python."""
    code = getattr(source_of(function), "__code__", None)
    return (code, code.co_firstlineno) if isinstance(code, CodeType) else None


def words(site: Site | None) -> str:
    """``feed.py:24``, or ``an unknown line``."""
    return "an unknown line" if site is None else f"{os.path.basename(site[0].co_filename)}:{site[1]}"
