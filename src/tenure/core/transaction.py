"""What begins and ends a transaction in a session, and who may do it. What follows from it for the unit is in ``told``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from sqlalchemy.orm import SessionTransaction

from tenure import callsite
from tenure.callsite import words
from tenure.core import detached
from tenure.core.plan import Outcome, became, drive
from tenure.core.streams import has_more_rows, streams
from tenure.core.told import LISTENERS, ToldSession
from tenure.engines.ledger import Lease
from tenure.exceptions import ReadOnlyUnit, ReleaseRefused, link_broke


class TransactionSession(ToldSession):
    """A session whose transaction belongs to its unit."""

    # -- what writes ------------------------------------------------------------------------------------------

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
        if self._turn is not None and self._turn is self._identity() and self._is_clean():
            super().flush(objects)  # the autoflush of a statement that finds nothing to write
            return
        if self._part().readonly:
            self.refuse_unflushed(self.line(3))
        self._in_transaction("flush", super().flush, objects)

    # -- the transaction --------------------------------------------------------------------------------------

    def _own(self, operation: str) -> None:
        """Raise NotOwner where the code that calls has joined this session's unit."""
        unit = self._unit
        if not unit.ending and (part := self._part()) is not unit:
            part.refuse_unless_owner(operation)

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
            if link_broke(failed) and self._lease is not None:  # asyncpg: timed out, or broken, in mid-COMMIT
                self._lease.connection.invalidate(failed)
            if self._unit.ending:
                raise
            verdict = drive(became(failed, self._unit), self._unit.act)
            if verdict.error is failed:
                raise
            if verdict.error is not None:
                raise verdict.error from failed
        self._run_due()

    def ask(self) -> bool | None:
        """As ``HoldingSession``; after a COMMIT that took place the session is as after any other."""
        answer = super().ask()
        if answer:
            self._through("close", self._go_on)  # it is no second COMMIT, which a deadline would refuse
        return answer

    def _go_on(self) -> None:
        # Not by rollback(), which would expire the objects and let go of the new ones.
        if (transaction := self.get_transaction()) is not None:
            transaction.close()
        if self.expire_on_commit:
            self.expire_all()

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
        except BaseException:  # an interrupted ROLLBACK as much as one that failed
            for lease in held:
                lease.connection.invalidate()  # what it is in now is unknown: it must not go back to the pool
            raise
        finally:
            self._held_back = None
            for lease in held:
                self._give_back(lease)

    def close(self) -> None:
        """In the unit's own code: undo what is not committed and let go of all objects. The unit's end closes for good."""
        try:
            if self._parked is not None:
                self.give_back_parked()
        finally:
            self._close()

    def _close(self) -> None:
        unit = self._unit
        if unit.inherited:
            return  # it is the parent's, and stays open there
        if not unit.ending and not unit.ended:
            self._own("close")
            self._through("close", self._reset)
            self._run_due()
        elif self.retire():
            return
        elif self._lock.acquire(blocking=False):
            self._turn, self._depth = self._identity(), 1
            try:
                detached.remember(self, unit)
                super().close()
            finally:
                self._leave(None)
        else:  # overlapping use, at the very end: whoever is in the session closes it on leaving
            self._last_call = True

    def reset(self) -> None:
        self._own("reset")
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

    def discard(self) -> None:
        """A part of the unit could not be undone: the connection, and with it the whole transaction, is no longer to be used."""
        self._through("invalidate", self._discard)

    def _discard(self) -> None:
        if self._lease is not None:
            self._lease.connection.invalidate()

    def prepare(self) -> None:
        self._own("prepare")
        super().prepare()

    def end_transaction(self, *, keep: bool) -> None:
        """The end of the unit: commit or roll back, if anything was done at all."""
        if self._parked is not None:
            self.give_back_parked()
        if keep and self._streamed and self._streaming() and not self.wrote and self.unsaved() is None:
            return  # a COMMIT would store nothing, and close the cursor whose rows the body of an answer goes on to read
        if self.touched and not (keep and self.nothing_to_commit()):
            self.commit() if keep else self.rollback()

    def _streaming(self) -> bool:
        """Whether rows of an earlier statement are still to be fetched, as far as their results tell."""
        return any(has_more_rows(result) for result in self._streamed or ())

    def nothing_to_commit(self) -> bool:
        """Whether a commit would do nothing and nobody but this module would be told: only plain reads ran. Saves 14 % of one."""
        # Private: `new` and `deleted` would each copy what they show. tests/core/test_endings.py fails when this changes.
        if self._turn is not None or self.in_transaction() or not self._is_clean():
            return False
        heard = self.dispatch
        return (
            not heard.after_transaction_create
            and LISTENERS.issuperset(heard.before_commit)
            and LISTENERS.issuperset(heard.after_commit)
            and LISTENERS.issuperset(heard.after_transaction_end)
        )

    def end_savepoint(self, savepoint: SessionTransaction, *, keep: bool) -> None:
        """The end of a savepoint, unless the transaction around it is over already."""
        if keep:
            self._in_transaction("commit", savepoint.commit)
        elif savepoint in self.savepoints():
            try:
                self._through("rollback", savepoint.rollback)
            except BaseException as failed:
                self._unit.failed(failed, self._site, all_is_lost=True)
                raise

    def unsaved(self) -> str | None:
        """What a rollback would lose now, in words."""
        count = len(self.new) + len(self.deleted) + sum(1 for one in self.dirty if self.is_modified(one))
        if count:
            return f"{count} object{'s' * (count > 1)} not written yet"
        if self.changed is not None and self._in_use() and not self._unit.readonly:
            operation, site = self.changed
            return f"work not committed, since {operation}() at {words(site)},"
        return None

    def _in_use(self) -> bool:
        return self._pinned or self._explicit

    def release(self) -> None:
        """Give the connection back now.

        Raises:
            ReleaseRefused: Something is unwritten, uncommitted or still being read.

        """
        if (unsaved := self.unsaved()) or self.in_nested_transaction():
            self._refuse_release(unsaved or "an open savepoint")
        if self.wrote and self._in_use() and not self._unit.readonly:
            self._refuse_release("a transaction open, which may hold locks,")
        if self._streaming():
            self._refuse_release("a stream of rows that is not closed")
        self._check()
        self._end_read()
        self.give_back_parked()

    def _refuse_release(self, what: str) -> NoReturn:
        raise ReleaseRefused(
            f"unit {self._unit.name!r} ({words(self._unit.site)}) has {what} where release() is called, at {words(callsite.here(3))}. Commit,"
            " roll back or close it first."
        )

    # -- what ends a transaction that protects nothing ----------------------------------------------------------------

    def _outermost_returned(self, error: BaseException | None) -> None:
        """End a transaction that protects nothing, as a plain read ends: in the body of an answer every one, else that of streams
        which have all been closed.
        """
        streams_rows = self._streams and error is None
        super()._outermost_returned(error)
        if self._pinned and not streams_rows and (self._unit.settled or self._only_streamed()) and self._is_over():
            self._end_read()

    def _only_streamed(self) -> bool:
        """Whether the connection is pinned for nothing but streams."""
        return bool(self._streamed) and not self.wrote and self._classic is False

    def _is_over(self) -> bool:
        """Whether nobody needs the transaction any more: not its rows, nor a connection or a savepoint that was asked for."""
        return (
            self.is_active
            and not self._explicit
            and not self.in_nested_transaction()
            and not self._streaming()
            and self._rows_at_once
            and self._supply.profile.reads_alone
            and not streams(None, getattr(self, "execution_options", None))
        )
