"""Somebody else at the same database: what of a unit's work can be seen and what is locked, asked on a connection of its own."""

from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

_SYNC = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mysql+pymysql"}


class Stranger:
    """A stranger's connection in autocommit, open while it is used as a context manager."""

    def __init__(self, url: sa.URL) -> None:
        self.dialect = url.get_backend_name()
        self._engine = sa.create_engine(url.set(drivername=_SYNC[self.dialect]), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._connection: sa.Connection | None = None

    def __enter__(self) -> Self:
        self._connection = self._engine.connect()
        for setting in _IMPATIENCE[self.dialect]:
            self._connection.exec_driver_sql(setting)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._connection is not None
        self._connection.close()

    def run(self, statement: str | sa.Executable, /, **parameters: Any) -> sa.CursorResult[Any]:
        """Run a statement."""
        assert self._connection is not None
        return self._connection.execute(sa.text(statement) if isinstance(statement, str) else statement, parameters)

    def rows(self, statement: str | sa.Executable, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return [tuple(row) for row in self.run(statement, **parameters)]

    def column(self, statement: str | sa.Executable, /, **parameters: Any) -> list[Any]:
        """The first column of a statement."""
        return [row[0] for row in self.rows(statement, **parameters)]

    def locked(self, table: str) -> list[int] | bool:
        """The keys of the rows that somebody else has locked; on SQLite, whether somebody has the one write lock."""
        if self.dialect == "sqlite":
            try:
                self.run("BEGIN IMMEDIATE")
            except sa.exc.OperationalError:
                return True
            self.run("ROLLBACK")
            return False
        # All columns, that MariaDB reads the rows themselves: its locks on a second index depend on what was deleted before.
        seen = set(self.column(f"SELECT * FROM {table} ORDER BY id"))
        return sorted(seen - set(self.column(f"SELECT * FROM {table} ORDER BY id FOR UPDATE SKIP LOCKED")))

    def idle_in_transaction(self) -> int:
        """How many of PostgreSQL's connections wait within a transaction."""
        return self.column("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")[0]

    def working(self) -> int:
        """How many of PostgreSQL's other connections are not at rest."""
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return self.column(f"SELECT count(*) FROM pg_stat_activity WHERE {others} AND state <> 'idle'")[0]


_IMPATIENCE = {
    "sqlite": ("PRAGMA busy_timeout = 0",),
    "postgresql": ("SET lock_timeout = '3s'",),
    "mysql": ("SET SESSION lock_wait_timeout = 3, innodb_lock_wait_timeout = 3",),
    "mariadb": ("SET SESSION lock_wait_timeout = 3, innodb_lock_wait_timeout = 3",),
}
