"""A driver's own switch to autocommit, for drivers where it is no more than a note on the client's side.

SQLAlchemy's execution option ``isolation_level="AUTOCOMMIT"`` says the same and is meant to be set seldom: applying and resetting
it costs 30 us for each connection taken, the driver's switch 2 us (psycopg; a read by primary key takes 400 us).
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.pool import PoolProxiedConnection

_ON: Final = "tenure.autocommit"  # in the info of a connection: it was switched on here


def switch(connection: PoolProxiedConnection, purpose: str) -> None:
    """Switch autocommit on where *purpose* is a plain read."""
    if purpose == "read":
        connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]
        note(connection.info)


def note(info: dict[Any, Any]) -> None:
    """Note in the *info* of a connection that its autocommit was switched on by tenure."""
    info[_ON] = True


def is_on(info: dict[Any, Any]) -> bool:
    """Whether that was noted."""
    return _ON in info


def forget(info: dict[Any, Any]) -> None:
    """It is switched off again."""
    del info[_ON]


def switch_back(connection: Any, record: Any) -> None:
    """Pool event ``checkin``: whoever takes the connection next begins a transaction. Sees those of dropped units, too."""
    if connection is not None and record.info.pop(_ON, False):
        connection.autocommit = False
