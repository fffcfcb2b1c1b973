"""MySQL's drivers send a statement to switch autocommit, so a connection that was switched on for a plain read rests so in the pool.

The next plain read finds it switched on; whoever wants a transaction, or is not tenure at all, gets it switched off.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy.pool import PoolProxiedConnection

from tenure.engines import autocommit

_BY_TENURE: ContextVar[bool] = ContextVar("tenure.taken_by_tenure", default=False)


@contextmanager
def taking() -> Generator[None]:
    """Whoever takes a connection in this block is tenure, and will say what for."""
    token = _BY_TENURE.set(True)
    try:
        yield
    finally:
        _BY_TENURE.reset(token)


def switch(connection: PoolProxiedConnection, purpose: str) -> None:
    """Switch autocommit to what *purpose* wants, if it is not so already."""
    if purpose == "read":
        if not autocommit.is_on(connection.info):
            connection.dbapi_connection.autocommit(True)  # type: ignore[union-attr]
            autocommit.note(connection.info)
    else:
        _off(connection.dbapi_connection, connection.info)


def checked_out(connection: Any, record: Any, _fairy: Any) -> None:
    """Pool event ``checkout``: somebody else begins a transaction, as ever."""
    if not _BY_TENURE.get():
        _off(connection, record.info)


def _off(connection: Any, info: dict[Any, Any]) -> None:
    if autocommit.is_on(info):
        connection.autocommit(False)
        autocommit.forget(info)
