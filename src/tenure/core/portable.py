"""A ``Database`` goes to another process as the settings it was made with, and is made anew there, once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any, Final, Self

from tenure.engines import fork, presets
from tenure.exceptions import NotPicklable

# What a database was made with, by the number under which it goes to other processes. There one stands for all copies of one
# original: each would have connections of its own.
_HERE: Final[dict[str, Any]] = {}
_lock = threading.Lock()


class Portable:
    """What can be pickled if it was made from a URL. The pickle holds the URL with its password."""

    _given: tuple[tuple[Any, ...], dict[str, Any]]
    number: str | None = None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note what it is made with."""
        made = super().__new__(cls)
        made._given = args, options
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        args, options = self._given
        _refuse_local(type(self).__name__, [*args[:1], options.get("url_or_engine"), *_servers(options.get("replicas", ()))])
        with _lock:
            if self.number is None:
                self.number = uuid.uuid4().hex
                _HERE[self.number] = self
        return _arrived, (self.number, type(self), args, options)


def _servers(replicas: Any) -> Any:
    return getattr(replicas, "servers", replicas)


def _refuse_local(name: str, given: list[Any]) -> None:
    for one in given:
        if hasattr(one, "pool"):
            raise NotPicklable(
                f"this {name} was made from an engine, which belongs to one process. Make it from a URL; or leave it out, and let"
                " the other process import the module that makes it."
            )
        if one is not None and presets.is_in_memory(presets.parse(one)):
            raise NotPicklable(
                f"this {name} is in the memory of one process, and would be another, empty one elsewhere. Give it a file."
            )


def _arrived(number: str, kind: type[Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The database of this process that stands for the one which was pickled."""
    with _lock:
        found = _HERE.get(number)
        if found is None or found.supply.closed:
            found = _HERE[number] = kind(*args, **options)
            found.number = number  # it may be sent on
        return found


def _start_anew() -> None:
    global _lock
    _lock = threading.Lock()


fork.in_child(_start_anew)
