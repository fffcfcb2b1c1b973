"""tenure: every SQLAlchemy session has one owner, one term and one end."""

from __future__ import annotations

from tenure.core import events as _events
from tenure.core.aio import AsyncDatabase, AsyncUnit
from tenure.core.database import Database, Unit
from tenure.core.options import Retry
from tenure.watch.logs import LogReader as _LogReader

__all__ = ["AsyncDatabase", "AsyncUnit", "Database", "Retry", "Unit"]

__version__ = "0.1.0"

_events.READERS.append(_LogReader())
