"""What SQLAlchemy tells of the transactions of a session, and what follows from it for the unit."""

from __future__ import annotations

from typing import Final

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from tenure.core.plan import Outcome
from tenure.core.readonly import ReadOnlySession


class ToldSession(ReadOnlySession):
    """A session that hears of the end of each transaction, whichever of SQLAlchemy's ways ends it: ``with session.begin():`` calls
    neither ``commit()`` nor ``rollback()``.
    """

    committed = False  # SQLAlchemy has told of a COMMIT, and will tell that the transaction has ended
    released: SessionTransaction | None = None  # the same, for a savepoint
    _over = False  # the COMMIT that ends the unit is done

    def transaction_ended(self, transaction: SessionTransaction) -> None:
        """As ``HoldingSession``; and the unit is told what became of its work."""
        if self._reading_ends and not self._pinned:  # nothing in it concerns the unit
            self._explicit, self._ended_early, self._streamed = False, True, None
            return
        # Not every rollback is told as one: after a failed flush, ``with session.begin_nested():`` only closes what it began.
        lost = self._pinned and not self._reading_ends
        doubtful = self._pinned and self._lease is not None and self._lease.commit_sent and self._lease.connection.invalidated
        try:
            try:
                self._note_position()
            finally:
                super().transaction_ended(transaction)
        finally:  # giving the connection back may fail or be cancelled; what became of the work is known
            self._account_for(transaction, lost, doubtful)

    def _note_position(self) -> None:
        """Where there are replicas: note how far one must be that is to show what was just committed."""
        routing = self._unit.database.routing
        if routing is None or not (self.committed and self.wrote) or self._unit.options.readonly:
            return
        if self._pinned and self._lease is not None:
            self._unit.mark = routing.written(self._lease.connection)
            routing.clients.wrote(self._unit.mark)

    def _account_for(self, transaction: SessionTransaction, lost: bool, doubtful: bool) -> None:
        if transaction.parent is None:
            self._streamed = None
        if transaction.nested:
            kept, self.released = transaction is self.released, None
            if not kept:
                self._unit.savepoint_undone(transaction)
        elif transaction.parent is None:
            if self.committed:
                self.committed, self._over = False, self._unit.ending
                self._settled_here(Outcome.COMMITTED)
            elif self._answer:
                self._over = self._unit.ending
                self._unit.all_undone()  # the lost connection was noted as a failure
                self._settled_here(Outcome.COMMITTED)
            elif doubtful and self._answer is None:
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
        self.wrote, self.changed = False, None
        if self._turn is None:  # ``with session.begin():`` comes by no other way
            self._run_due()

    def _run_due(self) -> None:
        if not self._unit.ending and self._unit.has_due:
            self._unit.database.run_hooks_here(self._unit, self._unit.take_due())

    def refuse_unfit(self) -> None:
        """``with session.begin():`` commits by no other way than this: raise where ``commit()`` would."""
        if not self._unit.ending and (error := self._unit.unfit()) is not None:
            raise error


@event.listens_for(ToldSession, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if isinstance(session, ToldSession):
        session.transaction_ended(transaction)


@event.listens_for(ToldSession, "after_soft_rollback")
def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    if isinstance(session, ToldSession) and transaction.parent is None:
        session.undone()


@event.listens_for(ToldSession, "before_commit")
def _committing(session: Session) -> None:
    if isinstance(session, ToldSession) and not session.in_nested_transaction():
        session.refuse_unfit()


@event.listens_for(ToldSession, "after_commit")
def _committed(session: Session) -> None:
    if isinstance(session, ToldSession):
        session.released = session.get_nested_transaction()
        session.committed = session.released is None


LISTENERS: Final = frozenset([_ended, _rolled_back, _committing, _committed])
