"""What lies beneath: the least that a variant could cost."""

from __future__ import annotations

import sqlite3
from contextvars import ContextVar
from typing import Any

import psycopg
from sqlalchemy import URL, Engine, create_engine, insert, select

from benchmarks import models
from benchmarks.models import KEY, User
from benchmarks.rounds import Work

_SELECT = "SELECT id, name FROM bench_user WHERE id = {}"
_INSERT = "INSERT INTO bench_user (name) VALUES ({})"
_VARIABLE: ContextVar[object] = ContextVar("floor")


class _Slot:
    """A class-based context manager that sets a context variable and makes nothing else."""

    __slots__ = ("made", "token")

    def __enter__(self) -> _Slot:
        self.made = None
        self.token = _VARIABLE.set(self)
        return self

    def __exit__(self, *args: object) -> None:
        _VARIABLE.reset(self.token)


def _slot() -> None:
    with _Slot():
        pass


def nothing() -> dict[str, Work]:
    """Beneath a unit without a statement."""
    return {"floor: contextvar and lazy slot": _slot}


def reads(url: URL, engine: Engine) -> dict[str, Work]:
    """Beneath a read: the driver, and SQLAlchemy without its ORM. *engine* has the table."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    statement = select(User.__table__).where(User.__table__.c.id == KEY)

    def core() -> None:
        with autocommit.connect() as connection:
            connection.execute(statement).one()

    return {"floor: Core in autocommit": core, **_driver(url)[0]}


def inserts(url: URL, engine: Engine) -> dict[str, Work]:
    """Beneath an insert."""
    statement = insert(User.__table__)

    def core() -> None:
        with engine.begin() as connection:
            connection.execute(statement, {"name": "new"})

    return {"floor: Core, engine.begin()": core, **_driver(url)[1]}


def _driver(url: URL) -> tuple[dict[str, Work], dict[str, Work]]:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url)
        models.create(engine)
        memory: Any = engine.raw_connection().dbapi_connection
        assert isinstance(memory, sqlite3.Connection)
        return {"floor: sqlite3": lambda: memory.execute(_SELECT.format("?"), (KEY,)).fetchall()}, {}

    given = {"host": url.query["host"], "user": url.username, "dbname": url.database}
    quick = psycopg.connect(**given, autocommit=True)
    slow = psycopg.connect(**given)

    def begun() -> None:
        slow.execute(_SELECT.format("%s"), (KEY,)).fetchall()
        slow.rollback()

    def stored() -> None:
        slow.execute(_INSERT.format("%s"), ("new",))
        slow.commit()

    read = {
        "floor: psycopg, BEGIN and ROLLBACK": begun,
        "floor: psycopg in autocommit": lambda: quick.execute(_SELECT.format("%s"), (KEY,)).fetchall(),
    }
    return read, {"floor: psycopg, BEGIN and COMMIT": stored}
