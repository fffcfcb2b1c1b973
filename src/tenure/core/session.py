"""UnitSession: the session of a unit. Every way into it is guarded here, once for both faces."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.sql import CompoundSelect
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from tenure import callsite, workers
from tenure.callsite import words
from tenure.core import events
from tenure.core.guard import identities
from tenure.core.plan import Outcome
from tenure.core.streams import streams
from tenure.core.transaction import TransactionSession
from tenure.engines.ledger import Lease
from tenure.engines.watch import LoopWatch, Watch
from tenure.exceptions import BadOption, annotate

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit


_AGAIN: Final = 0.005  # seconds between two looks at a call that was told to stop


class UnitSession(TransactionSession):
    """The session that ``db.unit`` gives: SQLAlchemy's, with an owner and an end.

    Overlapping use, use after the end, use in a foreign context, and a commit by code that has joined raise at the user's line.
    """

    _expiring: Lease | None = None  # a drain has run out of time, and stops what runs on it
    _strikes: Watch | None = None  # by this
    _looks = False  # listens to what other listeners make of its statements

    def __init__(self, unit: BaseUnit[Any], **options: Any) -> None:
        database = unit.database
        options.pop("binds", None)
        options["bind"] = database.supply.engine  # for whoever reads session.bind; get_bind() decides
        super().__init__(**options)
        self._unit_ref = weakref.ref(unit)
        self._supply = database.supply
        self._plain = database.plain
        self._notices = database.notices
        self._old_at = unit.opened + database.notices.age
        if (
            unit.options.readonly
            and database.routing is not None
            and (unit.options.isolation or database.isolation) != "SERIALIZABLE"
        ):
            self._undecided = database.routing  # which PostgreSQL has on a primary only
        self._var = database.current_place.var
        self._lock = threading.Lock()
        self._identity = identities()
        self._opener = unit.worker or self._worker()
        self.sites = {}
        if unit.deadline is not None:
            self.timed = True

    # -- statements ---------------------------------------------------------------------------------------

    def _state(self, operation: str, call: Callable[..., Any], statement: Any, args: Any, kw: Any) -> Any:
        if self._turn is not self._identity():
            self._statement = statement
        if not self._streams and streams(statement, kw.get("execution_options")):
            self._streams = True
        if isinstance(statement, CompoundSelect):
            kw["bind_arguments"] = {
                "clause": statement,
                **(kw.get("bind_arguments") or {}),
            }  # SQLAlchemy does not tell get_bind()
        if self.dispatch.do_orm_execute and not self._looks:
            self._looks = True
            event.listen(self, "do_orm_execute", _last_look)
        streams_rows = self._streams
        result = self._through(operation, call, statement, *args, **kw)
        if streams_rows and hasattr(result, "closed"):  # scalar() gives a value
            self._streamed = [*(self._streamed or ()), result]
        return result

    def take_over(self, state: ORMExecuteState) -> None:
        """Listeners may have changed the statement or its options. ``get_bind`` is told for ORM statements only."""
        state.bind_arguments["clause"] = state.statement
        if streams(state.statement, state.local_execution_options):
            self._streams = True

    def execute(self, statement: Any, *args: Any, **kw: Any) -> Any:
        return self._state("execute", super().execute, statement, args, kw)

    def scalar(self, statement: Any, *args: Any, **kw: Any) -> Any:
        return self._state("scalar", super().scalar, statement, args, kw)

    def scalars(self, statement: Any, *args: Any, **kw: Any) -> Any:
        return self._state("scalars", super().scalars, statement, args, kw)

    def get(self, *args: Any, **kw: Any) -> Any:
        return self._through("get", super().get, *args, **kw)

    def get_one(self, *args: Any, **kw: Any) -> Any:
        return self._through("get_one", super().get_one, *args, **kw)

    def refresh(self, *args: Any, **kw: Any) -> Any:
        return self._through("refresh", super().refresh, *args, **kw)

    def merge(self, *args: Any, **kw: Any) -> Any:
        return self._through("merge", super().merge, *args, **kw)

    def merge_all(self, *args: Any, **kw: Any) -> Any:  # SQLAlchemy 2.1; it does not call merge()
        return self._through("merge_all", super().merge_all, *args, **kw)

    def delete(self, *args: Any, **kw: Any) -> Any:
        return self._through("delete", super().delete, *args, **kw)  # cascades may load

    def delete_all(self, *args: Any, **kw: Any) -> Any:  # as merge_all()
        return self._through("delete_all", super().delete_all, *args, **kw)

    def connection(self, *args: Any, **kw: Any) -> Connection:
        """SQLAlchemy's ``Connection``, in the unit's transaction: what is run on it is not known to be a read."""
        return self._through("connection", self._connection, *args, **kw)  # type: ignore[no-any-return]

    def _connection(self, bind_arguments: Any = None, **kw: Any) -> Connection:
        given: dict[str, Any] = dict(bind_arguments or {})
        if (bind := given.pop("bind", None)) is not None:
            bind = self.get_bind(bind=bind)  # SQLAlchemy does not ask for it
            if bind is not self._supply.engine:
                given["bind"] = bind
        connection = super().connection(given, **kw)
        self._explicit = True
        return connection

    def bind_mapper(self, mapper: Any, bind: Any) -> NoReturn:  # noqa: ARG002
        """Refused: ``get_bind`` does not look at such binds, and the rows would go to the unit's database in silence."""
        self._refuse_bind("bind_mapper")

    def bind_table(self, table: Any, bind: Any) -> NoReturn:  # noqa: ARG002
        """Refused, as ``bind_mapper``."""
        self._refuse_bind("bind_table")

    def _refuse_bind(self, operation: str) -> NoReturn:
        raise BadOption(
            f"{operation}() at {words(callsite.here(3))}: the session of {self._unit.name!r} ({words(self._unit.site)}) has one database."
            " Give the other one a Database of its own, and open a unit of that."
        )

    def bulk_save_objects(self, *args: Any, **kw: Any) -> None:
        self._in_transaction("bulk_save_objects", super().bulk_save_objects, *args, **kw)

    def bulk_insert_mappings(self, *args: Any, **kw: Any) -> None:
        self._in_transaction("bulk_insert_mappings", super().bulk_insert_mappings, *args, **kw)

    def bulk_update_mappings(self, *args: Any, **kw: Any) -> None:
        self._in_transaction("bulk_update_mappings", super().bulk_update_mappings, *args, **kw)

    # -- objects --------------------------------------------------------------------------------------------

    def add(self, *args: Any, **kw: Any) -> None:
        self._check()
        if not self.touched:
            self._touch()
        super().add(*args, **kw)

    def add_all(self, instances: Iterable[object]) -> None:
        self._check()
        if not self.touched:
            self._touch()
        super().add_all(instances)

    def query(self, *args: Any, **kw: Any) -> Any:
        self._check()
        return super().query(*args, **kw)

    # -- an owner that is gone ----------------------------------------------------------------------------------

    def reclaim(self, why: str | None = None) -> None:
        """Roll back in place of an owner that is gone, so that its connection can be used."""
        unit = self._unit
        if unit.ended or unit.ending:
            return
        unit.ending = True
        why = why or f"its {workers.describe(self._owner)} has ended"
        try:
            self.close()
        except BaseException as error:  # interrupted, or the connection is broken: nobody will come back for it
            self.let_go()
            if not isinstance(error, Exception):
                raise
            events.tell(events.EndTroubled(unit.database.name, unit.name, unit.site, Outcome.ROLLED_BACK, error))
        finally:
            unit.close(Outcome.ROLLED_BACK, None, None)
            unit.database.warn_leak(events.UnitLeaked(unit.database.name, unit.name, unit.site, why))

    def dropped(self) -> None:
        """The unit was dropped without an end. Runs in whatever thread the garbage collector chose, as SQLAlchemy's own does."""
        self.reclaim("it was dropped without an end")

    # -- the end of a drain -----------------------------------------------------------------------------------

    def cut_short(self) -> None:
        """The time of a drain is up: end the unit if nobody is in the session, else have the call under way fail. Call it again
        until the unit has ended.
        """
        unit = self._unit
        if not self._lock.acquire(blocking=False):
            self._stop_call()
            return
        try:
            if unit.ended or unit.ending:  # its owner sees to it
                return
            unit.ending = True
            unit.reason = "drained"
            unit.close(unit.outcome or Outcome.ROLLED_BACK, None, None)  # from here on the owner is told so
        finally:
            self._lock.release()
        try:
            if self._lease is not None and self._supply.has_link:  # a ROLLBACK might wait for a server that is gone
                self._lease.connection.invalidate()
            self.close()
        except Exception as error:
            events.tell(events.EndTroubled(unit.database.name, unit.name, unit.site, unit.outcome or Outcome.ROLLED_BACK, error))

    def _stop_call(self) -> None:
        lease, interrupt = self._lease, self._supply.interrupt
        if lease is None:
            self._supply.gate.dismiss(self)
        elif interrupt is not None and self._expiring is not lease:
            may_stop = interrupt.in_commit or self._operation != "commit"
            with suppress(Exception):  # its connection was lost, or has gone home, at this moment
                self._end_strikes()
                self._strikes = self.watch_class(
                    lease.connection, interrupt, self._supply.engine, time.monotonic(), may_stop=may_stop
                )
                self._expiring = lease

    def let_be(self) -> None:
        """Leave alone what ``cut_short()`` has begun to stop."""
        self._end_strikes()

    def _end_strikes(self) -> None:
        strikes, self._strikes = self._strikes, None
        if strikes is not None:
            strikes.finish()

    def statement_failed(self, error: BaseException) -> None:
        if self._pinned and not self._unit.ending and not self._unit.readonly:
            self._unit.failed(error, self._site)

    def connection_lost(self, error: BaseException) -> None:
        unit = self._unit
        again = "No COMMIT was on its way: it is safe to run it again."
        if unit.partly_stored:
            again = "What it had committed before stays, so do not simply run it again."
        annotate(
            error,
            f"tenure: the connection of {unit.name!r} ({words(unit.site)}) was lost, and what it had not committed was rolled back."
            f" {again}",
        )
        if self._pinned and not unit.ending:
            unit.failed(error, self._site, all_is_lost=True)


class AsyncioUnitSession(UnitSession):
    """The synchronous session behind an ``AsyncSession``: its owner is a task."""

    is_async = True
    watch_class: type[Watch] = LoopWatch
    _loop: asyncio.AbstractEventLoop | None = None
    _sent_for = False  # another loop is at the end of its drain

    def _worker(self) -> Any:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop runs in this thread
            return threading.current_thread()
        task = asyncio.current_task(self._loop)
        return threading.current_thread() if task is None else weakref.ref(task)

    def get_bind(self, mapper: Any = None, **kw: Any) -> Any:
        """As ``HoldingSession``; where SQL cannot be awaited, SQLAlchemy's error comes before a connection is taken and lost."""
        if self._depth and not in_greenlet():
            what = "SQL" if mapper is None else f"{getattr(mapper, 'class_', mapper).__name__}"
            error = MissingGreenlet(
                "greenlet_spawn has not been called; can't call await_() here. Was IO attempted in an unexpected place?",
                code="xd2s",
            )
            error.add_note(
                f"tenure: {what} was to be loaded at {words(self._site)}, where nothing can be awaited. Load it before, as with"
                " selectinload(), or within await session.run_sync(...)."
            )
            raise error
        return super().get_bind(mapper, **kw)

    def dropped(self) -> None:
        """The connection can only be given back in its loop; if that is closed, the connection is lost with it."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with suppress(RuntimeError):  # closed in between
                loop.call_soon_threadsafe(lambda: loop.create_task(self._reclaim_in_loop()))

    def cut_short(self) -> None:
        """As for code that blocks; the connection can only be used in its own loop."""
        loop = self._loop
        if loop is None or loop.is_closed() or loop is asyncio.get_running_loop():
            super().cut_short()
        elif not self._sent_for:
            self._sent_for = True
            with suppress(RuntimeError):  # closed in between
                loop.call_soon_threadsafe(lambda: loop.create_task(self._expire_in_loop()))

    async def _expire_in_loop(self) -> None:
        while not self._unit.ended and self._sent_for:
            await greenlet_spawn(self.cut_short)
            await asyncio.sleep(_AGAIN)
        await greenlet_spawn(self._end_strikes)

    def let_be(self) -> None:
        if self._sent_for:
            self._sent_for = False  # it stops by itself
        else:
            super().let_be()

    async def _reclaim_in_loop(self) -> None:
        await greenlet_spawn(self.reclaim, "it was dropped without an end")


def _last_look(state: ORMExecuteState) -> None:
    if isinstance(state.session, UnitSession):
        state.session.take_over(state)
