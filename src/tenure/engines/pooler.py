"""PgBouncer in transaction mode: the settings for it, what is refused behind it, and a note where they are missing.

Between two transactions such a pooler hands a server connection to another client. So nothing may be left on it: no prepared
statement, no ``SET``, no lock. One plain read in autocommit is a transaction of its own, if all its parts go out at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL, Engine

from tenure import callsite
from tenure.callsite import words
from tenure.exceptions import BadOption, PoolerRefused, annotate


def _unnamed() -> str:
    """The name of each statement: none. Such a one asyncpg sends together with its execution when its cache is off; one with a
    name it sends before. SQLAlchemy's recipe of unique names fails in autocommit, and leaves statements on the server.
    """
    return ""


_CONNECT: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "psycopg": {"prepare_threshold": None},
        "psycopg2": {},  # prepares nothing
        "asyncpg": {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": _unnamed,
        },
    }
)
POOLERS: Final = ("pgbouncer",)
_MARK: Final = "tenure_pooler"  # execution option of an engine that has the preset

_XACT: Final = "Take pg_advisory_xact_lock() or pg_try_advisory_xact_lock(), which end with the transaction."
_SETTINGS: Final = "Give the unit settings={…}, or say SET LOCAL: both end with the transaction."
_DIRECT: Final = "Give what needs it a Database of its own on a URL of the server itself, past the pooler."
_INSTEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "set": _SETTINGS,
        "reset": _SETTINGS,
        "listen": _DIRECT,
        "unlisten": _DIRECT,
        "prepare": "Leave it out: the driver sends the parameters apart from the statement anyway.",
        "deallocate": "Leave it out: nothing is prepared behind a pooler.",
        "discard": _DIRECT,
        "load": _DIRECT,
    }
)
# Cheap, for every statement is looked at; what it finds is looked at again without texts and comments.
_SUSPECT: Final = re.compile(rf"(?:\A|[;/\n])\s*(?:{'|'.join(_INSTEAD)})\s|advisory_(?:un)?lock|set_config", re.IGNORECASE)
_NOISE: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_STATEMENT: Final = re.compile(
    r"(?:\A|;)\s*(?!set\s+(?:local|transaction|constraints)\b|prepare\s+transaction\b)"
    rf"((?:{'|'.join(_INSTEAD)})\b(?:\s+\w+)?)",
    re.IGNORECASE,
)
_LOCK: Final = re.compile(r"\b(pg_(?:try_)?advisory_(?:un)?lock\w*)\s*\(", re.IGNORECASE)
_SET_CONFIG: Final = re.compile(r"\b(set_config)\s*\([^()]*,\s*(?:false|'f(?:alse)?'|'off')\s*\)", re.IGNORECASE)


def preset(pooler: str, url: URL, options: Mapping[str, Any]) -> dict[str, Any]:
    """*options* of ``create_engine``, with what *pooler* needs; what the caller gives goes before it.

    The pool stays SQLAlchemy's ``QueuePool``: while no transaction is open its connections hold none of the server's, and
    units that hold a connection for each plain read would otherwise connect anew for each.

    Raises:
        BadOption: *pooler* is not known, or is not for the database or the driver of *url*.

    """
    if pooler not in POOLERS:
        raise BadOption(f"pooler={pooler!r}: give {' or '.join(map(repr, POOLERS))}, or leave it out.")
    if url.get_backend_name() != "postgresql":
        raise BadOption(
            f"pooler={pooler!r} stands before PostgreSQL, and the URL is one of {url.get_backend_name()}. Leave it out."
        )
    driver = url.get_driver_name()
    if driver not in _CONNECT and driver != "psycopg_async":
        raise BadOption(
            f"pooler={pooler!r}: {url.drivername!r} cannot be told to leave no prepared statement behind. Use psycopg or asyncpg."
        )
    given: Mapping[str, Any] = options.get("connect_args") or {}
    return {**options, "connect_args": {**_CONNECT["psycopg" if driver == "psycopg_async" else driver], **given}}


def watch(engine: Engine, pooler: str) -> None:
    """Refuse on *engine* what would be left on the server's connection for whoever gets it next."""
    engine.update_execution_options(**{_MARK: pooler})
    event.listen(engine, "before_cursor_execute", _refusing(pooler))


def _refusing(pooler: str) -> Callable[..., None]:
    def refuse(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if _SUSPECT.search(statement) and (found := left_behind(statement)) is not None:
            what, instead = found
            raise PoolerRefused(
                f"{what} at {words(callsite.here(2))} outlasts the transaction, and {pooler} then hands the server's connection to"
                f" another client. {instead}"
            )

    return refuse


def left_behind(statement: str) -> tuple[str, str] | None:
    """What *statement* would leave on the connection, and what to do instead; None if nothing."""
    bare = _NOISE.sub(lambda text: text.group() if text.group().lower() in _FALSE else " ", statement)
    if found := _STATEMENT.search(bare):
        return " ".join(found.group(1).split()), _INSTEAD[found.group(1).split()[0].lower()]
    if found := _LOCK.search(bare):
        return f"{found.group(1)}()", _XACT
    if found := _SET_CONFIG.search(bare):
        return "set_config(…, false)", _SETTINGS
    return None


_FALSE: Final = frozenset(["'f'", "'false'", "'off'"])


def explain(error: BaseException, engine: Engine) -> None:
    """Note on *error*, which is about a prepared statement, that there is a preset, unless the engine has it."""
    if _MARK not in engine.get_execution_options():
        annotate(
            error,
            "tenure: a prepared statement was lost, or met on another client's connection, as it is behind PgBouncer in"
            " transaction mode. Make the database with pooler='pgbouncer', as Database(url, pooler='pgbouncer').",
        )
