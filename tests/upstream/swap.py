"""What stands in for ``Session(bind, **options)`` in SQLAlchemy's own tests: the session of an open unit of tenure.

Each is a unit of a `Database` of its own with every guard on, for the tests open several sessions side by side and use
them in turn; the code of the test is the unit's own. On SQLite the engine is put under tenure's rule first, else reads
would not run in autocommit and the run would prove nothing.
"""

import contextvars
from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from tenure import AsyncDatabase, Database
from tenure.core.session import UnitSession
from tenure.engines import sqlite

# What tenure decides itself, so that such a session is left to SQLAlchemy.
NOT_OURS = frozenset(["binds", "twophase", "join_transaction_mode", "autobegin", "close_resets_only"])

_ends: list[Callable[[], None]] = []


def make(bind: Any, **options: Any) -> Session | None:
    """The session of a new unit on *bind*, or None for what is left to SQLAlchemy."""
    if not isinstance(bind, Engine) or not NOT_OURS.isdisjoint(options):
        return None
    if bind.dialect.name == "sqlite" and not sqlite.is_prepared(bind):
        return None
    return _make_async(bind, options) if bind.dialect.is_async else _make(bind, options)


def end() -> None:
    """Close each session as the suite would, in the context that made it, and end its unit; the newest first."""
    while _ends:
        _ends.pop()()


def _make(bind: Engine, options: dict[str, Any]) -> Session:
    db = Database(bind, session_options=options)
    block = db.unit(propagation="new")
    session = block.__enter__()
    context = contextvars.copy_context()

    def end() -> None:
        context.run(session.close)
        session.unit.rollback_only()
        block.__exit__(None, None, None)
        db.close()

    _ends.append(end)
    return session


def _make_async(bind: Engine, options: dict[str, Any]) -> Session:
    """The synchronous session behind an ``AsyncSession``: SQLAlchemy runs its tests within a greenlet of its own."""
    db = AsyncDatabase(AsyncEngine(bind), session_options=options)
    block = db.unit(propagation="new")
    session = await_only(block.__aenter__()).sync_session
    context = contextvars.copy_context()

    def end() -> None:
        context.run(session.close)
        session.unit.rollback_only()
        await_only(block.__aexit__(None, None, None))
        await_only(db.close())

    _ends.append(end)
    return session


# ------------------------------------------------------------- what SQLAlchemy's tests take for granted


def prepare(engine: Engine) -> None:
    """Put a new SQLite engine under tenure's rule, but for what SQLAlchemy's tests do not expect."""
    if engine.dialect.name == "sqlite" and not engine.dialect.is_async and not sqlite.is_prepared(engine):
        engine.dispose()
        sqlite.prepare(engine, busy_timeout=0.2)  # the tests have one thread: a lock that is held now stays held
        event.listen(engine, "connect", _as_tests_expect)


def _as_tests_expect(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA foreign_keys = OFF")  # SQLite's default
    connection.execute("PRAGMA synchronous = OFF")  # nobody needs the file after a power loss


def own_listeners() -> list[tuple[type[Session], str, Callable[..., Any]]]:
    """The listeners that tenure has on its sessions. Some test classes end by removing every listener of every session."""
    return [
        (cls, name, listener)
        for cls in UnitSession.__mro__
        if cls.__module__.startswith("tenure.")
        for name in UnitSession.dispatch._event_names
        for listener in getattr(UnitSession.dispatch, name)._clslevel.get(cls, ())
        if listener.__module__ == cls.__module__
    ]


def listen(listeners: list[tuple[type[Session], str, Callable[..., Any]]]) -> None:
    """Put listeners back."""
    for cls, name, listener in listeners:
        event.listen(cls, name, listener)
