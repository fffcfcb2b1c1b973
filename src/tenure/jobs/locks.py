"""A lock of the whole cluster, on a connection of its own: one has it, and it is gone with whoever has it.

Not out of the pool: a job that held its lock on a connection of the pool would leave one less to everybody for as long as it runs,
and where the pool has only that one would wait for itself.

==================  ===================================================================================
PostgreSQL          an advisory lock of a transaction, which also holds behind PgBouncer
MariaDB, MySQL      ``GET_LOCK``
SQLite              a file beside the database's, on which a transaction is open: one that held the
                    database itself would keep all others from writing
==================  ===================================================================================
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.engine import URL, Connection, Engine

from tenure.exceptions import BadOption

_LONGEST_WAIT: Final = 28_800  # seconds; MariaDB's default for a connection that says nothing
# A transaction that does nothing for long is meant here; and a machine that is gone without a good-bye is found in 40 s.
_PATIENT: Final = text("""
    SELECT set_config(name, CASE WHEN name LIKE '%count' THEN '3' WHEN name LIKE 'tcp%' THEN '10' ELSE '0' END, true)
    FROM pg_settings WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout',
        'tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_keepalives_count')
    """)


def digest(name: str) -> str:
    """*name* as 40 characters, the same on all machines, as keys and names of locks take them."""
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def own_connections(engine: Engine) -> Engine:
    """An engine like *engine*, with a pool of its own that nobody else waits for. Dispose of it after use."""
    options = engine.get_execution_options()
    return Engine(engine.pool.recreate(), engine.dialect, engine.url, execution_options=options)


@contextmanager
def writing(own: Engine) -> Generator[Connection]:
    """A transaction on one of these connections, which writes."""
    with own.connect() as connection:
        if own.dialect.name == "sqlite":
            from tenure.engines import sqlite

            sqlite.switch(connection.connection, "write")
        with connection.begin():
            yield connection


class Lock:
    """The lock *name*, for one holder, one time.

    Args:
        engine: In whose database.
        name: Which lock.
        patience: For how many seconds it may be held, at least; MariaDB ends a connection that is silent for longer.

    Raises:
        BadOption: That database has no lock of this kind.

    """

    def __init__(self, engine: Engine, name: str, patience: float = 0.0) -> None:
        check_lockable(engine.url)
        self._own = own_connections(engine)  # no other's, for the pool may be of one connection
        self._name = name
        self._patience = int(min(max(patience, _LONGEST_WAIT), 31_536_000))
        self._beside: sqlite3.Connection | None = None
        self.connection: Connection | None = None

    def acquire(self) -> bool:
        """Take it, if nobody has it; at once, without waiting. Then ``connection`` is the one that has it."""
        backend = self._own.dialect.name
        connection = self._own.connect()
        try:
            got = getattr(self, f"_on_{'mysql' if backend == 'mariadb' else backend}")(connection)
            if got:
                self.connection = connection
        finally:
            if self.connection is None:
                self._let_go(connection)
        return bool(got)

    def pause(self) -> None:
        """Nothing is read or written on the connection for a while: end its transaction, unless that is what has the lock."""
        if self.connection is not None and self._own.dialect.name != "postgresql":
            self.connection.commit()

    def release(self) -> None:
        """Commit what was done on the connection, and give the lock back. It is given back even if that fails."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        try:
            connection.commit()
            if self._own.dialect.name in (
                "mysql",
                "mariadb",
            ):  # at once, and not when the server sees that the connection is closed
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": self._on_server()})
        finally:
            self._let_go(connection)

    def _on_postgresql(self, connection: Connection) -> bool:
        connection.execution_options(isolation_level="READ COMMITTED")  # which holds no snapshot between its statements
        number = int(digest(f"tenure {self._name}")[:15], 16)
        got = connection.scalar(text("SELECT pg_try_advisory_xact_lock(:number)"), {"number": number})
        if got:
            connection.execute(_PATIENT)
        return bool(got)

    def _on_mysql(self, connection: Connection) -> bool:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        got = connection.scalar(text("SELECT GET_LOCK(:name, 0)"), {"name": self._on_server()})
        if got:
            connection.execute(text(f"SET SESSION wait_timeout = {self._patience}"))
        return bool(got)

    def _on_server(self) -> str:
        return f"tenure {digest(f'{self._own.url.database} {self._name}')}"  # MySQL has one name space for all databases

    def _on_sqlite(self, _connection: Connection) -> bool:
        beside = sqlite3.connect(**_beside(self._own.url, self._name))
        try:
            beside.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            beside.close()
            if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            return False
        self._beside = beside
        return True

    def _let_go(self, connection: Connection) -> None:
        try:
            connection.close()
            self._own.dispose()
        finally:
            if self._beside is not None:
                self._beside.close()


def check_lockable(url: URL) -> None:
    """Raise BadOption for a database on which no lock holds that the whole cluster sees."""
    backend, name = url.get_backend_name(), url.database or ":memory:"
    if backend not in ("postgresql", "mysql", "mariadb", "sqlite"):
        raise BadOption(
            f"{backend} has no lock that tenure knows to take for the whole cluster. PostgreSQL, MariaDB and SQLite have."
        )
    in_memory = name == ":memory:" or url.query.get("mode") == "memory" or name.startswith("file::memory:")
    if backend == "sqlite" and in_memory:
        raise BadOption(
            "this engine's SQLite database is in one connection's memory, so that a lock on another locks nothing. Give"
            " Database the URL 'sqlite://', whose memory all connections share, or a file."
        )


def _beside(url: URL, name: str) -> dict[str, Any]:
    """What ``sqlite3.connect`` takes for a database beside that of *url*."""
    shared = "?vfs=memdb" if url.query.get("vfs") == "memdb" else ""
    is_uri = str(url.database).startswith("file:")
    return {
        "database": f"{url.database}-lock-{digest(name)[:12]}{shared}",
        "uri": is_uri,
        "timeout": 0.0,
        "isolation_level": None,
        "check_same_thread": False,
    }
