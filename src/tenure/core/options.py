"""What a unit may be asked for: frozen settings, validated once, when they are made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

from sqlalchemy.orm import Session

from tenure.checks import check_seconds
from tenure.exceptions import BadOption

Propagation: TypeAlias = Literal["required", "new", "nested", "mandatory", "never"]
Hold: TypeAlias = Literal["auto", "transaction"]
GuardMode: TypeAlias = Literal["off", "warn", "raise"]

# Weakest first. SNAPSHOT is SQL Server's; it sees one snapshot as REPEATABLE READ does.
ISOLATIONS: Final = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SNAPSHOT", "SERIALIZABLE")

# The checks that can be switched off. What has no slug here is a rule and always holds.
GUARDS: Final = (
    "blocked-loop",
    "concurrent-use",
    "detached",
    "early-enqueue",
    "foreign-context",
    "leaked-unit",
    "read-only-unit",
    "second-connection",
    "unit-ended",
)

# What a Session is given by its unit, and nobody else.
FINAL: Final = frozenset(["bind", "binds", "close_resets_only", "autobegin", "twophase", "join_transaction_mode"])


def strength(isolation: str) -> int:
    """How strong *isolation* is; a name that is not known counts as the strongest."""
    return ISOLATIONS.index(isolation) if isolation in ISOLATIONS else len(ISOLATIONS)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a decorated function may run again, and how long to wait in between.

    The wait before attempt *n* is a random number of seconds from 0 to ``min(longest, first * 2 ** (n - 2))``: "full
    jitter", after Marc Brooker, *Exponential Backoff and Jitter*, AWS Architecture Blog, 2015.

    Args:
        attempts: How often the function may run in all; at least 1. Default 3.
        first: Upper bound of the first wait, in seconds. Default 0.05.
        longest: Upper bound of every wait, in seconds. Default 2.0.

    Raises:
        BadOption: A value is out of range.

    """

    attempts: int = 3
    first: float = 0.05
    longest: float = 2.0

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise BadOption(f"Retry(attempts={self.attempts!r}): give a whole number of runs, at least 1.")
        for name in ("first", "longest"):
            check_seconds(f"Retry({name})", getattr(self, name))


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """The options of ``db.unit(...)``; see there."""

    readonly: bool = False
    propagation: Propagation = "required"
    isolation: str | None = None
    hold: Hold | None = None
    retry: Retry | None = None
    timeout: float | None = None
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    verify_commit: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        _choice("readonly", self.readonly, (True, False))
        _choice("propagation", self.propagation, get_args(Propagation))
        _choice("verify_commit", self.verify_commit, (True, False))
        _choice("hold", self.hold, (None, *get_args(Hold)))
        if self.timeout is not None:
            check_seconds("timeout", self.timeout, above=0.0)
        _text("name", self.name)
        object.__setattr__(self, "isolation", _isolation(self.isolation))
        object.__setattr__(self, "retry", _retry(self.retry))
        object.__setattr__(self, "settings", _settings(self.settings))


class Options(TypedDict, total=False):
    """The same by name, as ``db.unit(...)`` takes them."""

    readonly: bool
    propagation: Propagation
    isolation: str | None
    hold: Hold | None
    retry: Retry | int | None
    timeout: float | None
    settings: Mapping[str, str | int | float | bool]
    verify_commit: bool
    name: str | None


def _choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
        raise BadOption(f"{name}={value!r}: give one of {', '.join(repr(one) for one in allowed)}.")


def _text(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise BadOption(f"{name}={value!r}: give the text by which errors and logs call this.")


def _isolation(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadOption(f"isolation={value!r}: give one of {', '.join(map(repr, ISOLATIONS))}.")
    name = value.upper().replace("_", " ")
    if name == "AUTOCOMMIT":
        raise BadOption(
            "isolation='AUTOCOMMIT': a unit is a transaction. Plain reads run in autocommit by themselves (hold='auto')."
        )
    if name not in ISOLATIONS:
        raise BadOption(f"isolation={value!r}: give one of {', '.join(map(repr, ISOLATIONS))}.")
    return name


def _retry(value: object) -> Retry | None:
    if value is None or isinstance(value, Retry):
        return value
    if type(value) is int:
        return Retry(attempts=value)
    raise BadOption(f"retry={value!r}: give the number of runs in all, or Retry(attempts=…, first=…, longest=…).")


def _settings(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise BadOption(f"settings={value!r}: give a mapping from the names of server settings to their values.")
    found: dict[str, str] = {}
    given: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    for name, setting in given.items():
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise BadOption(f"settings: {name!r} is not the name of a server setting.")
        if not isinstance(setting, (str, int, float, bool)):
            raise BadOption(f"settings[{name!r}]: give text, a number or a truth value, not {type(setting).__name__}.")
        found[name] = ("on" if setting else "off") if isinstance(setting, bool) else str(setting)
    return MappingProxyType(found)


def beyond(asked: UnitOptions, given: UnitOptions, isolation: str | None, hold: Hold) -> str | None:
    """What a unit *asked* for on joining, and the outer one does not give, in words; None if that is nothing.

    Args:
        asked: The options of the one that joins.
        given: Those of the outer one.
        isolation: The outer one's, as far as it is known; asked for only where *asked* has one.
        hold: The outer one's.

    """
    if asked.retry is not None:
        return "retry=, which runs the whole unit again; only its owner may do that"
    if asked.isolation is not None and (isolation is None or strength(asked.isolation) > strength(isolation)):
        return f"isolation={asked.isolation!r}, and the outer unit gives {isolation or 'what the database has by default'!r}"
    if asked.hold == "transaction" and hold != "transaction":
        return "hold='transaction', and the outer unit holds by statement"
    if any(given.settings.get(key) != value for key, value in asked.settings.items()):
        return "settings= that the outer unit does not have"
    if asked.verify_commit and not given.verify_commit:
        return "verify_commit=True, and the outer unit does not verify its COMMIT"
    return None


_NAMES: Final = frozenset(one.name for one in fields(UnitOptions))


def unit_options(values: Mapping[str, Any]) -> UnitOptions:
    """``UnitOptions`` of keyword arguments; those of hashable values are made once and remembered.

    Raises:
        BadOption: A name is not an option, or a value is not one it takes.

    """
    if not values:
        return DEFAULT
    try:
        return _remembered(tuple(values.items()), tuple(map(type, values.values())))
    except TypeError:  # a value that is not hashable: settings={...}
        return _made(values)


@lru_cache(maxsize=256)
def _remembered(items: tuple[tuple[str, Any], ...], _types: tuple[type, ...]) -> UnitOptions:  # for True and 1 are equal
    return _made(dict(items))


def _made(values: Mapping[str, Any]) -> UnitOptions:
    if unknown := sorted(values.keys() - _NAMES):
        raise BadOption(f"unit({unknown[0]}=…): there is no such option. The options are {', '.join(sorted(_NAMES))}.")
    return UnitOptions(**values)


DEFAULT: Final = UnitOptions()


def session_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keyword arguments for every ``Session``: tenure's own defaults and what was *given*.

    Raises:
        BadOption: One is tenure's to set, or ``Session`` takes no such argument.

    """
    found = {"expire_on_commit": False, **(given or {})}
    for name in found:
        if name in FINAL:
            raise BadOption(f"session_options[{name!r}]: tenure sets this itself. Leave it out.")
    known = inspect.signature(Session).parameters
    if unknown := sorted(found.keys() - known.keys()):
        raise BadOption(f"session_options[{unknown[0]!r}]: Session takes no such argument.")
    return found


def guard_modes(asked: Mapping[str, GuardMode] | GuardMode | None) -> dict[str, GuardMode]:
    """A mode for each guard: *asked* for all of them at once or by slug; ``"raise"`` where nothing was said.

    Raises:
        BadOption: A slug is not a guard's, or a mode is none of off, warn, raise.

    """
    modes: dict[str, GuardMode] = dict.fromkeys(GUARDS, "raise")
    if asked is None:
        return modes
    chosen: dict[str, GuardMode] = dict.fromkeys(GUARDS, asked) if isinstance(asked, str) else dict(asked)
    for slug, mode in chosen.items():
        if slug not in modes:
            raise BadOption(
                f"guards: {slug!r} is not a guard. The guards are {', '.join(GUARDS)}; all else is a rule and always holds."
            )
        _choice(f"guards[{slug!r}]", mode, get_args(GuardMode))
        modes[slug] = mode
    return modes
