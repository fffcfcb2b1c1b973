"""What SQLite needs to serve many threads: explicit transactions, rows in memory before a connection goes back, one memory.

The driver's own rule (an implicit BEGIN before DML only) is switched off; each transaction says how it begins:

=========================  ================================================================================
taken                      begins with
=========================  ================================================================================
for plain reads            nothing: reads in autocommit, rows fetched at once
for writing                BEGIN IMMEDIATE, so that a writer waits its turn instead of failing half-way
otherwise                  BEGIN, SQLAlchemy's documented recipe
=========================  ================================================================================
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import deque
from typing import Any, Final, Self

from sqlalchemy import event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import PoolProxiedConnection

_PURPOSE: Final = "tenure.purpose"  # in the info of a connection
_BEGIN: Final = {"read": None, "write": "BEGIN IMMEDIATE"}
_NUMBERS: Final = itertools.count(1)


class BufferingConnection(sqlite3.Connection):
    """A connection whose cursors fetch all rows on execute while ``buffering`` is on.

    Another unit may write on the connection as soon as it is back in the pool, and sqlite3 would then go on reading what that
    unit left: 10 rows of 50 have been seen.
    """

    buffering = False

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(BufferingCursor if factory is None else factory)


class BufferingCursor(sqlite3.Cursor):
    """See ``BufferingConnection``."""

    _rows: deque[Any] | None = None

    def execute(self, *args: Any) -> Self:
        self._rows = None
        super().execute(*args)
        if self.connection.buffering and self.description is not None:  # type: ignore[attr-defined]
            self._rows = deque(super().fetchall())
        return self

    def executemany(self, *args: Any) -> Self:
        self._rows = None
        return super().executemany(*args)

    def close(self) -> None:
        self._rows = None
        super().close()

    def fetchone(self) -> Any:
        if self._rows is None:
            return super().fetchone()
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        count = self.arraysize if size is None else size
        if self._rows is None:
            return super().fetchmany(count)
        return [self._rows.popleft() for _ in range(min(count, len(self._rows)))]

    def fetchall(self) -> list[Any]:
        if self._rows is None:
            return super().fetchall()
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row


def shared_memory(url: URL) -> URL:
    """*url*, or where it names a database in memory, one that all threads and connections of this process share.

    It lives in SQLite's ``memdb`` (3.36 and later), whose locks wait as those of a file do, for as long as one connection is
    open; ``anchor`` keeps one.
    """
    if url.database not in (None, "", ":memory:"):
        return url
    return url.set(database=f"file:/tenure-{next(_NUMBERS)}", query={**url.query, "vfs": "memdb", "uri": "true"})


def anchor(url: URL) -> sqlite3.Connection | None:
    """A connection that keeps a database made by ``shared_memory`` alive, or None for any other."""
    if url.query.get("vfs") != "memdb":
        return None
    return sqlite3.connect(f"{url.database}?vfs=memdb", uri=True, check_same_thread=False)


def prepare(engine: Engine, busy_timeout: float = 30.0) -> None:
    """Put *engine* under the rule above, before its first connection.

    Args:
        engine: An engine of pysqlite or aiosqlite.
        busy_timeout: How long a statement waits for another connection's lock, in seconds. Default 30.

    """
    in_memory = engine.url.query.get("vfs") == "memdb"

    def connecting(dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:
        if not dialect.is_async:  # aiosqlite fetches in its own thread, before execute returns
            options.setdefault("factory", BufferingConnection)

    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # no implicit BEGIN: the listener below says how a transaction begins
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        cursor.execute("PRAGMA foreign_keys = ON")  # SQLite's default, off, accepts rows that point nowhere
        if not in_memory and _writes_ahead(cursor):
            cursor.execute("PRAGMA synchronous = NORMAL")  # in WAL mode: no corruption, at most the last commits at power loss
        cursor.close()

    event.listen(engine, "do_connect", connecting)
    event.listen(engine, "connect", connected)
    # Said where SQLAlchemy begins a transaction itself, not as a statement in the listener: then who counts or traces
    # statements does not meet it, as on other databases, and "database is locked" comes as SQLAlchemy's OperationalError.
    engine.dialect.do_begin = _begin  # type: ignore[method-assign, assignment]


def switch(connection: PoolProxiedConnection, purpose: str) -> None:
    """Tell a connection that was just taken what for, one of ``PURPOSES``."""
    connection.info[_PURPOSE] = purpose
    driver: object = connection.dbapi_connection
    if isinstance(driver, BufferingConnection):
        driver.buffering = purpose in ("read", "readonly call")


def switch_back(connection: Any, record: Any) -> None:
    """Pool event ``checkin``: what the next one takes it for is not known yet."""
    record.info.pop(_PURPOSE, None)
    if isinstance(connection, BufferingConnection):
        connection.buffering = False


def _begin(connection: PoolProxiedConnection) -> None:
    if statement := _BEGIN.get(connection.info.get(_PURPOSE, ""), "BEGIN"):
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()


def _writes_ahead(cursor: Any) -> bool:
    """Switch the file to WAL, where readers do not wait for the writer, nor the writer for them; whether that was done."""
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
        return bool(cursor.fetchone()[0] == "wal")
    except sqlite3.OperationalError:  # it cannot be written, or somebody is writing it: this switch does not wait for locks
        return False


def is_prepared(engine: Engine) -> bool:
    """Whether ``prepare`` has been called for *engine*, or for the one that this is a view of (``execution_options``)."""
    return engine.dialect.do_begin is _begin
