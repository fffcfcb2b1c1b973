"""How a statement under way is stopped, by driver: first the server is asked, and if that does not help, the link is cut.

``stop`` runs beside the statement: in a thread of its own, or for asyncio in SQLAlchemy's greenlet in a task of its own. ``cut``
never waits.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import Engine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import await_only

GRACE: Final = 0.25  # seconds from the first stop to the cut, and that a ROLLBACK after the deadline may take
_BUSY: Final = "tenure.busy_timeout"  # in the info of a connection: what it was before it was limited


class Interrupt(NamedTuple):
    """What one driver offers.

    Attributes:
        stop: Asks that what runs on a driver's connection be stopped.
        cut: Ends the connection at once, so that whoever waits for its answer gets an error.
        codes: How the database says that a statement was stopped.
        in_commit: A COMMIT that answers with one of these codes has certainly not taken place.
        limit: Bounds what a statement may wait for locks, in seconds, where ``stop`` does not end such a wait.
        unlimit: Undoes it.

    """

    stop: Callable[[Any, Engine], None]
    cut: Callable[[Any], None]
    codes: frozenset[str]
    in_commit: bool = True
    limit: Callable[[PoolProxiedConnection, float], None] | None = None
    unlimit: Callable[[PoolProxiedConnection], None] | None = None


def interrupt_of(engine: Engine) -> Interrupt | None:
    """That of *engine*'s driver, or None where none is known."""
    name, driver = engine.dialect.name, engine.dialect.driver
    if name in ("mysql", "mariadb"):
        # 1317 ER_QUERY_INTERRUPTED. Not in COMMIT: no document says that one answered by it has not taken place.
        return Interrupt(_kill, _CUTS.get(driver, _close), frozenset(["1317"]), in_commit=False)
    stop = _STOPS.get((name, driver))
    if stop is None:
        return None
    if name == "sqlite":
        return Interrupt(stop, _nothing, frozenset(["SQLITE_INTERRUPT"]), limit=_limit, unlimit=_unlimit)
    return Interrupt(stop, _CUTS.get(driver, _shut), frozenset(["57014"]))


def _cancel(raw: Any, engine: Engine) -> None:
    answer = raw.cancel_safe(timeout=GRACE)
    if engine.dialect.is_async:
        await_only(answer)


def _cancel_asyncpg(raw: Any, _engine: Engine) -> None:
    import asyncio

    # Private: asyncpg's one way to send a cancel request without cancelling the task that waits, which costs the connection and
    # leaves a COMMIT unknown. Should it go, the connection is cut. tests/core/test_deadline.py fails when it changes.
    await_only(raw._cancel(asyncio.get_running_loop().create_future()))  # noqa: SLF001


def _cancel_psycopg2(raw: Any, _engine: Engine) -> None:
    raw.cancel()


def _kill(raw: Any, engine: Engine) -> None:
    """MySQL and MariaDB take such a request on another connection only: a new one, for all of the pool's may be in use."""
    pool = engine.pool.recreate()
    try:
        connection = pool.connect()
        try:
            cursor: Any = connection.cursor()
            cursor.execute(f"KILL QUERY {int(raw.thread_id())}")
            cursor.close()
        finally:
            connection.close()
    finally:
        pool.dispose()


def _interrupt(raw: Any, engine: Engine) -> None:
    answer = raw.interrupt()
    if engine.dialect.is_async:
        await_only(answer)


_STOPS: Final[dict[tuple[str, str], Callable[[Any, Engine], None]]] = {
    ("postgresql", "psycopg"): _cancel,
    ("postgresql", "psycopg_async"): _cancel,
    ("postgresql", "asyncpg"): _cancel_asyncpg,
    ("postgresql", "psycopg2"): _cancel_psycopg2,
    ("sqlite", "pysqlite"): _interrupt,
    ("sqlite", "aiosqlite"): _interrupt,
}


def _nothing(raw: Any) -> None:
    """SQLite has no link."""


def _shut(raw: Any) -> None:
    with socket.socket(fileno=os.dup(raw.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it, which close() would not


def _shut_pymysql(raw: Any) -> None:
    # Private: PyMySQL shows its socket by no public name. tests/core/test_deadline.py fails when it changes.
    raw._sock.shutdown(socket.SHUT_RDWR)  # noqa: SLF001


def _terminate(raw: Any) -> None:
    raw.terminate()


def _close(raw: Any) -> None:
    raw.close()


_CUTS: Final[dict[str, Callable[[Any], None]]] = {"asyncpg": _terminate, "pymysql": _shut_pymysql}


def _limit(connection: PoolProxiedConnection, seconds: float) -> None:
    if _BUSY not in connection.info:
        connection.info[_BUSY] = _pragma(connection, "PRAGMA busy_timeout")
    _pragma(connection, f"PRAGMA busy_timeout = {max(min(math.ceil(seconds * 1000), connection.info[_BUSY]), 0)}")


def _unlimit(connection: PoolProxiedConnection) -> None:
    if (before := connection.info.pop(_BUSY, None)) is not None:
        _pragma(connection, f"PRAGMA busy_timeout = {before}")


def _pragma(connection: PoolProxiedConnection, statement: str) -> Any:
    cursor: Any = connection.cursor()
    cursor.execute(statement)
    row = cursor.fetchone()
    cursor.close()
    return row[0]
