"""A function with a unit around it: the wrappers that ``@db.unit`` puts in its place, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.orm import Session

from tenure import callsite
from tenure.callsite import core_of
from tenure.core import events, retry
from tenure.core.current import innermost_open
from tenure.core.inject import Injection, carry_over, check, name_of
from tenure.core.options import UnitOptions
from tenure.core.session import UnitSession
from tenure.core.unit import BaseUnit
from tenure.engines.deadline import Deadline
from tenure.exceptions import DeadlineExceeded, UnsupportedCallable, annotate

if TYPE_CHECKING:
    from tenure.core.aio import AsyncDatabase
    from tenure.core.base import BaseDatabase
    from tenure.core.database import Database


class Carried:
    """A decorated function, and what both wrappers decide about a call of it."""

    def __init__(self, database: BaseDatabase[Any], function: Any, options: UnitOptions) -> None:
        check(function, is_async=database.is_async)
        self.database = database
        self.function = function
        self.options = options
        self.injection = Injection(function, database.gives)
        self.site = callsite.of_function(function)
        self.name = name_of(function)

    def under(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, BaseUnit[Any] | None]:
        """Whether a session was passed by hand, and the unit of this database it belongs to, which the call then joins."""
        given = self.injection.given(args, kwargs)
        if given is None:
            return False, None
        door = getattr(given, "sync_session", given)
        if not isinstance(door, UnitSession) or door.unit.database is not self.database:
            return True, None
        door.admit()
        here = innermost_open(self.database.current_place.here())
        return True, here if here is not None and here.root is door.unit else door.unit

    def call(self, unit: BaseUnit[Any], given: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function with the unit's session in its place."""
        if not given and self.injection.parameter is not None:
            placed, named = self.injection.place(unit.session, args, kwargs)
            try:
                return self.function(*placed, **named)
            except TypeError as error:
                if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # it was not even called
                    self.injection.recount(error, self.name, args, kwargs)
                raise
        return self.function(*args, **kwargs)

    def deadline(self) -> Deadline | None:
        """One for all runs of a call, which begins to count now."""
        return None if self.options.timeout is None else Deadline(self.options.timeout)

    def wait(self, attempt: int, unit: BaseUnit[Any], error: Exception) -> float | None:
        """Seconds to wait before another attempt, or None when there is to be none."""
        if self.options.retry is None or isinstance(error, DeadlineExceeded):
            return None
        seconds = retry.wait_before(attempt, self.options.retry, error, unit.outcome, refuted=unit.answer is False)
        if seconds is not None and unit.partly_stored:
            annotate(error, f"tenure: {unit.name!r} is not run again, because its checkpoint has committed a part of it.")
            return None
        if seconds is not None and unit.deadline is not None and seconds >= unit.deadline.left():
            annotate(error, f"tenure: {unit.name!r} is not run again, because its timeout leaves no time for it.")
            return None
        if seconds is not None:
            events.tell(events.Retried(self.database.name, unit.name, attempt, seconds, error))
        return seconds

    def dress(self, wrapper: Any) -> Any:
        """Let *wrapper* look like the function, without its session parameter."""
        carry_over(wrapper, self.function)
        self.injection.hide(wrapper)
        if self.options.propagation != "mandatory":
            wrapper.tenure_databases = (*getattr(self.function, "tenure_databases", ()), self.database)
        return wrapper


def brings_unit(function: Any, database: BaseDatabase[Any]) -> bool:
    """Whether *function* was decorated to open a unit of *database* by itself, so that a host need not."""
    return any(one is database for one in getattr(core_of(function), "tenure_databases", ()))


def _rewrapped(method: Any, change: Callable[[Any], Any]) -> Any:
    """A static or class method around the changed function of *method*."""
    return type(method)(change(method.__func__))


def decorate(database: Database, function: Any, options: UnitOptions) -> Any:
    """*function* with a unit of *database* around it."""
    if isinstance(function, (staticmethod, classmethod)):
        return _rewrapped(function, lambda inner: decorate(database, inner, options))
    carried = Carried(database, function, options)

    def once(unit: BaseUnit[Any], given: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            result = carried.call(unit, given, args, kwargs)
            if result is not None and inspect.iscoroutine(result):
                result.close()
                raise UnsupportedCallable(
                    f"{carried.name!r} returned a coroutine; its unit would end before that runs. Use AsyncDatabase, or asyncio.run(…) in it."
                )
        except BaseException as error:
            database.leave(unit, error, callsite.here(2) or carried.site)
            raise
        database.leave(unit, None, callsite.here(2) or carried.site)
        return result

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given, under = carried.under(args, kwargs)
        if given and under is None:  # a session of the caller's own: its life is the caller's business
            return function(*args, **kwargs)
        attempt, deadline = 1, carried.deadline()
        while True:
            unit = database.enter(options, carried.site, name=carried.name, under=under, deadline=deadline)
            try:
                return once(unit, given, args, kwargs)
            except Exception as error:
                attempt += 1
                seconds = carried.wait(attempt, unit, error)
                if seconds is None:
                    raise
            time.sleep(seconds)

    return carried.dress(wrapper)


def adecorate(database: AsyncDatabase, function: Any, options: UnitOptions) -> Any:
    """Coroutine *function* with a unit of *database* around it."""
    if isinstance(function, (staticmethod, classmethod)):
        return _rewrapped(function, lambda inner: adecorate(database, inner, options))
    carried = Carried(database, function, options)

    async def once(unit: BaseUnit[Any], given: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            result = await carried.call(unit, given, args, kwargs)
        except BaseException as error:
            await database.leave(unit, error, callsite.here(2) or carried.site)
            raise
        await database.leave(unit, None, callsite.here(2) or carried.site)
        return result

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        given, under = carried.under(args, kwargs)
        if given and under is None:
            return await function(*args, **kwargs)
        attempt, deadline = 1, carried.deadline()
        while True:
            unit = await database.enter(options, carried.site, name=carried.name, under=under, deadline=deadline)
            try:
                return await once(unit, given, args, kwargs)
            except Exception as error:
                attempt += 1
                seconds = carried.wait(attempt, unit, error)
                if seconds is None:
                    raise
            await asyncio.sleep(seconds)

    return carried.dress(wrapper)


class HasSession(Protocol):
    """What knows the session that is current when a function is called: a ``Database``, or a host that looks it up."""

    @property
    def session(self) -> Session:
        """That session."""
        ...


def fill(database: HasSession, function: Any) -> Any:
    """*function* with its session parameter filled in from the current unit; *function* itself if it has none.

    For hosts whose request is a unit already: the function is that unit's own code, and may be a generator.
    """
    injection = Injection(function, Session)
    if injection.parameter is None:
        return function

    site = callsite.of_function(function)

    def filled(*args: Any, **kwargs: Any) -> Any:
        if injection.given(args, kwargs) is None:
            session: Any = database.session
            if not callsite.is_users(session.unit.site):  # opened for this function by its host, with no user's line above it
                session.unit.site = site
            args, kwargs = injection.place(session, args, kwargs)
        return function(*args, **kwargs)

    carry_over(filled, function)
    injection.hide(filled)
    return filled


def fill_methods(database: HasSession, kind: type, called: Callable[[str], bool]) -> None:
    """``fill`` each method of *kind*, its own and inherited, whose name says that the host calls it."""
    for each in kind.__mro__:
        for name, function in list(vars(each).items()):
            if called(name) and inspect.isfunction(function) and (filled := fill(database, function)) is not function:
                setattr(each, name, filled)
