"""What blocks all greenlets of gevent's or eventlet's where one of them waits for a connection or an answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import Engine

from tenure import workers

_PATCHES: Final = {"gevent": "gevent.monkey.patch_all()", "eventlet": "eventlet.monkey_patch()"}
_NEEDED: Final = ("threading", "socket", "select")
_IN_C: Final = {
    "mysqldb": "Use PyMySQL.",
    "mariadbconnector": "Use PyMySQL.",
    "pyodbc": "Use a driver that is written in Python.",
    "cx_oracle": "Use python-oracledb in its thin mode.",
    "pysqlite": "Wait for nothing while a transaction is open, or use a server.",
}


class Obstacle(NamedTuple):
    """Something that blocks, and what to do about it."""

    what: str
    remedy: str


def library() -> str | None:
    """``gevent`` or ``eventlet``, if code runs in one of its greenlets."""
    own = workers.green()
    if own is None:
        return None
    return "gevent" if type(own.parent).__module__.startswith("gevent") else "eventlet"


def obstacles(library: str, engine: Engine) -> Iterator[Obstacle]:
    """What blocks in greenlets of *library* that use *engine*."""
    patched = _patched_by_gevent if library == "gevent" else _patched_by_eventlet
    if missing := [name for name in _NEEDED if not patched(name)]:
        first = f"Call {_PATCHES[library]} before anything else is imported."
        yield Obstacle(f"{' and '.join([', '.join(missing[:-1]), missing[-1]] if missing[1:] else missing)} not patched", first)
    driver = engine.dialect.driver
    if driver == "psycopg" and _psycopg_waits_in_c():
        set_it = "Set PSYCOPG_WAIT_FUNC=wait_selector in the environment."
        yield Obstacle("psycopg waits in C", set_it if library == "eventlet" else "Patch before psycopg is imported.")
    elif driver == "psycopg2" and sys.modules["psycopg2"].extensions.get_wait_callback() is None:
        yield Obstacle("psycopg2 waits in C", "Give it a wait callback (psycogreen), or use psycopg.")
    elif driver in _IN_C:
        yield Obstacle(f"{driver} waits in C", _IN_C[driver])


def _patched_by_gevent(name: str) -> bool:
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(name))


def _patched_by_eventlet(name: str) -> bool:
    patcher: Any = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread" if name == "threading" else name))


def _psycopg_waits_in_c() -> bool:
    waiting: Any = sys.modules.get("psycopg.waiting")
    return waiting is not None and waiting.wait is getattr(waiting, "wait_c", None)
