"""What a client has written, as a mark that its later reads are held to, and as a token that may leave the program.

PostgreSQL tells a position in its log that a replica must have replayed. Of other databases nothing is asked: for some seconds
after a write the client stays on the primary.
"""

from __future__ import annotations

import re
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import Connection

from tenure.engines.supply import Supply

_TOKEN: Final = re.compile(r"(?:p([0-9a-f]{1,16}))?(?:t([0-9a-f]{1,11}))?")
_PAGE: Final = 8192  # bytes of PostgreSQL's log, each begun by a header of so many
_HEADERS: Final = (24, 40)
_WRITTEN: Final = "SELECT CAST(pg_current_wal_insert_lsn() AS text)"
# A server that is not in recovery is no replica, or none any more; its own log is what it has.
_REPLAYED: Final = """
SELECT CAST(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS text),
       CAST(CASE WHEN NOT pg_is_in_recovery() THEN 0
                 WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
                 ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END AS float)
"""


class Mark(NamedTuple):
    """What must be seen: a position of the log, and until when (``time.time()``) only the primary will do."""

    position: int = 0
    until: float = 0.0

    def token(self, now: float) -> str:
        """The mark as text for the client to keep; empty if there is nothing to wait for."""
        position = f"p{self.position:x}" if self.position else ""
        return position + (f"t{int(self.until * 1000):x}" if self.until > now else "")


NOTHING: Final = Mark()


def later(one: Mark, other: Mark) -> Mark:
    """The mark that holds to both."""
    return Mark(max(one.position, other.position), max(one.until, other.until))


def read(token: str, now: float, sticky: float) -> Mark:
    """The mark of a *token* that came from outside: nothing is taken from it but two numbers. Anything else counts as none."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        return NOTHING
    position, until = (int(part, 16) if part else 0 for part in found.groups())
    return Mark(position, min(until / 1000, now + sticky))


class Client:
    """The one for whom code here reads and writes.

    Args:
        mark: What it has written so far.
        shared: Known to be one client, as that of a web request: what its threads and tasks write is its, too. Otherwise each
            context is on its own.

    """

    __slots__ = ("mark", "shared")

    def __init__(self, mark: Mark, *, shared: bool) -> None:
        self.mark = mark
        self.shared = shared


class Clients:
    """Who the client is, by context."""

    def __init__(self, name: str) -> None:
        self.var: ContextVar[Client | None] = ContextVar(f"tenure.{name}.client", default=None)

    def mark(self) -> Mark:
        """What the client of this context has written."""
        client = self.var.get()
        return NOTHING if client is None else client.mark

    def wrote(self, mark: Mark) -> None:
        """The client of this context has written."""
        client = self.var.get()
        if client is not None and client.shared:
            client.mark = later(client.mark, mark)
        else:  # a new one: contexts that were copied from this one before go on without it
            self.var.set(Client(later(self.mark(), mark), shared=False))


def written(supply: Supply, connection: Connection) -> int:
    """The position of a COMMIT that was just done on *connection*, or 0 if the server cannot be asked."""
    if supply.engine.dialect.name != "postgresql" or connection.closed or connection.invalidated:
        return 0
    try:
        if supply.profile.classic is not None:
            supply.profile.classic(connection.connection)
        if supply.profile.switch is not None:  # one round trip, not those of a transaction
            supply.profile.switch(connection.connection, "read")
        cursor: Any = connection.connection.cursor()
        cursor.execute(_WRITTEN)
        found = cursor.fetchone()[0]
        cursor.close()
        return _number(found)
    except BaseException as error:
        with suppress(Exception):
            connection.invalidate()  # whatever it was, the COMMIT stands; only this connection may be lost
        if not isinstance(error, Exception):
            raise
        return 0


def replayed(connection: Connection) -> tuple[int, float]:
    """How far a replica of PostgreSQL is: its position, and how many seconds it is behind."""
    position, behind = connection.exec_driver_sql(_REPLAYED).one()
    return _number(position), float("inf") if behind is None else behind


def _number(position: str | None) -> int:
    """A position as a number. Where the next page's header would come first, it is the end of what was written before it."""
    high, _, low = (position or "0/0").partition("/")
    found = (int(high, 16) << 32) + int(low, 16)
    return found - found % _PAGE if found % _PAGE in _HEADERS else found
