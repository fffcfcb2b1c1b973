"""How a decorated function gets its session: which parameter takes it, and what the caller sees instead."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Union, get_args, get_origin

from sqlalchemy.orm import Session, scoped_session

from tenure.callsite import core_of, of_function, source_of, words
from tenure.exceptions import UnsupportedCallable

USE_ASYNC: Final = "Use AsyncDatabase, or a plain def."
_SESSION_NAME = re.compile(r"\b(?:Async)?Session\b")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def name_of(function: Any) -> str:
    """The name by which errors and logs call a unit around *function*."""
    given = function.func if isinstance(function, functools.partial) else function
    return str(getattr(given, "__qualname__", type(given).__qualname__)).rsplit("<locals>.", 1)[-1]


def check(function: Any, *, is_async: bool, instead: str = USE_ASYNC) -> None:
    """Raise UnsupportedCallable for what cannot carry a unit, with the remedy; *instead* is that for ``async def`` under a ``Database``."""
    inner = core_of(function)
    where = f"{name_of(function)!r} ({words(of_function(function))})"
    opened = "async with db.unit()" if is_async else "with db.unit()"
    if isinstance(function, type):
        raise UnsupportedCallable(f"{where} is a class; decorate its methods.")
    if not callable(function):
        raise UnsupportedCallable(f"{function!r} cannot be called. Options go by keyword: db.unit(readonly=True).")
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise UnsupportedCallable(
            f"{where} is a generator; its unit would end before the first row. Open the unit inside it: {opened} as session."
        )
    coroutine = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(function)
    if coroutine and not is_async:
        raise UnsupportedCallable(f"{where} is async def under a Database; its unit would end before the body runs. {instead}")
    if is_async and not coroutine:
        raise UnsupportedCallable(
            f"{where} is a plain function under an AsyncDatabase; nobody could await its COMMIT. Make it async def."
        )


class Injection:
    """Where the session goes in the calls of one function.

    Args:
        function: What is decorated.
        session_class: ``Session`` or ``AsyncSession``, as the database gives it.

    Raises:
        UnsupportedCallable: More than one parameter could take the session, or one asks for the other face's.

    """

    def __init__(self, function: Any, session_class: type) -> None:
        self.session_class = session_class
        try:
            self.signature = inspect.signature(function)
        except ValueError:  # a builtin that does not tell its parameters
            self.signature = inspect.signature(_untold)
        parameters = list(self.signature.parameters.values())
        self.parameter = _parameter(function, parameters, session_class)
        positional = [one.name for one in parameters if one.kind in _POSITIONAL]
        self.index = positional.index(self.parameter) if self.parameter in positional else None

    def hide(self, wrapper: Any) -> None:
        """Let the session parameter vanish from the signature and annotations of *wrapper*."""
        wrapper.__signature__ = self.shown()
        annotations = getattr(wrapper, "__annotations__", {})
        wrapper.__annotations__ = {name: one for name, one in annotations.items() if name != self.parameter}

    def shown(self) -> inspect.Signature:
        """The signature as callers see it."""
        return self.signature.replace(
            parameters=[one for one in self.signature.parameters.values() if one.name != self.parameter]
        )

    def recount(self, error: TypeError, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let *error*, by which Python refused a call, speak of the arguments that the caller knows of: it counts the session."""
        try:
            self.shown().bind(*args, **kwargs)
        except TypeError as wrong:
            error.args = (f"{name}{self.shown()}: {wrong}",)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The session that the caller passed by hand, or None."""
        if self.parameter is None:
            return None
        if self.parameter in kwargs:
            return kwargs[self.parameter]
        if (
            self.index is not None
            and len(args) > self.index
            and isinstance(args[self.index], (Session, scoped_session, self.session_class))
        ):
            return args[self.index]
        return None

    def place(self, session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with *session* in its place."""
        if self.parameter is None:
            return args, kwargs
        if self.index is not None and len(args) >= self.index and self.parameter not in kwargs:  # there it is None
            return (*args[: self.index], session, *args[self.index :]), kwargs
        return args, {**kwargs, self.parameter: session}


def _untold(*args: Any, **kwargs: Any) -> None:
    pass


def _parameter(function: Any, parameters: list[inspect.Parameter], session_class: type) -> str | None:
    found = [one for one in parameters if _takes(function, one, session_class)]
    if len(found) > 1:
        found = [one for one in found if one.name == "session"] or found
    if len(found) > 1:
        names = " and ".join(one.name for one in found)
        where = f"{name_of(function)!r} ({words(of_function(function))})"
        raise UnsupportedCallable(f"{where} has two parameters for a session, {names}. Call the one to fill 'session'.")
    if found:
        return found[0].name
    named = [one for one in parameters if one.name == "session" and one.annotation in (inspect.Parameter.empty, Any)]
    return named[0].name if named else None


def _takes(function: Any, parameter: inspect.Parameter, session_class: type) -> bool:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = _resolved(function, annotation)
    if isinstance(annotation, str):  # a name that is imported for type checkers only: judged by the name itself
        return bool(_SESSION_NAME.search(annotation)) and "scoped_session" not in annotation
    kinds = [one for one in _kinds(annotation) if isinstance(one, type)]
    if any(issubclass(one, session_class) for one in kinds):
        return True
    for one in kinds:
        if issubclass(one, Session) or any(base.__name__ == "AsyncSession" for base in one.__mro__):
            where = f"{name_of(function)!r} ({words(of_function(function))})"
            raise UnsupportedCallable(
                f"{where} asks for {one.__name__}, but this database gives {session_class.__name__}. Annotate it as that."
            )
    return False


def _resolved(function: Any, annotation: str) -> Any:
    inner = source_of(function)
    names = dict(getattr(inner, "__globals__", {}))
    try:
        names.update(inspect.getclosurevars(inner).nonlocals)
        return eval(annotation, names)  # noqa: S307 - the function's own annotation, as typing.get_type_hints() evaluates it
    except Exception:  # whatever keeps it from being evaluated, its text is left to judge by
        return annotation


def _kinds(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for one in get_args(annotation) for kind in _kinds(one)]
    return [annotation]


def carry_over(wrapper: Callable[..., Any], function: Any) -> None:
    """Give *wrapper* the name, module and documentation of *function*, which may be a partial or an object."""
    given = function.func if isinstance(function, functools.partial) else function
    functools.update_wrapper(wrapper, given)
    wrapper.__wrapped__ = function  # type: ignore[attr-defined]
    if not hasattr(given, "__name__"):
        wrapper.__name__ = wrapper.__qualname__ = type(given).__name__
