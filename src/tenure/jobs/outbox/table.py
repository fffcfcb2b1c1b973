"""The outbox's table, in the user's own metadata, and the objects by which units write it."""

from __future__ import annotations

import weakref
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text, event
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Mapper, registry

from tenure.callsite import Site, words
from tenure.exceptions import BadOption, OutboxMissing
from tenure.jobs.clock import Now

PENDING: Final = "pending"
SENT: Final = "sent"
DEAD: Final = "dead"
LONGEST_TOPIC: Final = 190
LONGEST_ERROR: Final = 500
_ROW: Final = "tenure.outbox"  # in the info of the table: the class of its rows
_THERE: Final[weakref.WeakKeyDictionary[Engine, set[str]]] = weakref.WeakKeyDictionary()  # tables that were seen


def table(metadata: MetaData, name: str = "tenure_outbox") -> Table:
    """Put an outbox's table into *metadata*, for ``create_all`` and for migrations.

    Args:
        metadata: The application's own.
        name: The table's. Default ``"tenure_outbox"``.

    """
    number = BigInteger().with_variant(Integer, "sqlite")
    made = Table(
        name,
        metadata,
        Column("id", number, primary_key=True, autoincrement=True),
        Column("topic", String(LONGEST_TOPIC), nullable=False),
        Column("arguments", Text().with_variant(LONGTEXT, "mysql", "mariadb"), nullable=False),
        Column("state", String(8), nullable=False, default=PENDING),
        Column("attempts", Integer, nullable=False, default=0),
        Column("created", Double, nullable=False, default=Now()),
        Column("due", Double, nullable=False, default=Now()),
        Column("sent", Double),
        Column("error", String(LONGEST_ERROR)),
        Index(f"ix_{name}_state", "state", "id"),
    )
    made.info[_ROW] = _row_class(made)
    return made


class Row:
    """A message as a unit stores it; each table has a subclass."""

    def __init__(self, topic: str, arguments: str, site: Site | None) -> None:
        self.topic = topic
        self.arguments = arguments
        self.site = site


def row_class_of(made: Any) -> type[Row]:
    """The class by which rows of *made* are written.

    Raises:
        BadOption: ``table()`` has not made it.

    """
    found: type[Row] | None = getattr(made, "info", {}).get(_ROW)
    if found is None:
        raise BadOption(f"an outbox needs its table, not {made!r}: give what outbox.table(metadata) returns.")
    return found


def missing(made: Table, database: str, what: str) -> OutboxMissing:
    """The error for a database that has no such table."""
    return OutboxMissing(
        f"{what} needs the table {made.fullname!r}, which {database} does not have. outbox.table() has put it into your metadata:"
        " create it by metadata.create_all(), or by a migration."
    )


def is_there(made: Table, connection: Connection) -> bool:
    """Whether the database has the table; asked for until it has."""
    seen = _THERE.setdefault(connection.engine, set())
    if made.fullname in seen:
        return True
    if connection.dialect.has_table(connection, made.name, made.schema):
        seen.add(made.fullname)
    return made.fullname in seen


def _row_class(made: Table) -> type[Row]:
    found = type("OutboxRow", (Row,), {})
    registry(metadata=made.metadata).map_imperatively(found, made)

    def before_insert(_mapper: Mapper[Any], connection: Connection, row: Row) -> None:
        if not is_there(made, connection):
            raise missing(made, "the database", f"message {row.topic!r} ({words(row.site)})")

    event.listen(found, "before_insert", before_insert)
    return found
