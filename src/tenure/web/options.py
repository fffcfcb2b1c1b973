"""With which options the unit of a request opens: the same for all, or by what the host knows of the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any, Final, TypeAlias, TypeVar

from tenure.core.options import UnitOptions, unit_options

V = TypeVar("V")

# WSGI's environ, ASGI's scope, or the request of a framework that has neither.
Ask: TypeAlias = "V | Callable[[Any], V]"

_SAID: Final = {"true": True, "false": False}


def from_text(name: str, given: Any) -> Any:
    """The rule *name* as a file of settings has it: text of a value, or the dotted name of a function. What is no text stays as it is."""
    if not isinstance(given, str) or name in ("commit", "position_cookie"):
        return given
    with suppress(ValueError):
        return float(given)
    said = _SAID.get(given.lower())
    return resolve_name(given) if said is None else said


class RequestOptions:
    """Those options of ``unit()`` that a request's can have.

    Args:
        given: By name: a value, or a function of the request, which is called when the unit opens.

    Raises:
        BadOption: A value is not one that the option takes.

    """

    def __init__(self, **given: Any) -> None:
        self._asked: dict[str, Callable[[Any], Any]] = {name: value for name, value in given.items() if callable(value)}
        self._values = {name: value for name, value in given.items() if name not in self._asked and value is not None}
        self.fixed = unit_options(self._values)

    def of(self, request: Any) -> UnitOptions:
        """The options for *request*. What is None for it is as if it had not been given.

        Raises:
            BadOption: A function has given what its option does not take.

        """
        if not self._asked:
            return self.fixed
        found: Mapping[str, Any] = {name: ask(request) for name, ask in self._asked.items()}
        return unit_options(self._values | {name: value for name, value in found.items() if value is not None})
