"""The database's clock: the one clock that all machines of a cluster share, whatever their own say."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine


class Now(FunctionElement[float]):
    """The time at which the statement began, or later within it, in seconds since 1970."""

    type: TypeEngine[float] = Double()
    name = "tenure_now"
    inherit_cache = True


@compiles(Now)
def _of_postgresql(_element: Now, _compiler: Any, **_options: Any) -> str:
    return "CAST(EXTRACT(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(Now, "mysql", "mariadb")
def _of_mysql(_element: Now, _compiler: Any, **_options: Any) -> str:
    # In UTC: of the hour that summer time repeats, UNIX_TIMESTAMP(NOW(6)) cannot tell the two apart.
    return "(UNIX_TIMESTAMP() + MICROSECOND(UTC_TIMESTAMP(6)) / 1e6)"


@compiles(Now, "sqlite")
def _of_sqlite(_element: Now, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
