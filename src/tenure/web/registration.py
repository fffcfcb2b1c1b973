"""Registering an application: what it must be, once for each database, and in time. Adapters say where that can be seen."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

from tenure.core.base import BaseDatabase
from tenure.exceptions import BadOption
from tenure.web.boundary import Boundary

A = TypeVar("A")
B = TypeVar("B", bound=Boundary)
D = TypeVar("D", bound=BaseDatabase[Any])


def check_kind(app: object, kind: type, line: str) -> None:
    """Raise BadOption if *app* is not a *kind*. *line* is what one writes to register it."""
    if not isinstance(app, kind):
        name = f"{kind.__module__.partition('.')[0].capitalize()} application"
        raise BadOption(f"{type(app).__name__} is not a {name}. Give {line} the {kind.__name__}().")


def check_once(database: BaseDatabase[Any], known: Sequence[Any], line: str, own: int = 0) -> None:
    """Raise BadOption if *database* gives the application's requests their units already.

    Args:
        database: What is registered.
        known: What is known to be.
        line: What one writes to register it.
        own: How often this registration is itself among those known.

    """
    if known.count(database) > own:
        raise BadOption(f"the application is registered with {database.name!r} already. Leave one {line} out.")


def claim(known: list[Any], database: BaseDatabase[Any], line: str) -> None:
    """Add *database* to those that are *known* to the application, as ``check_once``."""
    check_once(database, known, line)
    known.append(database)


def check_in_time(started: bool, name: str, before: str) -> None:
    """Raise BadOption if the application has *started* to answer."""
    if started:
        raise BadOption(f"{name} is at work already. Register it where it is made, before {before}.")


def check_called(app: Any, takes: str, line: str) -> None:
    """Raise BadOption if *app* cannot be called as its server would: with the arguments that are named in *takes*."""
    if isinstance(app, BaseDatabase):
        raise BadOption(f"{line} was given the database as the application. The application comes first.")
    if not callable(app):
        raise BadOption(
            f"{type(app).__name__} is not an application, which is called with ({takes}). Give {line} the application."
        )
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):  # it does not tell
        return
    try:
        signature.bind(*takes.split(", "))
    except TypeError:
        raise BadOption(
            f"{type(app).__name__} is called with {signature}, not with ({takes}). Give {line} another kind."
        ) from None


class Layer(Generic[A, B]):
    """Middleware as servers know it: what stands around an application, and is called in its place.

    Args:
        app: The application.
        takes: The arguments with which its server calls it.
        boundary: Makes what it has decided about its requests.

    """

    def __init__(self, app: A, takes: str, boundary: Callable[[], B]) -> None:
        line = "UnitMiddleware(app, db)"
        check_called(app, takes, line)
        self.app = app
        self.boundary = boundary()
        check_once(self.boundary.database, list(layers(app)), line)

    @classmethod
    def around(cls, app: A, boundary: B) -> Self:
        """Wrap *app* for a framework that knows by itself what it is."""
        made = cls.__new__(cls)
        made.app, made.boundary = app, boundary
        return made


def as_layer(app: object) -> Layer[Any, Any] | None:
    """*app*, if it is a layer."""
    return app if isinstance(app, Layer) else None  # pyright: ignore[reportUnknownVariableType]


def layers(app: Any) -> Iterator[BaseDatabase[Any]]:
    """The databases of the layers that stand around the application in *app*."""
    while (layer := as_layer(app)) is not None:
        yield layer.boundary.database
        app = layer.app


class Extension(ABC, Generic[A, D]):
    """Is registered as Flask's extensions are: ``Tenure(app, db)``, or ``Tenure(database=db)`` and later ``init_app(app)``."""

    kind: type[Any]

    def __init__(self, app: A | None, database: D | None, rules: Mapping[str, Any]) -> None:
        self._database = database
        self._rules = rules
        if app is not None:
            self.init_app(app)

    def init_app(self, app: A, database: D | None = None) -> None:
        """Register *app*, with *database* where the constructor got none.

        Raises:
            BadOption: As the constructor.

        """
        check_kind(app, self.kind, "Tenure(app, db)")
        database = self._database if database is None else database
        if database is None:
            raise BadOption("Tenure has no database. Write Tenure(app, db), or init_app(app, db).")
        self.register(app, database, self._rules)

    @abstractmethod
    def register(self, app: A, database: D, rules: Mapping[str, Any]) -> None:
        """Give the requests of *app* units of *database*."""
