"""UnitSession: the session of a unit. Every way into it is guarded here, once for both faces."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, MissingGreenlet
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from tenure import callsite
from tenure.callsite import Site, words
from tenure.core import detached, events
from tenure.core.current import innermost_open
from tenure.core.guard import GuardedSession, describe, identity
from tenure.core.hold import streams
from tenure.core.plan import Outcome
from tenure.engines.ledger import Lease
from tenure.engines.profile import refused_write
from tenure.exceptions import ReadOnlyUnit, ReleaseRefused

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit

# What a statement does, by the name under which SQLAlchemy visits it; for the text of an error only.
_WRITES = {"insert": "INSERT", "update": "UPDATE", "delete": "DELETE"}


class UnitSession(GuardedSession):
    """The session that ``db.unit`` gives: SQLAlchemy's, with an owner and an end.

    Overlapping use, use after the end, use in a foreign context, and a commit by code that has joined raise at the user's line.
    """

    committed = False  # SQLAlchemy has told of a COMMIT, and will tell that the transaction has ended
    released: SessionTransaction | None = None  # the same, for a savepoint
    _looks = False  # listens to what other listeners make of its statements
    _over = False  # the COMMIT that ends the unit is done

    def __init__(self, unit: BaseUnit[Any], **options: Any) -> None:
        database = unit.database
        options.pop("binds", None)
        options["bind"] = database.supply.engine  # for whoever reads session.bind; get_bind() decides
        super().__init__(**options)
        self._unit_ref = weakref.ref(unit)
        self._supply = database.supply
        self._plain = database.plain
        self._var = database.current_place.var
        self._lock = threading.Lock()
        self._opener = self._worker()
        self.sites = {}

    @property
    def unit(self) -> BaseUnit[Any]:
        """The unit that this session belongs to."""
        return self._unit

    # -- the way in ----------------------------------------------------------------------------------------

    def _through(self, operation: str, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """The way into the session for everything that may reach the database."""
        if self._turn is identity():  # a call within a call: the outermost sees to everything
            return call(*args, **kw)
        self._enter(operation)
        error: BaseException | None = None
        try:
            return call(*args, **kw)
        except BaseException as failed:
            error = failed
            if isinstance(failed, DBAPIError) and self._unit.readonly and refused_write(failed):
                self._end_read()  # nothing in it could be lost, and PostgreSQL would refuse every further statement
                raise ReadOnlyUnit(self._read_only(f"{operation}() at {words(self._site)}")) from failed
            raise
        finally:
            self._leave(error)

    # -- what may not be done ---------------------------------------------------------------------------

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
                f"{what} after the answer of {self._unit.name!r} ({words(self._unit.site)}) had been settled: nothing would store it."
                " Write before the response begins, or in a unit of its own."
            )
        return f"{what} in read-only unit {unit.name!r} ({words(unit.site)}). Open it without readonly=True."

    def refuse_unflushed(self, site: Site | None = None) -> None:
        """Raise ReadOnlyUnit if something waits to be written."""
        count = len(self.new) + len(self.deleted) + sum(1 for one in self.dirty if self.is_modified(one))
        if count:
            some = next(iter([*self.new, *self.deleted, *self.dirty]))
            self._unit.database.guard(
                ReadOnlyUnit(
                    self._read_only(f"flush of {count} {type(some).__name__} at {words(site or self._site or callsite.here(3))}")
                )
            )

    # -- statements ---------------------------------------------------------------------------------------

    def _state(self, operation: str, call: Callable[..., Any], statement: Any, args: Any, kw: Any) -> Any:
        if self._turn is not identity():
            self._statement = statement
        if not self._streams and streams(statement, kw.get("execution_options")):
            self._streams = True
        if self.dispatch.do_orm_execute and not self._looks:
            self._looks = True
            event.listen(self, "do_orm_execute", _last_look)
        return self._through(operation, call, statement, *args, **kw)

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

    def delete(self, *args: Any, **kw: Any) -> Any:
        return self._through("delete", super().delete, *args, **kw)  # cascades may load

    def connection(self, *args: Any, **kw: Any) -> Connection:
        """SQLAlchemy's ``Connection``, in the unit's transaction: what is run on it is not known to be a read."""
        return self._through("connection", self._connection, *args, **kw)  # type: ignore[no-any-return]

    def _connection(self, bind_arguments: Any = None, **kw: Any) -> Connection:
        given: dict[str, Any] = dict(bind_arguments or {})
        if (bind := given.pop("bind", None)) is not None:
            bind = self.get_bind(bind=bind)  # SQLAlchemy does not ask for it
            if bind is not self._supply.engine:
                given["bind"] = bind
        return super().connection(given, **kw)

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
        if self._turn is identity() and not (self.identity_map.check_modified() or self.new or self.deleted):
            super().flush(objects)  # the autoflush of a statement that finds nothing to write
            return
        if self._part().readonly:
            self.refuse_unflushed(callsite.here(2))
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
        """A savepoint (``begin_nested()`` comes here too), or in the unit's own code an explicit transaction."""
        if nested:
            return self._through("begin_nested", self._begin_nested)  # type: ignore[no-any-return]
        self._check()
        self._own("begin")
        self.touched = self._explicit = True
        return super().begin()

    def _begin_nested(self) -> SessionTransaction:
        self._must_pin += 1
        try:
            if not self._pinned:
                self._pin()
            self.wrote = self.wrote or not self._unit.readonly
            return super().begin(nested=True)
        finally:
            self._must_pin -= 1

    def commit(self) -> None:
        """In the unit's own code a checkpoint: commits, runs the hooks registered so far, and goes on."""
        self._own("commit")
        # A failed flush has rolled back already, and SQLAlchemy says so itself until rollback() is called.
        if not self._unit.ending and self.is_active and (error := self._unit.unfit()) is not None:
            self.rollback()
            raise error
        try:
            self._in_transaction("commit", super().commit)
        except BaseException as failed:
            doubt = None if self._unit.ending else self._unit.in_doubt(failed)
            if doubt is None or doubt is failed:
                raise
            raise doubt from failed
        self._run_due()

    def refuse_unfit(self) -> None:
        """``with session.begin():`` commits by no other way than this: raise where ``commit()`` would."""
        if not self._unit.ending and (error := self._unit.unfit()) is not None:
            raise error

    def rollback(self) -> None:
        """In the unit's own code: undo everything since the last commit, and go on."""
        self._own("rollback")
        self._through("rollback", self._rollback)
        self._run_due()

    def _rollback(self) -> None:
        if self._ended_early and not self.in_transaction():
            # The last read ended the SessionTransaction, and without one rollback() does nothing: what was read would not be
            # read again.
            super().begin()
        held: list[Lease] = []
        self._held_back = held
        try:
            super().rollback()
        except BaseException:
            for lease in held:
                lease.connection.invalidate()  # what it is in now is unknown: it must not go back to the pool
            raise
        finally:
            self._held_back = None
            for lease in held:
                self._supply.give_back(lease)

    def close(self) -> None:
        """In the unit's own code: undo what is not committed and let go of all objects. The unit's end closes for good."""
        if not self._unit.ending and not self._unit.ended:
            self._own("close")
            self._through("close", self._reset)
            self._run_due()
        elif self.retire():
            return
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

    def _reset(self) -> None:
        # Not by way of rollback(), which would expire the objects: they leave with what they have loaded.
        super().reset()
        self._ended_early = False
        self._unit.all_undone()
        self._settled_here(Outcome.ROLLED_BACK)

    def invalidate(self) -> None:
        """In the unit's own code: discard the connection and what is not committed, let go of all objects, and go on."""
        if self._unit.ending or self._unit.ended:
            self._through("invalidate", super().invalidate)
            return
        self._own("invalidate")
        self._through("invalidate", self._discard)
        self.close()

    def _discard(self) -> None:
        if self._lease is not None:
            self._lease.connection.invalidate()

    def prepare(self) -> None:
        self._own("prepare")
        super().prepare()

    def end_transaction(self, *, keep: bool) -> None:
        """The end of the unit: commit or roll back, if anything was done at all."""
        if self.touched and not (keep and self.nothing_to_commit()):
            self.commit() if keep else self.rollback()

    def nothing_to_commit(self) -> bool:
        """Whether a commit would do nothing and nobody but this module would be told: only plain reads ran. Saves 14 % of one."""
        if self._turn is not None or self.in_transaction() or self.identity_map.check_modified() or self.new or self.deleted:
            return False
        heard = self.dispatch
        return (
            not heard.after_transaction_create
            and _OURS.issuperset(heard.before_commit)
            and _OURS.issuperset(heard.after_commit)
            and _OURS.issuperset(heard.after_transaction_end)
        )

    def end_savepoint(self, savepoint: SessionTransaction, *, keep: bool) -> None:
        """The end of a savepoint, unless the transaction around it is over already."""
        if keep:
            self._in_transaction("commit", savepoint.commit)
        elif savepoint in self.savepoints():
            self._through("rollback", savepoint.rollback)

    def unsaved(self) -> str | None:
        """What a rollback would lose now, in words."""
        count = len(self.new) + len(self.deleted) + sum(1 for one in self.dirty if self.is_modified(one))
        if count:
            return f"{count} object{'s' * (count > 1)} not written yet"
        if self.wrote and (self._pinned or self._explicit) and not self._unit.readonly:
            return f"work not committed, last {self._operation}() at {words(self._site)},"
        return None

    def release(self) -> None:
        """Give the connection back now.

        Raises:
            ReleaseRefused: Something is unwritten, uncommitted or still being read.

        """
        if (unsaved := self.unsaved()) or self.in_nested_transaction():
            self._refuse_release(unsaved or "an open savepoint")
        self._check()
        self._end_read()

    def _refuse_release(self, what: str) -> NoReturn:
        raise ReleaseRefused(
            f"unit {self._unit.name!r} ({words(self._unit.site)}) has {what} at {words(callsite.here(3))}. Commit or roll back first."
        )

    # -- what SQLAlchemy tells -----------------------------------------------------------------------------------

    def transaction_ended(self, transaction: SessionTransaction) -> None:
        # Not every rollback is told as one: after a failed flush, ``with session.begin_nested():`` only closes what it began.
        lost = self._pinned and not self._reading_ends
        doubtful = self._pinned and self._lease is not None and self._lease.commit_sent and self._lease.connection.invalidated
        try:
            super().transaction_ended(transaction)
        finally:  # giving the connection back may fail or be cancelled; what became of the work is known
            self._account_for(transaction, lost, doubtful)

    def _account_for(self, transaction: SessionTransaction, lost: bool, doubtful: bool) -> None:
        if transaction.nested:
            kept, self.released = transaction is self.released, None
            if not kept:
                self._unit.savepoint_undone(transaction)
        elif transaction.parent is None:
            if self.committed:
                self.committed, self._over = False, self._unit.ending
                self._settled_here(Outcome.COMMITTED)
            elif doubtful:
                self._unit.doubtful = True
                self.undone(Outcome.UNKNOWN)
            elif lost:
                self.undone()

    def undone(self, outcome: Outcome = Outcome.ROLLED_BACK) -> None:
        """The whole transaction was rolled back, or lost in its COMMIT."""
        self._unit.all_undone()
        self._settled_here(outcome)

    def commit_done(self) -> bool:
        """Whether the COMMIT that ends the unit is done, whatever came after it."""
        return self.committed or self._over or super().commit_done()

    def _settled_here(self, outcome: Outcome) -> None:
        if self._unit.ending:
            return  # the unit's end runs the hooks, once the session is closed
        self._unit.checkpoint(outcome)
        self.wrote = False
        if self._turn is None:  # ``with session.begin():`` comes by no other way
            self._run_due()

    def _run_due(self) -> None:
        if not self._unit.ending and self._unit.has_due:
            self._unit.database.run_hooks_here(self._unit, self._unit.take_due())

    # -- an owner that is gone ----------------------------------------------------------------------------------

    def reclaim(self, why: str | None = None) -> None:
        """Roll back in place of an owner that is gone, so that its connection can be used."""
        unit = self._unit
        if unit.ended or unit.ending:
            return
        unit.ending = True
        why = why or f"its {describe(self._owner)} has ended"
        try:
            self.close()
        finally:
            unit.close(Outcome.ROLLED_BACK, None, None)
            unit.database.warn_leak(events.UnitLeaked(unit.database.name, unit.name, unit.site, why))

    def dropped(self) -> None:
        """The unit was dropped without an end. Runs in whatever thread the garbage collector chose, as SQLAlchemy's own does."""
        self.reclaim("it was dropped without an end")

    def statement_failed(self, error: BaseException) -> None:
        if self._pinned and not self._unit.ending and not self._unit.readonly:
            self._unit.failed(error, self._site)


class AsyncioUnitSession(UnitSession):
    """The synchronous session behind an ``AsyncSession``: its owner is a task."""

    is_async = True
    _loop: asyncio.AbstractEventLoop | None = None

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

    async def _reclaim_in_loop(self) -> None:
        await greenlet_spawn(self.reclaim, "it was dropped without an end")


@event.listens_for(UnitSession, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if isinstance(session, UnitSession):
        session.transaction_ended(transaction)


@event.listens_for(UnitSession, "after_soft_rollback")
def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    if isinstance(session, UnitSession) and transaction.parent is None:
        session.undone()


def _last_look(state: ORMExecuteState) -> None:
    if isinstance(state.session, UnitSession):
        state.session.take_over(state)


@event.listens_for(UnitSession, "before_commit")
def _committing(session: Session) -> None:
    if isinstance(session, UnitSession) and not session.in_nested_transaction():
        session.refuse_unfit()


@event.listens_for(UnitSession, "after_commit")
def _committed(session: Session) -> None:
    if isinstance(session, UnitSession):
        session.released = session.get_nested_transaction()
        session.committed = session.released is None


_OURS = frozenset([_ended, _rolled_back, _committing, _committed])
