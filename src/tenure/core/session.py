"""UnitSession: the session of a unit. Every way into it is guarded here, once for both faces."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from tenure import callsite
from tenure.callsite import Site, words
from tenure.core import detached, events
from tenure.core.current import innermost_open
from tenure.core.hold import HoldingSession, streams
from tenure.core.plan import Outcome
from tenure.engines.profile import refused_write
from tenure.exceptions import ConcurrentUse, ForeignContext, ReadOnlyUnit, ReleaseRefused, UnitEnded

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit

identity: Callable[[], object] = callsite.getcurrent or threading.get_ident
# What a statement does, by the name under which SQLAlchemy visits it; for the text of an error only.
_WRITES = {"insert": "INSERT", "update": "UPDATE", "delete": "DELETE"}


class UnitSession(HoldingSession):
    """The session that ``db.unit`` gives: SQLAlchemy's, with an owner and an end.

    Overlapping use, use after the end, use in a foreign context, and a commit by code that has joined raise at the user's line.
    """

    _turn: object = None  # the greenlet or thread that is in the session now
    _operation = ""
    _since = 0.0
    _owner: Any = None  # the thread or task that worked here last
    _owner_turn: object = None
    _statement: Any = None
    _site: Site | None = None
    _committed = False
    _last_call = False  # the unit ended while somebody else was in the session: they close it on leaving
    touched = False
    is_async = False

    def __init__(self, unit: BaseUnit[Any], **options: Any) -> None:
        options.pop("bind", None)
        options.pop("binds", None)
        super().__init__(close_resets_only=False, **options)
        database = unit.database
        self._unit = unit
        self._supply = database.supply
        self._plain = database.plain
        self._var = database.current_place.var
        self._lock = threading.Lock()
        self.sites: dict[type, Site | None] = {}  # which line loaded a class last

    # -- the guard ------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise unless the unit is open and this context descends from it."""
        here = self._var.get()()
        unit = self._unit
        if (here is unit or unit.ending) and not unit.ended:
            return
        if unit.ended:
            self._unit.database.guard(UnitEnded(unit.obituary()))
        elif here is None or not here.descends_from(unit):
            who, line = self._who(), callsite.words(callsite.here(2))
            unit.database.guard(
                ForeignContext(
                    f"{who} ({line}) has no part in unit {unit.name!r} ({words(unit.site)}). Start it with db.unit(function), or hand"
                    " over with asyncio.to_thread or contextvars.copy_context().run (loop.run_in_executor copies no context)."
                )
            )

    def _enter(self, operation: str) -> None:
        me = identity()
        if not self._lock.acquire(blocking=False):
            if self._turn is me:
                self._depth += 1
                return
            self._overlap(operation)
            self._depth += 1  # the guard is off, or warns: go on as SQLAlchemy would
            return
        try:
            self._check()
        except BaseException:
            self._lock.release()
            raise
        self._turn, self._operation, self._depth = me, operation, 1
        self.touched = True
        if self._owner_turn is not me:
            self._owner_turn, self._owner = me, self._worker()
        self._site = callsite.here(3)
        self._since = time.monotonic()

    def _leave(self, error: BaseException | None) -> None:
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            if self._lease is not None or self._spent or self._streams:
                self._outermost_returned(error)
        except BaseException as failed:
            if error is None:
                raise
            error.add_note(f"tenure: the connection could not be given back ({type(failed).__name__}) and was discarded.")
        finally:
            self._depth = 0
            self._turn = None
            if self._lock.locked():
                self._lock.release()
            if self._last_call:
                self._last_call = False
                super().close()

    def _through(self, operation: str, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """The way into the session for everything that may reach the database."""
        self._enter(operation)
        error: BaseException | None = None
        try:
            return call(*args, **kw)
        except BaseException as failed:
            error = failed
            if isinstance(failed, DBAPIError) and self._unit.readonly and refused_write(failed):
                line = words(self._site)
                raise ReadOnlyUnit(self._read_only(f"{operation}() at {line}")) from failed
            raise
        finally:
            self._leave(error)

    def _overlap(self, operation: str) -> None:
        first_line = words(self._site)
        ms = (time.monotonic() - self._since) * 1000
        self._unit.database.guard(
            ConcurrentUse(
                f"{self._who()} began {operation}() at {words(callsite.here(3))} while {describe(self._owner)} is still in"
                f" {self._operation}() ({first_line}, since {ms:.0f} ms). One session is one conversation: give each its own unit,"
                f' {"async " if self.is_async else ""}with db.unit(propagation="new").'
            )
        )

    def _worker(self) -> Any:
        return threading.current_thread()

    def _who(self) -> str:
        return describe(self._worker())

    # -- what may not be done ---------------------------------------------------------------------------

    def _part(self) -> BaseUnit[Any]:
        """The part of the unit in which the calling code is: the unit itself, or one that has joined it."""
        here = innermost_open(self._var.get()())
        return self._unit if here is None or here.root is not self._unit else here

    def _refuse_write(self, clause: Any) -> None:
        unit = self._part()
        if not unit.readonly:
            return
        if getattr(clause, "is_dml", False) or getattr(clause, "is_ddl", False):
            kind = _WRITES.get(getattr(clause, "__visit_name__", ""), "DDL")
            self._unit.database.guard(ReadOnlyUnit(self._read_only(f"{kind} at {words(self._site)}")))
        elif unit is not self._unit and not self._unit.readonly and not self._plain.is_plain_text(str(clause)):
            # The transaction is the outer unit's and may write, so the database cannot refuse for this part of it.
            self._unit.database.guard(
                ReadOnlyUnit(self._read_only(f"a statement that is not surely a read, at {words(self._site)}"))
            )

    def _read_only(self, what: str) -> str:
        unit = self._part()
        if self._unit.settled:
            return (
                f"{what} after the answer of {unit.name!r} ({words(unit.site)}) had been settled: nothing would store it."
                " Write before the response begins, or in a unit of its own."
            )
        return f"{what} in read-only unit {unit.name!r} ({words(unit.site)}). Open it without readonly=True."

    def refuse_unflushed(self) -> None:
        """Raise ReadOnlyUnit if something waits to be written."""
        count = len(self.new) + len(self.deleted) + sum(1 for one in self.dirty if self.is_modified(one))
        if count:
            some = next(iter([*self.new, *self.deleted, *self.dirty]))
            self._unit.database.guard(
                ReadOnlyUnit(self._read_only(f"flush of {count} {type(some).__name__} at {words(self._site or callsite.here(3))}"))
            )

    # -- statements ---------------------------------------------------------------------------------------

    def _state(self, operation: str, call: Callable[..., Any], statement: Any, args: Any, kw: Any) -> Any:
        if self._depth == 0 or self._turn is not identity():
            self._statement = statement
        if not self._streams and streams(statement, kw.get("execution_options")):
            self._streams = True
        return self._through(operation, call, statement, *args, **kw)

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

    def delete(self, *args: Any, **kw: Any) -> Any:
        return self._through("delete", super().delete, *args, **kw)  # cascades may load

    def connection(self, *args: Any, **kw: Any) -> Connection:
        """SQLAlchemy's ``Connection``, in the unit's transaction: what is run on it is not known to be a read."""
        return self._through("connection", super().connection, *args, **kw)  # type: ignore[no-any-return]

    def bulk_save_objects(self, *args: Any, **kw: Any) -> None:
        self._in_transaction("bulk_save_objects", super().bulk_save_objects, *args, **kw)

    def bulk_insert_mappings(self, *args: Any, **kw: Any) -> None:
        self._in_transaction("bulk_insert_mappings", super().bulk_insert_mappings, *args, **kw)

    def bulk_update_mappings(self, *args: Any, **kw: Any) -> None:
        self._in_transaction("bulk_update_mappings", super().bulk_update_mappings, *args, **kw)

    def _in_transaction(self, operation: str, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Something that writes: no read lease may be in the SessionTransaction that it is about to use."""
        self._enter(operation)
        error: BaseException | None = None
        self._must_pin += 1
        try:
            self._set_aside()
            if operation.startswith("bulk") and self._unit.readonly:
                self._unit.database.guard(ReadOnlyUnit(self._read_only(f"{operation}() at {words(self._site)}")))
            return call(*args, **kw)
        except BaseException as failed:
            error = failed
            if operation != "commit":
                self._unit.failed(failed, self._site)
            raise
        finally:
            self._must_pin -= 1
            self._leave(error)

    def flush(self, objects: Any = None) -> None:
        if self._part().readonly:
            self.refuse_unflushed()
        self._in_transaction("flush", super().flush, objects)

    # -- objects --------------------------------------------------------------------------------------------

    def add(self, *args: Any, **kw: Any) -> None:
        self._check()
        self.touched = True
        super().add(*args, **kw)

    def add_all(self, instances: Iterable[object]) -> None:
        self._check()
        self.touched = True
        super().add_all(instances)

    def query(self, *args: Any, **kw: Any) -> Any:
        self._check()
        return super().query(*args, **kw)

    # -- the transaction --------------------------------------------------------------------------------------

    def _own(self, operation: str) -> None:
        """Raise NotOwner where the code that calls has joined this session's unit."""
        here = innermost_open(self._var.get()())
        if here is not None and here.root is self._unit and not self._unit.ending:
            here.refuse_unless_owner(operation)

    def begin(self, nested: bool = False) -> SessionTransaction:
        if nested:
            return self.begin_nested()
        self._check()
        self._own("begin")
        self.touched = self._explicit = True
        return super().begin()

    def begin_nested(self) -> SessionTransaction:
        self._must_pin += 1
        try:
            return self._through("begin_nested", self._begin_nested)  # type: ignore[no-any-return]
        finally:
            self._must_pin -= 1

    def _begin_nested(self) -> SessionTransaction:
        self._set_aside()
        if not self._pinned:
            self._pin()
        self.wrote = self.wrote or not self._unit.readonly
        return super().begin_nested()

    def commit(self) -> None:
        """In the unit's own code a checkpoint: commits, runs the hooks registered so far, and goes on."""
        self._own("commit")
        if not self._unit.ending and (error := self._unit.swallowed()) is not None:
            self.rollback()
            raise error
        self._in_transaction("commit", super().commit)
        self._run_due()

    def rollback(self) -> None:
        """In the unit's own code: undo everything since the last commit, and go on."""
        self._own("rollback")
        self._through("rollback", self._rollback)
        self._run_due()

    def _rollback(self) -> None:
        if not self.in_transaction():
            # The last read ended the SessionTransaction, and without one rollback() does nothing: pending objects, marks of
            # deletion and unflushed changes would live on, and a later commit would write them.
            super().begin()
        super().rollback()

    def close(self) -> None:
        """In the unit's own code: undo what is not committed and let go of all objects. The unit's end closes for good."""
        if not self._unit.ending and not self._unit.ended:
            self._own("close")
            self.rollback()
            super().reset()
        elif self._lock.acquire(blocking=False):
            self._turn, self._depth = identity(), 1
            try:
                detached.remember(self, self._unit)
                super().close()
            finally:
                self._leave(None)
        else:  # overlapping use, at the very end: whoever is in the session closes it on leaving
            self._last_call = True

    def reset(self) -> None:
        self.close()

    def invalidate(self) -> None:
        self._own("invalidate")
        self._through("invalidate", super().invalidate)

    def prepare(self) -> None:
        self._own("prepare")
        super().prepare()

    def end_transaction(self, *, keep: bool) -> None:
        """The end of the unit: commit or roll back, if anything was done at all."""
        if self.touched:
            self.commit() if keep else self.rollback()

    def end_savepoint(self, savepoint: SessionTransaction, *, keep: bool) -> None:
        """The end of a savepoint, unless the transaction around it is over already."""
        if keep:
            self._in_transaction("commit", savepoint.commit)
        elif savepoint in self.savepoints():
            self._through("rollback", savepoint.rollback)

    def release(self) -> None:
        """Give the connection back now.

        Raises:
            ReleaseRefused: Something is unwritten, uncommitted or still being read.

        """
        if self.new or self.deleted or any(self.is_modified(one) for one in self.dirty):
            self._refuse_release("objects that are not written yet")
        if self._pinned and (self.wrote or self.in_nested_transaction()):
            self._refuse_release("work that is not committed")
        self._check()
        self._end_read()

    def _refuse_release(self, what: str) -> NoReturn:
        raise ReleaseRefused(
            f"unit {self._unit.name!r} ({words(self._unit.site)}) has {what} at {words(callsite.here(3))}. Commit or roll back first."
        )

    # -- what SQLAlchemy tells -----------------------------------------------------------------------------------

    def transaction_ended(self, transaction: SessionTransaction) -> None:
        super().transaction_ended(transaction)
        if transaction.parent is None and self._committed:
            self._committed = False
            self._settled_here(Outcome.COMMITTED)

    def rolled_back(self, transaction: SessionTransaction) -> None:
        """A SessionTransaction was rolled back."""
        if transaction.nested:
            self._unit.savepoint_undone(transaction)
        elif transaction.parent is None:
            self._unit.all_undone()
            self._settled_here(Outcome.ROLLED_BACK)

    def _settled_here(self, outcome: Outcome) -> None:
        if self._unit.ending:
            return  # the unit's end runs the hooks, once the session is closed
        self.wrote = False
        self._unit.checkpoint(outcome)
        if self._turn is None:  # ``with session.begin():`` comes by no other way
            self._run_due()

    def _run_due(self) -> None:
        if not self._unit.ending and self._unit.has_due:
            self._unit.database.run_hooks_here(self._unit, self._unit.take_due())

    # -- what the ledger asks -----------------------------------------------------------------------------------------

    def _holder(self) -> UnitSession:
        return self

    def _loads(self, mapper: Any) -> None:
        self.sites[getattr(mapper, "class_", mapper)] = self._site

    def holding(self) -> tuple[str, Site | None, str, str | None, bool]:
        statement = None if self._statement is None else str(self._statement)
        return self._unit.name, self._unit.site, describe(self._owner), statement, self._turn is not None

    def owner_is_gone(self) -> bool:
        owner = self._owner() if isinstance(self._owner, weakref.ref) else self._owner
        if isinstance(owner, threading.Thread):
            return not owner.is_alive()
        return owner is None or (isinstance(owner, asyncio.Task) and owner.done())

    def reclaim(self) -> None:
        """Roll back in place of an owner that is gone, so that its connection can be used."""
        unit = self._unit
        if unit.ended:
            return
        unit.ending = True
        why = f"its {describe(self._owner)} has ended"
        try:
            self.close()
        finally:
            unit.close(Outcome.ROLLED_BACK, None, None)
            unit.database.warn_leak(events.UnitLeaked(unit.database.name, unit.name, unit.site, why))

    def statement_failed(self, error: BaseException) -> None:
        if self._pinned and not self._unit.ending:
            self._unit.failed(error, self._site)


class AsyncioUnitSession(UnitSession):
    """The synchronous session behind an ``AsyncSession``: its owner is a task."""

    is_async = True

    def _worker(self) -> Any:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop runs in this thread
            task = None
        return threading.current_thread() if task is None else weakref.ref(task)


def describe(owner: Any) -> str:
    """``thread 'Thread-3'`` or ``task 'fetch_a'``."""
    if isinstance(owner, weakref.ref):
        owner = owner()
    if isinstance(owner, asyncio.Task):
        return f"task {owner.get_name()!r}"
    return f"thread {owner.name!r}" if isinstance(owner, threading.Thread) else "an owner that is gone"


@event.listens_for(UnitSession, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if isinstance(session, UnitSession):
        session.transaction_ended(transaction)


@event.listens_for(UnitSession, "after_soft_rollback")
def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    if isinstance(session, UnitSession):
        session.rolled_back(transaction)


@event.listens_for(UnitSession, "after_commit")
def _committed(session: Session) -> None:
    if isinstance(session, UnitSession) and not session.in_nested_transaction():
        session._committed = True  # pyright: ignore[reportPrivateUsage]
