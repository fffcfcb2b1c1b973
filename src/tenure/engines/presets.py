"""Good settings for each database, for engines that tenure makes. What the caller gives goes before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from tenure.exceptions import BadOption, WrongDriver

if TYPE_CHECKING:
    import sqlite3


def postgresql() -> dict[str, Any]:
    """Settings for PostgreSQL.

    ``pool_use_lifo``: the connection used last is used next, so that those the load does not need grow old and the server or a
    proxy may close them.
    """
    return {"pool_use_lifo": True}


def mysql() -> dict[str, Any]:
    """Settings for MySQL and MariaDB.

    ``pool_recycle`` of 3600 s: the server ends a connection that was idle for ``wait_timeout``, 28,800 s unless changed; many
    hosts set an hour or more. ``pool_use_lifo``: as for PostgreSQL.
    ``skip_autocommit_rollback``: a plain read, which runs in autocommit, is not followed by a ROLLBACK.
    """
    return {"pool_recycle": 3600, "pool_use_lifo": True, "skip_autocommit_rollback": True}


def parse(url: object) -> URL:
    """*url* as SQLAlchemy's ``URL``.

    Raises:
        BadOption: It is neither text nor a ``URL``, or it cannot be read. The message holds no password.

    """
    if not isinstance(url, (str, URL)):
        raise BadOption(
            f"{type(url).__name__} is neither a database URL nor an Engine. Give one of them, as Database('sqlite:///app.db')."
        )
    found: URL | None = None
    try:
        found = make_url(url)
        found.get_dialect()
    except (
        ArgumentError,
        NoSuchModuleError,
        ValueError,
    ) as error:  # ValueError: the port, or what was taken for one, is no number
        scheme, separator, _ = str(url).partition("://")
        if not separator:
            wrong = "the database URL has no '://'"
        elif isinstance(error, NoSuchModuleError):
            wrong = f"SQLAlchemy knows no dialect {scheme!r}" + (", but 'postgresql'" if scheme.startswith("postgres") else "")
        else:
            wrong = f"the database URL that begins with {scheme!r} cannot be read"
        raise BadOption(f"{wrong}. Its form is dialect+driver://user:password@host/name, for SQLite sqlite:///app.db.") from None
    except ImportError as error:
        raise _no_driver(found.drivername if found else "the URL", error) from error
    return found


def _no_driver(name: str, error: ImportError) -> BadOption:
    return BadOption(f"the driver of {name!r} is not installed: {error}. Install it, or name another as dialect+driver://….")


def make_engine(url: URL, options: dict[str, Any], pooler: str | None = None) -> Engine:
    """A new engine for *url* under the preset of its database, and of the *pooler* before it.

    Raises:
        WrongDriver: The driver of *url* is for asyncio.
        BadOption: ``create_engine`` does not take one of *options*, or the *pooler* does not go with *url*.

    """
    if url.get_dialect().is_async:
        backend = url.get_backend_name()
        raise WrongDriver(
            f"{url.drivername!r} is a driver for asyncio. Use AsyncDatabase, or a driver that blocks, as {_BLOCKING.get(backend, backend)!r}."
        )
    engine: Engine = _engine(create_engine, url, options, pooler)
    return engine


def make_async_engine(url: URL, options: dict[str, Any], pooler: str | None = None) -> Any:
    """A new ``AsyncEngine`` for *url* under the preset of its database, and of the *pooler* before it.

    Raises:
        WrongDriver: The driver of *url* blocks.
        BadOption: ``create_async_engine`` does not take one of *options*, or the *pooler* does not go with *url*.

    """
    from sqlalchemy.ext.asyncio import create_async_engine

    backend = url.get_backend_name()
    if not url.get_dialect().is_async and url.drivername != "postgresql+psycopg":  # psycopg is both
        raise WrongDriver(
            f"{url.drivername!r} is a driver that blocks. Use Database, or a driver for asyncio, as {_ASYNC.get(backend, backend)!r}."
        )
    return _engine(create_async_engine, url, options, pooler)


_BLOCKING = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql", "sqlite": "sqlite"}
_ASYNC = {
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
    "sqlite": "sqlite+aiosqlite",
}


def is_in_memory(url: URL) -> bool:
    """Whether the database at *url* is one of SQLite's that is gone with the process."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def anchor(url: URL) -> sqlite3.Connection | None:
    """A connection that must stay open as long as the database at *url* is used; None for all but SQLite's memory."""
    if url.get_backend_name() != "sqlite":
        return None
    from tenure.engines import sqlite

    return sqlite.anchor(url)


def _engine(create: Any, url: URL, options: dict[str, Any], pooler: str | None) -> Any:
    backend = url.get_backend_name()
    if pooler is not None:
        from tenure.engines import pooler as poolers

        options = poolers.preset(pooler, url, options)
    refuse_autocommit(options.get("isolation_level"), options.get("execution_options"))
    preset = {"postgresql": postgresql, "mysql": mysql, "mariadb": mysql}.get(backend, dict)()
    if options.get("poolclass") is not None:
        preset = {}  # another pool class need not take them
    if backend == "sqlite":
        from tenure.engines import sqlite  # with the standard library's sqlite3, which others need not load

        url = sqlite.shared_memory(url)
    try:
        engine = create(url, **{**preset, **options})
    except (TypeError, ArgumentError) as error:
        raise BadOption(f"create_engine() refused an option for {url.drivername!r}: {error}") from error
    except ImportError as error:
        raise _no_driver(url.drivername, error) from error
    if backend == "sqlite":
        from tenure.engines import sqlite

        sqlite.prepare(getattr(engine, "sync_engine", engine))
    if pooler is not None:
        from tenure.engines import pooler as poolers

        poolers.watch(getattr(engine, "sync_engine", engine), pooler)
    return engine


def refuse_autocommit(isolation: object, execution_options: Any) -> None:
    """Raise BadOption for an engine that commits every statement: no unit on it could be rolled back."""
    given: dict[str, Any] = execution_options or {}
    asked = given.get("isolation_level") or isolation
    if isinstance(asked, str) and asked.upper() == "AUTOCOMMIT":
        raise BadOption(
            "an engine with isolation_level='AUTOCOMMIT' commits every statement, so no unit on it could be rolled back."
            " Leave it out: plain reads run in autocommit by themselves (hold='auto')."
        )
