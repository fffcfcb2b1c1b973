"""What a driver can do, as far as the life of a session depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import PoolProxiedConnection

from tenure.engines import autocommit, resting
from tenure.exceptions import sqlstate

# Drivers whose rows are in memory when execute() returns. For any other a connection is not given back before the unit ends.
_BUFFERING: Final = frozenset(
    [
        ("postgresql", "psycopg"),
        ("postgresql", "psycopg_async"),
        ("postgresql", "psycopg2"),
        ("postgresql", "asyncpg"),
        ("mysql", "pymysql"),
        ("mysql", "aiomysql"),
        ("mysql", "asyncmy"),
        ("mysql", "mysqldb"),
    ]
)
# A plain read in autocommit; a transaction that may not write, for one call or for several; one that may.
PURPOSES: Final = ("read", "readonly call", "readonly", "write")
_UNDONE: Final = frozenset(["1213"])  # ER_LOCK_DEADLOCK
# 25006 read_only_sql_transaction; MySQL 1792 ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION; SQLITE_READONLY under PRAGMA query_only
_REFUSED_WRITE: Final = frozenset(["25006", "1792", "SQLITE_READONLY"])


class Profile(NamedTuple):
    """The abilities of one driver.

    Attributes:
        reads_alone: Plain reads can run in autocommit, and their rows are in memory when ``execute()`` returns.
        rows_at_once: The same holds for the rows of what is not streamed in a transaction; else for those of one call only.
        failure_spoils: A failed statement spoils its transaction, whose COMMIT is then a silent ROLLBACK (PostgreSQL).
        undone_by: Errors with which the server has rolled back the whole transaction; what follows would begin another (MySQL).
        takes_settings: The server has settings that end with the transaction (``SET LOCAL``).
        isolation: The isolation of its transactions, where there is but one; else it is asked.
        client_errors_linger: An error found by the driver leaves the server in mid-statement (asyncpg in autocommit).
        rests: What a plain read has switched on stays on in the pool; strangers get it switched off (MySQL).
        switch: Tells a connection that was just taken its purpose, one of ``PURPOSES``.
        pipeline: Lets a transaction, with settings, begin in the round trip of its first statement; False where it cannot.
        classic: Undoes that for somebody who sets the isolation himself.
        switch_back: Pool event ``checkin`` that undoes it all.
        readonly: Execution options for a read-only transaction.
        readonly_on: Statements before and after the use of a connection for reading only, if it takes some.

    """

    reads_alone: bool = False
    rows_at_once: bool = True
    failure_spoils: bool = False
    undone_by: frozenset[str] = frozenset()
    takes_settings: bool = False
    isolation: str | None = None
    client_errors_linger: bool = False
    rests: bool = False
    switch: Callable[[PoolProxiedConnection, str], None] | None = None
    pipeline: Callable[[PoolProxiedConnection, Mapping[str, str]], bool] | None = None
    classic: Callable[[PoolProxiedConnection], None] | None = None
    switch_back: Callable[[Any, Any], None] | None = None
    readonly: Mapping[str, Any] = MappingProxyType({})
    readonly_on: tuple[str, str] | None = None


def profile_of(engine: Engine) -> Profile:
    """The profile of *engine*'s driver. An SQLite engine that was made elsewhere does not buffer: it is held by SQLAlchemy's rule."""
    name, driver = engine.dialect.name, engine.dialect.driver
    family = "mysql" if name == "mariadb" else name
    buffers = (family, driver) in _BUFFERING and not _streams_always(engine)
    if family == "postgresql":
        return _postgresql(engine, buffers)
    if family == "mysql":
        # For the session: on MariaDB a DDL statement ends a transaction that alone was read-only, and is carried out.
        read_only = ("SET SESSION TRANSACTION READ ONLY", "SET SESSION TRANSACTION READ WRITE")
        switch = resting.switch if buffers else None
        return Profile(reads_alone=buffers, switch=switch, rests=buffers, readonly_on=read_only, undone_by=_UNDONE)
    if family == "sqlite":
        return _sqlite(engine)
    return Profile()


def _postgresql(engine: Engine, buffers: bool) -> Profile:
    driver = engine.dialect.driver
    profile = Profile(
        reads_alone=buffers,
        failure_spoils=True,
        takes_settings=True,
        client_errors_linger=driver == "asyncpg",
        switch=autocommit.switch if buffers else None,
        switch_back=autocommit.switch_back if buffers else None,
        readonly={"postgresql_readonly": True},
    )
    # With skip_autocommit_rollback SQLAlchemy leaves a ROLLBACK out where the driver's autocommit is on, as it is in a pipeline:
    # what was to be rolled back would be stored by the next COMMIT.
    if not buffers or driver not in ("psycopg", "psycopg_async") or engine.dialect.skip_autocommit_rollback:
        return profile
    from tenure.engines import pipeline  # with psycopg, which others need not have

    if not pipeline.is_supported():
        return profile
    return profile._replace(pipeline=pipeline.prepare, classic=pipeline.undo, switch_back=pipeline.switch_back)


def _streams_always(engine: Engine) -> bool:
    """Whether the engine was made with server-side cursors for every statement."""
    options = engine.get_execution_options()
    asked = options.get("stream_results") or options.get("yield_per") or getattr(engine.dialect, "server_side_cursors", False)
    return bool(asked)


def _sqlite(engine: Engine) -> Profile:
    from tenure.engines import sqlite  # with the standard library's sqlite3, which others need not load

    query_only = ("PRAGMA query_only = ON", "PRAGMA query_only = OFF")
    if not sqlite.is_prepared(engine):
        return Profile(isolation="SERIALIZABLE", readonly_on=query_only)
    return Profile(
        reads_alone=True,
        rows_at_once=engine.dialect.is_async,
        isolation="SERIALIZABLE",
        switch=sqlite.switch,
        switch_back=sqlite.switch_back,
        readonly_on=query_only,
    )


def refused_write(error: BaseException) -> bool:
    """Whether the database refused a write because the transaction is read-only."""
    return (sqlstate(error) or "") in _REFUSED_WRITE


def say(connection: Connection, statement: str) -> None:
    """Run a statement outside any transaction of SQLAlchemy's."""
    cursor: Any = connection.connection.cursor()
    cursor.execute(statement)
    cursor.close()
