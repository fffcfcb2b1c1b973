"""A child process starts clean: with pools, locks and books of its own, and nothing in it reaches what it has inherited.

After a fork parent and child have the same sockets. Whatever the child says there, be it the ROLLBACK with which a garbage
collector tidies up, the server takes for the parent's: its work is undone, and its COMMIT then succeeds all the same.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn, Protocol

from sqlalchemy.pool import ConnectionPoolEntry

from tenure.callsite import here, words
from tenure.engines.sockets import Descriptor
from tenure.exceptions import ForkedUnit


class Heir(Protocol):
    """What a child must not use as the fork has left it."""

    def start_anew(self) -> None:
        """Called in a child. Its one thread is the one that has forked; a lock may be held by another, for ever."""


_HEIRS: Final[weakref.WeakSet[Heir]] = weakref.WeakSet()
_INHERITED: Final[list[object]] = []
_ours = os.getpid()
_parents = _ours


def register(heir: Heir) -> None:
    """Have ``start_anew`` called in every child; *heir* is known weakly."""
    _HEIRS.add(heir)


def forget(heir: Heir) -> None:
    """Undo that."""
    _HEIRS.discard(heir)


def in_child(function: Callable[[], None]) -> None:
    """Call *function* in every child."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=function)


def processes() -> tuple[int, int]:
    """The numbers of the process that this one was forked from (its own if it was not) and of this one."""
    return _parents, _ours


def keep(*things: object) -> None:
    """Let *things* never go: neither a pool nor a driver is to tidy up what is the parent's."""
    if not _INHERITED:
        _outlive_python()
    _INHERITED.extend(things)


def _outlive_python() -> None:
    """Keep the list through the end of the process, too, at which Python empties its modules."""
    with suppress(ImportError, AttributeError):  # another Python than CPython, which calls nothing then
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_INHERITED))


class Severed:
    """In the place of a driver's connection that is the parent's."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ForkedUnit(
            f"a connection that was taken in process {_parents} was used in process {_ours}, at {words(here(2))} ({name})."
            " Take it after the fork."
        )

    def __setattr__(self, name: str, value: object) -> None:
        """Nothing is set on it."""

    def rollback(self) -> None:
        """Nothing is rolled back: the parent goes on."""

    def close(self) -> None:
        """Nothing is closed."""

    terminate = close


def sever(record: ConnectionPoolEntry, socket: Descriptor) -> None:
    """Cut a pooled connection off from its socket in this process, whoever has it; the parent's is not touched.

    Its descriptor then leads nowhere, for those who have the driver's own connection or a cursor of it in their hands. And when the
    parent dies its server notices at once, not when the last child ends.
    """
    driver = record.driver_connection
    if driver is None:  # it is closed
        return
    keep(driver, record.dbapi_connection)
    with suppress(Exception):  # each driver has its own error for a connection that it has closed itself
        descriptor = socket(driver)
        if descriptor is not None and descriptor >= 0:
            _lead_nowhere(descriptor)
    # Not documented as something to be set. Everything that SQLAlchemy does with a connection goes by these two attributes, and
    # to close or invalidate it would speak to the server. tests/core/test_fork.py fails when that changes.
    found: Any = record
    fairy = found.fairy_ref and found.fairy_ref()
    found.dbapi_connection = None  # as if it were closed
    if fairy is not None:
        keep(fairy)
        fairy.dbapi_connection = Severed()


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def _start_anew() -> None:
    global _ours, _parents
    _ours, _parents = os.getpid(), _ours
    for heir in list(_HEIRS):
        heir.start_anew()


in_child(_start_anew)
