"""What every runner's file says about a job: that it is a unit of its own, and which databases a runner takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from tenure.callsite import core_of
from tenure.core.base import BaseDatabase
from tenure.core.decorate import brings_unit
from tenure.core.inject import USE_ASYNC
from tenure.core.inject import check as check_carries
from tenure.exceptions import BadOption

MAKE_IT_PLAIN: Final = "Make it a plain def, or decorate it with @db.unit of an AsyncDatabase."
"""What to do with an ``async def`` where the runner awaits it, and gives units of a ``Database``."""

_GIVEN: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()


def check(database: Any, kind: type[BaseDatabase[Any]], call: str) -> None:
    """Raise BadOption if *database*, given to *call*, is not of the *kind* that the runner can wait for, or was closed."""
    if not isinstance(database, kind):
        raise BadOption(
            f"{call}: {type(database).__name__} is not a {kind.__name__}. Give the one whose units the jobs are to be."
        )
    if database.supply.closed:
        raise BadOption(f"{call}: {database.name!r} is closed. Give the jobs one that is open.")


def check_runner(runner: Any, kind: type, call: str) -> None:
    """Raise BadOption if *runner*, the first argument of *call*, is not of its *kind*, as when the two were swapped."""
    if not isinstance(runner, kind):
        raise BadOption(f"{call}: {type(runner).__name__} is no {kind.__name__}. Give that first, and the database after it.")


def take(runner: Any, database: Any, kind: type[BaseDatabase[Any]], call: str) -> None:
    """As ``check``, and note that the jobs of *runner* are units of *database*; BadOption if they are already."""
    check(database, kind, call)
    given = _GIVEN.setdefault(runner, WeakSet())
    if database in given:
        raise BadOption(f"{call} was called before with this one and {database.name!r}. Once is enough for all its jobs.")
    given.add(database)


def in_unit(database: BaseDatabase[Any], function: Any, name: str, instead: str = USE_ASYNC) -> Any:
    """*function* as a job: in a unit called *name*, unless it brings one by ``@db.unit``.

    Raises:
        UnsupportedCallable: *function* cannot carry a unit, as a generator, or as a coroutine; then *instead* says what to do.

    """
    if brings_unit(function, database):
        return function
    if not isinstance(function, (staticmethod, classmethod)):
        check_carries(function, is_async=database.is_async, instead=instead)
    either: Any = database
    return either.unit(name=name)(function)


def brings_loop(function: Any) -> bool:
    """Whether *function* is a coroutine function with a unit of its own, as of an ``AsyncDatabase``: it is let be where it is awaited."""
    inner = core_of(function)
    return iscoroutinefunction(inner) and hasattr(inner, "tenure_databases")


def _always() -> bool:
    return True


def apart(database: BaseDatabase[Any], job: Any, inside: Callable[[], bool] = _always) -> Any:
    """*job*, which has no part in a unit of its caller's, where *inside* says that the runner may call it within one."""
    place = database.current_place

    @wraps(job)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not inside():
            return job(*args, **kwargs)
        with place.apart():
            return job(*args, **kwargs)

    @wraps(job)
    async def arun(*args: Any, **kwargs: Any) -> Any:
        with place.apart():
            return await job(*args, **kwargs)

    return arun if database.is_async else run
