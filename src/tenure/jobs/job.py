"""What every runner's file says about a job: that it is a unit of its own, and which databases a runner takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from tenure.core.base import BaseDatabase
from tenure.core.decorate import brings_unit
from tenure.exceptions import BadOption

_GIVEN: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()


def take(runner: Any, database: Any, kind: type[BaseDatabase[Any]], call: str) -> None:
    """Note that the jobs of *runner* are units of *database*.

    Raises:
        BadOption: *database* is not of the *kind* that this runner can wait for, or was closed, or *runner* has it already.

    """
    if not isinstance(database, kind):
        raise BadOption(
            f"{call}: {type(database).__name__} is not a {kind.__name__}. Give the one whose units the jobs are to be."
        )
    if database.supply.closed:
        raise BadOption(f"{call}: {database.name!r} is closed. Give the jobs one that is open.")
    given = _GIVEN.setdefault(runner, WeakSet())
    if database in given:
        raise BadOption(f"{call} was called before with this app and {database.name!r}. Once is enough for all its jobs.")
    given.add(database)


def in_unit(database: BaseDatabase[Any], function: Any, name: str) -> Any:
    """*function* as a job: in a unit called *name*, unless it brings one by ``@db.unit``.

    Raises:
        UnsupportedCallable: *function* cannot carry a unit, as a generator.

    """
    either: Any = database
    return function if brings_unit(function, database) else either.unit(name=name)(function)


def apart_if(database: BaseDatabase[Any], job: Any, inside: Callable[[], bool]) -> Any:
    """*job*, which sees no unit of its caller's where *inside* says that the runner calls it in its caller's own thread."""

    @wraps(job)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not inside():
            return job(*args, **kwargs)
        with database.current_place.apart():
            return job(*args, **kwargs)

    return run
