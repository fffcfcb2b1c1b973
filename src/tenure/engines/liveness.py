"""Whether a connection from the pool is still alive, seen without a round trip; and what follows when one is not.

A server that has ended a connection has closed its socket, and the operating system knows: one look, 1 us. A route that was lost
in silence shows nothing, so a connection that rested long is asked. SQLAlchemy's own ``pool_pre_ping`` asks every time.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError

from tenure.engines import resting
from tenure.engines.ledger import Lease, Ledger
from tenure.engines.sockets import socket_of
from tenure.exceptions import annotate, brief, sqlstate

_SINCE: Final = "tenure.idle_since"  # in the info of a pooled connection: when it came back
_HUNG_UP: Final = sum(getattr(select, name, 0) for name in ("POLLHUP", "POLLERR", "POLLNVAL", "POLLRDHUP"))
# MySQL: ER_OPTION_PREVENTS_STATEMENT, which names the option, and ER_READ_ONLY_MODE. PostgreSQL: read_only_sql_transaction
_READ_ONLY: Final = frozenset(["25006", "1290", "1836"])


class Liveness:
    """Looks after the pooled connections of one engine, until ``close()``.

    Args:
        engine: The engine, of whichever face the synchronous one.
        ledger: Who holds its connections.
        idle: A connection that rested longer is asked, in seconds; None never asks.

    """

    def __init__(self, engine: Engine, ledger: Ledger, idle: float | None) -> None:
        self._engine = engine
        self._ledger = ledger
        self._idle = idle
        self._postgresql = engine.dialect.name == "postgresql"
        self._socket = socket_of(engine)
        self._busy = _BUSY.get(engine.dialect.driver, _not_busy)
        if engine.dialect.name != "sqlite":  # which has no server to lose
            event.listen(engine, "checkout", self.checked_out)
            event.listen(engine, "checkin", self._checked_in)
            event.listen(engine, "handle_error", self._failed)

    def close(self) -> None:
        """Look no longer."""
        for name, function in (("checkout", self.checked_out), ("checkin", self._checked_in), ("handle_error", self._failed)):
            if event.contains(self._engine, name, function):
                event.remove(self._engine, name, function)

    def _checked_in(self, connection: Any, record: Any) -> None:
        if connection is not None:
            record.info[_SINCE] = time.monotonic()

    def checked_out(self, connection: Any, record: Any, _fairy: Any) -> None:
        """Pool event ``checkout``: have the pool replace a connection that cannot be used."""
        since = record.info.get(_SINCE)
        if since is not None:  # else it is as new: it did not rest in the pool
            self._examine(connection, since)

    def is_usable(self, lease: Lease) -> bool:
        """Whether the connection of *lease*, which its unit has kept since a read, may be used for another."""
        connection = lease.connection
        if connection.invalidated:
            return False
        if self._engine.dialect.name == "sqlite":
            return True
        try:
            self._examine(connection.connection.dbapi_connection, lease.rests_since)
        except DisconnectionError:
            return False
        return True

    def _examine(self, connection: Any, since: float) -> None:
        """Raise what tells SQLAlchemy to replace *connection*, which rested *since* then, if it cannot be used."""
        driver = connection.driver_connection if self._engine.dialect.is_async else connection
        shown = self._look(driver)
        if shown is False or self._busy(driver):
            raise DisconnectionError("the server has ended the connection, or it was given back in mid-transaction")
        asks = self._idle is not None and time.monotonic() - since >= self._idle
        if (asks or shown is None) and not self._answers(connection):
            raise InvalidatePoolError("the server no longer answers on the connection")  # nor, most likely, on the others

    def _look(self, driver: Any) -> bool | None:
        """Whether the socket is open; None where the server has said something unasked (PostgreSQL's notices), or asks it."""
        try:
            descriptor = self._socket(driver)
        except Exception:  # each driver has its own error for a connection that it has closed itself
            return False
        if descriptor is None:
            return True
        said = -1 if descriptor < 0 else _poll(descriptor)
        if said & _HUNG_UP:
            return False
        return True if not said else None if self._postgresql else False

    def _answers(self, connection: Any) -> bool:
        try:
            return bool(self._engine.dialect.do_ping(connection))
        except Exception:  # whatever it is, no unit may get this connection
            return False

    def _failed(self, context: Any) -> None:
        """A statement failed on a connection that somebody holds."""
        error, connection = context.sqlalchemy_exception, context.connection
        if connection is None or error is None:
            return
        lease = self._ledger.lease_on(connection)
        if lease is None or lease.commit_sent:  # what became of a COMMIT is another question
            return
        if context.is_disconnect:
            holder = lease.holder()
            if holder is not None:
                holder.connection_lost(error)
        elif sqlstate(error) in _READ_ONLY and self._became_read_only(error, connection):
            context.is_disconnect = True  # and with it, as for every lost connection, all others of the engine's pool go
            if lease.gate.rooms is not None:
                lease.gate.rooms.renew(lease.queue)
            annotate(
                error,
                f"tenure: the server refuses writes ({brief(error)}), as one does that is no longer the primary. Its pooled connections"
                " were discarded, and the unit is rolled back; the next one connects anew, so it is safe to run this again.",
            )

    def _became_read_only(self, error: BaseException, connection: Any) -> bool:
        if self._postgresql:
            return not connection.get_execution_options().get("postgresql_readonly")
        text = str(getattr(error, "orig", error)).lower()
        return "read-only" in text or "read_only" in text or sqlstate(error) == "1836"


def only_ours(listeners: Iterable[Any]) -> bool:
    """Whether nobody but tenure is among *listeners* of the event ``checkout``."""
    ours = Liveness.checked_out
    return all(getattr(one, "__func__", None) is ours or one is resting.checked_out for one in listeners)


def _poll(descriptor: int) -> int:
    """What there is to see on a socket, without waiting: a bit mask, 0 for nothing."""
    if not hasattr(select, "poll"):  # Windows: that there is something, not what
        return 1 if select.select([descriptor], [], [], 0)[0] else 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | getattr(select, "POLLRDHUP", 0))
    ready = poll.poll(0)
    return ready[0][1] if ready else 0


# Each tells whether a driver connection is still in a transaction, as far as the driver knows without asking.


def _not_busy(_driver: Any) -> bool:
    return False


def _psycopg_busy(driver: Any) -> bool:
    return bool(driver.pgconn.transaction_status)  # 0 is IDLE


def _psycopg2_busy(driver: Any) -> bool:
    return bool(driver.info.transaction_status)


def _asyncpg_busy(driver: Any) -> bool:
    return bool(driver.is_in_transaction())


def _mysql_busy(driver: Any) -> bool:
    return bool(driver.server_status & 1)  # SERVER_STATUS_IN_TRANS


_BUSY: Final[dict[str, Callable[[Any], bool]]] = {
    "psycopg": _psycopg_busy,
    "psycopg_async": _psycopg_busy,
    "psycopg2": _psycopg2_busy,
    "asyncpg": _asyncpg_busy,
    "pymysql": _mysql_busy,
    "aiomysql": _mysql_busy,
}
