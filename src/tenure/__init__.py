"""tenure: every SQLAlchemy session has one owner, one term and one end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.core import events as _events
from tenure.core.database import Database, Unit
from tenure.core.limits import Limits
from tenure.core.options import Retry
from tenure.engines.admission import Admission
from tenure.engines.replicas import Replicas
from tenure.watch.logs import LogReader as _LogReader

__all__ = ["Admission", "AsyncDatabase", "AsyncUnit", "Database", "Limits", "Replicas", "Retry", "Unit"]

__version__ = "0.1.0"

_events.READERS.append(_LogReader())

if TYPE_CHECKING:
    from tenure.core.aio import AsyncDatabase, AsyncUnit
else:

    def __getattr__(name: str) -> object:
        """The names for asyncio are loaded when first asked for, with SQLAlchemy's asyncio extension: 1.7 MiB."""
        if name not in {"AsyncDatabase", "AsyncUnit"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from tenure.core import aio

        return getattr(aio, name)
