"""Did that COMMIT happen? PostgreSQL remembers it by the number of the transaction, and can be asked on another connection."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from contextvars import ContextVar
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only, greenlet_spawn

from tenure.engines.ledger import Lease, Ledger
from tenure.exceptions import BadOption, CommitUnknown, annotate, brief, link_broke, sqlstate

LIMIT: Final = 10.0  # seconds in which the server must answer
_left: ContextVar[float | None] = ContextVar("left", default=None)  # seconds that a question may still take in this thread
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.25
_OLDEST: Final = (13,)  # has pg_xact_status() for the 64-bit numbers that never repeat


class Witness:
    """Knows the numbers of the transactions whose COMMIT may have to be asked about."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self._engine = engine
        self._ledger = ledger
        self._numbers: weakref.WeakKeyDictionary[Lease, str | None] = weakref.WeakKeyDictionary()

    def check(self) -> None:
        """Raise BadOption where the server cannot tell, as far as this is known: its version is, once there was a connection."""
        dialect = self._engine.dialect
        version = getattr(dialect, "server_version_info", None)
        if dialect.name != "postgresql" or (version is not None and version < _OLDEST):
            shown = f"{dialect.name} {'.'.join(map(str, version or ()))}".strip()
            raise BadOption(f"verify_commit=True: {shown} cannot tell what became of a COMMIT. It takes PostgreSQL 13 or later.")

    def watch(self, lease: Lease) -> None:
        """Remember the number of the transaction that ends on *lease*."""
        self.check()
        if not event.contains(self._engine, "do_connect", self._connecting):
            event.listen(self._engine, "do_connect", self._connecting)
        self._numbers[lease] = None
        event.listen(lease.connection, "commit", self._committing)

    def _committing(self, connection: Connection) -> None:
        """Connection event ``commit``: it is about to be sent. One round trip."""
        if lease := self._ledger.lease_on(connection):
            asked = connection.exec_driver_sql("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")
            self._numbers[lease] = asked.scalar()

    def close(self) -> None:
        """Leave the engine as it was."""
        if event.contains(self._engine, "do_connect", self._connecting):
            event.remove(self._engine, "do_connect", self._connecting)

    def ask(self, lease: Lease) -> bool | None:
        """Whether the transaction on *lease* was committed; None if it cannot be learnt within ``LIMIT`` seconds."""
        number = self._numbers.get(lease)
        if number is None:  # it had written nothing before COMMIT; a NOTIFY is written in it
            return None
        end, pause = time.monotonic() + LIMIT, _FIRST_PAUSE
        while (left := end - time.monotonic()) > 0:
            try:
                status = self._status(number, left)
            except Exception as error:  # not there yet, or never again: the time limit decides
                if (sqlstate(error) or "").startswith("22"):
                    return None  # a number that this server has never given: it is another one
                status = "in progress"
            if status != "in progress":
                return {"committed": True, "aborted": False}.get(status or "")
            self._sleep(max(0.0, min(pause, end - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return None

    def _status(self, number: str, left: float) -> str | None:
        if not self._engine.dialect.is_async:
            token = _left.set(left)
            try:
                return self._ask_once(number)
            finally:
                _left.reset(token)
        return await_only(asyncio.wait_for(greenlet_spawn(self._ask_once, number), left))

    def _ask_once(self, number: str) -> str | None:
        # A pool of its own, for one connection: in the engine's this would wait for its turn, maybe behind this very unit.
        connection: Any = self._engine.pool.recreate().connect()
        try:
            cursor = connection.cursor()
            cursor.execute(f"SELECT pg_xact_status('{int(number)}'::xid8)")
            (status,) = cursor.fetchone()
            cursor.close()
        finally:
            connection.invalidate()  # which closes it for good
        return None if status is None else str(status)

    def _connecting(self, dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
        """Engine event ``do_connect``: a question waits no longer than it may. libpq knows no connect_timeout below 2 s."""
        left = _left.get()
        if left is None or dialect.driver not in ("psycopg", "psycopg2"):
            return None
        limits = {"connect_timeout": max(2, math.ceil(left)), "tcp_user_timeout": math.ceil(1000 * left)}
        return dialect.connect(*arguments, **{**limits, **parameters})

    def _sleep(self, seconds: float) -> None:
        if self._engine.dialect.is_async:
            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)


def doubt(unit: str, error: BaseException) -> BaseException | None:
    """What to raise for *error*, which came while the COMMIT of *unit* was under way; None if it tells that this failed."""
    what = f"in COMMIT of {unit}: {brief(error)}. The work may or may not be stored. Check before a rerun."
    if not isinstance(error, Exception):  # an interruption or a cancellation goes on as what it is
        annotate(error, f"tenure: interrupted {what} [commit-unknown]")
        return error
    if not link_broke(error) and not (isinstance(error, DBAPIError) and error.connection_invalidated):
        return None
    unknown = CommitUnknown(f"connection lost {what}")
    unknown.__cause__ = error
    return unknown
