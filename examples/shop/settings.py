"""Where the shop's data is, and where it listens: ``python -m examples.flask.app sqlite:///market.db 8080``."""

from __future__ import annotations

import os
import sys

from sqlalchemy import URL, make_url

GRACE = float(os.environ.get("MARKET_GRACE", "8"))  # seconds from SIGTERM to the end
_ASYNC = {"sqlite": "aiosqlite", "mysql": "aiomysql", "mariadb": "aiomysql"}  # psycopg serves both


def url() -> URL:
    """The first argument of the command, else ``MARKET_DATABASE``."""
    return make_url(sys.argv[1] if sys.argv[1:] else os.environ.get("MARKET_DATABASE", "sqlite:///market.db"))


def async_url() -> URL:
    """The same database by a driver for asyncio."""
    given = url()
    backend = given.get_backend_name()
    return given.set(drivername=f"{backend}+{_ASYNC[backend]}") if backend in _ASYNC else given


def port() -> int:
    """The second argument of the command; 0, a free one, if there is none."""
    return int(sys.argv[2]) if sys.argv[2:] else 0
