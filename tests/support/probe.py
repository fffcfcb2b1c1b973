"""What a test sees from outside: the rows as another connection finds them, its own lines, and the events it causes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tenure.core import events

from support.face import Face
from support.models import User
from support.servers import DRIVERS

_BLOCKING = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}


def line(offset: int = 0) -> str:
    """The line of the caller, *offset* lines further down, as a message shows it: ``test_guards.py:24``."""
    frame = sys._getframe(1)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno + offset}"


def stored(face: Face, column: Any = User.name) -> list[Any]:
    """The values of *column* in the rows that another connection sees, sorted."""
    return sorted(outside(face, sa.select(column)))


def outside(face: Face, statement: Any) -> list[Any]:
    """The first column of what *statement* gives on a connection that tenure knows nothing of; it is committed."""
    if isinstance(statement, str):
        statement = sa.text(statement)
    engine = sa.create_engine(face.sync_engine.url.set(drivername=_BLOCKING[face.dialect]), poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(statement)
        return list(result.scalars()) if result.returns_rows else []


def is_async(driver: str) -> bool:
    """Whether *driver* is one for asyncio."""
    return DRIVERS[driver].is_async


class Told(list[Any]):
    """A reader that keeps the events it is told."""

    def wants(self, kind: type[Any]) -> bool:
        return True

    def __call__(self, event: Any) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        """Those of one class."""
        return [event for event in self if isinstance(event, kind)]

    def outcomes(self) -> list[str]:
        """How the units ended, in order."""
        return [event.outcome.value for event in self.of(events.UnitClosed)]


@contextmanager
def reading(reader: Any) -> Iterator[Any]:
    """Have *reader* told of every event meanwhile."""
    events.READERS.append(reader)
    try:
        yield reader
    finally:
        events.READERS.remove(reader)
