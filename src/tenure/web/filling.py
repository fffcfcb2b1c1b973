"""The session parameters of handlers, for frameworks that call them without asking what they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from tenure.core.base import BaseDatabase
from tenure.core.decorate import HasSession, fill, fill_methods
from tenure.exceptions import NoUnit


class SessionOf:
    """The session of whichever database the application has that calls a handler. A handler may belong to several of them.

    Args:
        which: Names that database, or what else has its session.

    """

    def __init__(self, which: Callable[[], HasSession]) -> None:
        self._which = which

    @property
    def session(self) -> Session:
        """The session of the request's unit."""
        return self._which().session


def session_in(database: BaseDatabase[Any], who: str, line: str) -> Any:
    """The session of the request's unit, for *who* asks for it.

    Raises:
        NoUnit: Requests have none; it says *line*: what to write, and where.

    """
    try:
        return database.session
    except NoUnit:
        raise NoUnit(f"{who} asks for a session of {database.name!r}, but its requests have no units. {line}") from None


def filled(source: HasSession, handler: Any, called: Callable[[str], bool] = str.isupper) -> Any:
    """*handler* with its session parameter filled in from *source*; a coroutine function is left to ``@db.unit``.

    Args:
        source: What has the session.
        handler: A function, or a class whose methods become filled in.
        called: Whether the framework calls a method of that name. Default: those that have the name of the request's, as ``GET``.

    """
    if isinstance(handler, type):
        fill_methods(source, handler, called)
    elif callable(handler) and not inspect.iscoroutinefunction(handler):
        return fill(source, handler)
    return handler
