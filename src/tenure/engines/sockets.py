"""Where the socket of a connection is, by driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sqlalchemy.engine import Engine

# Gives the descriptor of a driver connection's socket, -1 or any error for one that is closed, None where it cannot be had.
Descriptor: TypeAlias = Callable[[Any], "int | None"]


def socket_of(engine: Engine) -> Descriptor:
    """What finds the socket of a connection of *engine*."""
    return _SOCKETS.get(engine.dialect.driver, _no_socket)


def _no_socket(_driver: Any) -> int | None:
    return None


def _fileno(driver: Any) -> int | None:
    return int(driver.fileno())


# Private names of drivers, none of which tells its socket otherwise. tests/engines/test_liveness.py fails when they change.


def _sock(driver: Any) -> int | None:
    return int(driver._sock.fileno())  # noqa: SLF001


def _transport(driver: Any) -> int | None:
    return _under(driver._transport)  # noqa: SLF001


def _writer(driver: Any) -> int | None:
    return _under(driver._writer)  # noqa: SLF001


def _under(stream: Any) -> int:
    return -1 if stream.is_closing() else int(stream.get_extra_info("socket").fileno())


def _asyncpg(driver: Any) -> int | None:
    return -1 if driver.is_closed() else _transport(driver)


_SOCKETS: Final[dict[str, Descriptor]] = {
    "psycopg": _fileno,
    "psycopg_async": _fileno,
    "psycopg2": _fileno,
    "mysqldb": _fileno,
    "asyncpg": _asyncpg,
    "pymysql": _sock,
    "aiomysql": _writer,
    "asyncmy": _transport,
}
