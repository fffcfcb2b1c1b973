"""When a session holds a connection: the policy of DESIGN section 4, on the public hooks of SQLAlchemy's ``Session``.

Under ``hold="auto"`` a plain read runs in autocommit and gives its connection back when the outermost call returns; whatever is
not surely a plain read pins one connection in a transaction until commit or rollback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import SessionTransaction

from tenure.callsite import Site
from tenure.core.late import LateSession
from tenure.core.options import strength
from tenure.core.streams import streams
from tenure.engines.ledger import Lease
from tenure.engines.supply import Supply, Terms
from tenure.exceptions import sqlstate

if TYPE_CHECKING:
    from tenure.core.plainread import PlainReads
    from tenure.core.unit import BaseUnit
    from tenure.engines.routing import Routing

T = TypeVar("T")
_READ_COMMITTED = strength("READ COMMITTED")


class HoldingSession(LateSession):
    """A ``Session`` that asks ``Supply`` for its connection, statement by statement."""

    wrote = False  # something other than plain reads ran in the transaction that is, or was last, open
    changed: tuple[str, Site | None] | None = None  # what first ran in it that a rollback may lose
    _operation = ""  # the outermost call that is under way, or was the last
    _site: Site | None = None  # and its line
    _unit_ref: Callable[[], BaseUnit[Any] | None]
    _supply: Supply
    _plain: PlainReads
    _undecided: Routing | None = None  # a replica may serve this unit; which one is decided with its first statement
    _unproved: Routing | None = None  # a replica is to serve it, and has answered nothing yet
    _lease: Lease | None = None  # the connection held now
    _pinned = False  # it is held for a transaction
    _answer: bool | None = None  # what the server said of the COMMIT of that transaction, when its own answer was lost
    _parked: Lease | None = None  # the connection of the last read, kept for the next one until somebody else needs it
    _spent: list[Lease] | None = None  # leases of reads on whose rows an outer statement is still at work
    _depth = 0  # calls within calls
    _must_pin = 0  # flush, commit and savepoints: what happens in them belongs to the transaction
    _streams = False  # the outermost statement's rows are fetched after it has returned
    _rows_at_once = True  # rows of what is not streamed are in memory when a call returns, also in the transaction that is open
    _held_back: list[Lease] | None = None  # a rollback is under way: its connection goes home when it is known to have worked
    _reading_ends = False  # the SessionTransaction is being closed because nothing in it needs to be kept
    _ended_early = False  # one was, since the last commit or rollback
    _explicit = False  # begin() or connection() was called, or a bind of the caller's own was used: the transaction is theirs
    _classic: bool | None = None  # a transaction from the first statement on

    @property
    def _unit(self) -> BaseUnit[Any]:
        unit = self._unit_ref()
        if unit is None:
            raise ReferenceError("the unit of this session is gone")  # pragma: no cover - its __del__ calls keep()
        return unit

    @property
    def unit(self) -> BaseUnit[Any]:
        """The unit that this session belongs to."""
        return self._unit

    def keep(self, unit: BaseUnit[Any]) -> None:
        """The unit has ended, and can tell those who come late how. Until then it is known weakly, so that one that is dropped
        while its session is kept goes at once, not when the garbage collector finds the cycle.
        """
        self._unit_ref = lambda: unit

    # -- the one door to SQL ------------------------------------------------------------------------

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Engine | Connection | None = None, **_kw: Any
    ) -> Engine | Connection:
        """The connection for a statement; called without one (``session.get_bind()``) the engine."""
        if bind is not None and bind is not self._supply.engine and bind is not self._unit.database.supply.engine:
            if self._depth:
                self._foreign_bind(clause)
            return bind
        if not self._depth:
            return self._supply.engine
        if mapper is not None:
            self._loads(mapper)
        plain = not self._must_pin and self._plain(clause)
        if not plain:
            self._refuse_write(clause)
            self._not_plain(clause)
        if not self._pinned:
            if self._undecided is not None:
                self._decide()
            if not plain or self._explicit or self._is_classic() or self._streams or self.in_nested_transaction():
                self._pin()
            elif self._lease is None:
                kept = None if self._parked is None else self._resumed()
                self._lease = kept or self._lend(self._supply.read, begun=bool(self.dispatch.after_begin))
        assert self._lease is not None
        return self._lease.connection

    def _decide(self) -> None:
        """Choose the server of a read-only unit. It stays with it, so that no unit sees two."""
        if (routing := self._undecided) is not None:
            self._undecided = None
            self._supply = self._wait(routing.choose, self._holder())
            self._unproved = None if self._supply is routing.primary else routing

    def _elsewhere(self, error: Exception) -> bool:
        """Whether what failed can run once more on another server: its replica was lost before it had answered anything."""
        routing = self._unproved
        if routing is None or not routing.is_unreachable(error) or self.patience() == 0.0:
            return False
        self._unproved, streams = None, self._streams
        self._end_read()
        self._outermost_returned(error)
        routing.left_out(self._supply, error)
        self._unit.all_undone()  # the unit begins anew, and the connection that was lost is no failure of its own
        self._streams, self._undecided = streams, routing
        return True

    def _foreign_bind(self, clause: Any) -> None:
        """A bind of the caller's own: the SessionTransaction gets a connection that is not ours to end early."""
        self._explicit = True
        self.join_transaction_mode = "conditional_savepoint"  # SQLAlchemy's default: a transaction that was open stays so
        if self._must_pin or not self._plain(clause):
            self._refuse_write(clause)
            self._not_plain(clause)

    def _not_plain(self, clause: Any) -> None:
        self.wrote = True
        if self.changed is None and (self._must_pin or not self._plain.stores_nothing(clause)):
            self.changed = self._operation, self._site

    def _is_classic(self) -> bool:
        """Whether this unit is a transaction from its first statement on."""
        if self._classic is None:
            unit = self._unit
            options, known = unit.options, unit.database.classic
            own = getattr(self, "execution_options", None)  # new in SQLAlchemy 2.1
            if options.settings or own:
                self._classic = bool(options.settings) or streams(None, own) or self._asks_for_more()
            else:
                way = self._supply, options.hold, options.isolation
                if (classic := known.get(way)) is None:
                    classic = known[way] = self._asks_for_more()
                self._classic = classic
        return self._classic

    def _asks_for_more(self) -> bool:
        """Whether what this unit or its database asks for is not to be had of reads in autocommit."""
        hold = self._unit.options.hold or self._unit.database.hold
        return hold == "transaction" or not self._supply.profile.reads_alone or strength(self._isolation()) > _READ_COMMITTED

    def _isolation(self) -> str:
        """The isolation asked for, else the database's; SQLite's only one does not count where nobody asked for it."""
        asked = self._unit.options.isolation or self._unit.database.isolation
        if asked is None and self._supply.profile.isolation is not None:
            return "READ COMMITTED"
        return asked or self._supply.known_isolation() or self._wait(self._supply.default_isolation, self._holder())

    def _resumed(self) -> Lease | None:
        """The connection of the last read for the next one, if nobody has taken it since and it still lives. One is parked only
        where the next read is alike.
        """
        lease, self._parked = self._parked, None
        return lease if lease is not None and self._supply.resume(lease) else None

    def _may_park(self) -> bool:
        """Whether another read is likely, and this one has left nothing on its connection."""
        return not self._unit.settled

    @property
    def keeps_connection(self) -> bool:
        """Whether the connection of the last read is kept, as far as this session knows."""
        return self._parked is not None

    @property
    def holds_connection(self) -> bool:
        """Whether a connection is held now, so that the session's next step waits for none."""
        return self._lease is not None

    def give_back_parked(self) -> None:
        """Keep no connection for a read that may not come."""
        lease, self._parked = self._parked, None
        if lease is not None and self._supply.unpark(lease):
            self._supply.give_back(lease)

    def _pin(self) -> None:
        """Take a connection for a transaction. A read lease is set aside: an outer statement may still have it in its hands."""
        self._decide()
        self._set_aside()
        self.give_back_parked()
        self.join_transaction_mode = "control_fully"  # a listener may have begun it already: it is ours to end all the same
        unit = self._unit
        options = unit.options
        one_call = unit.settled and not self._streams
        readonly = options.readonly or unit.settled
        terms = Terms(
            options.isolation or unit.database.isolation,
            readonly,
            options.settings,
            one_call,
            handed_over=self._operation == "connection",
        )
        self._lease = self._lend(self._supply.transact, terms)
        self._pinned = True
        self._answer = None
        if options.verify_commit and not terms.readonly:
            self._supply.witness.watch(self._lease)
        self._rows_at_once = one_call or self._supply.profile.rows_at_once

    def _set_aside(self) -> None:
        if self._lease is not None and not self._pinned:
            lease, self._lease = self._lease, None
            self._spent = [*(self._spent or ()), lease]
            self._end_read()

    def _end_read(self) -> None:
        # Not commit(), which would flush pending objects, nor rollback(), which would expire all instances.
        if (transaction := self.get_transaction()) is not None:
            self._reading_ends = self._ended_early = True
            try:
                transaction.close()
            finally:
                self._reading_ends = False

    # -- what ends a read -----------------------------------------------------------------------------

    def _outermost_returned(self, error: BaseException | None) -> None:
        """Give back the connection of a plain read, now that its rows are in memory."""
        self._streams = False
        if error is not None:
            self._supply.explain_lock(error, self._holder())
        if self._unproved is not None and error is None:
            self._unproved.answered(self._supply)
            self._unproved = None
        if self._spent:
            spent, self._spent = self._spent, None
            for one in spent:
                self._give_back(one)
        lease = self._lease
        if lease is not None and self._pinned and error is not None and self.is_active and not lease.connection.in_transaction():
            # BEGIN itself failed, as SQLite's does when the file stays locked: nothing has begun. After a failed flush, which has
            # rolled back as well, the session is inactive until rollback() is called, as SQLAlchemy has it.
            self._pinned = False
        if lease is not None and not self._pinned:
            self._lease = None
            kept = False
            try:
                if error is not None and self._lingers(error):
                    lease.connection.invalidate()
                self._end_read()
                kept = error is None and self._may_park() and self._supply.park(lease)
            finally:
                if kept:
                    self._parked = lease
                else:
                    self._give_back(lease)

    def _lingers(self, error: BaseException) -> bool:
        """Whether *error* may have left the server in mid-statement, with its locks and snapshot."""
        if not self._supply.profile.client_errors_linger:
            return False
        if isinstance(error, SQLAlchemyError) and not isinstance(error, DBAPIError):
            return False  # found by SQLAlchemy, before the driver was asked or after it had answered
        return not isinstance(error, DBAPIError) or not sqlstate(error) or sqlstate(error) in ("22000", "22P02")

    # -- what ends a transaction ------------------------------------------------------------------------

    def transaction_ended(self, transaction: SessionTransaction) -> None:
        """A SessionTransaction is over; with the outermost one the connection goes home, whichever call ended it."""
        if transaction.parent is None and not transaction.nested:
            self._explicit = False
            self._ended_early = self._reading_ends
            if self._pinned and self._lease is not None:
                lease, self._lease, self._pinned = self._lease, None, False
                if self._held_back is None:
                    self._give_back(lease)
                else:
                    self._held_back.append(lease)

    def let_go(self) -> None:
        """Give up what is still held after an ending that failed. What is open on it is unknown: it is discarded."""
        held = [one for one in (self._lease, *(self._spent or ()), *(self._held_back or ())) if one is not None]
        self._lease = self._spent = None
        self._pinned = False
        for lease in held:
            if not lease.connection.closed:
                lease.connection.invalidate()
            self._supply.give_back(lease)

    def savepoints(self) -> tuple[SessionTransaction, ...]:
        """The savepoints that are open, the innermost first."""
        found: list[SessionTransaction] = []
        transaction = self.get_nested_transaction()
        while transaction is not None:
            if transaction.nested:
                found.append(transaction)
            transaction = transaction.parent
        return tuple(found)

    def commit_sent(self) -> bool:
        """Whether a COMMIT was on its way on the connection that was held last."""
        return self._lease is not None and self._lease.commit_sent

    def ask(self) -> bool | None:
        """Whether the COMMIT whose answer was lost took place, as the server says on a new connection; None if that is not learnt."""
        if self._lease is None:
            return None
        self._answer = self._supply.witness.ask(self._lease)
        return self._answer

    def commit_done(self) -> bool:
        """Whether the COMMIT on the connection that is held is done: SQLAlchemy lets go of its transaction only if it succeeded."""
        lease = self._lease
        if lease is None or not lease.commit_sent or lease.connection.closed or lease.connection.invalidated:
            return False
        return lease.connection.get_transaction() is None

    # -- filled in by the classes that follow ---------------------------------------------------------------

    def _wait(self, call: Callable[..., T], *args: Any, **kw: Any) -> T:
        raise NotImplementedError  # pragma: no cover

    def patience(self) -> float | None:
        """Seconds that are left of the unit's deadline, or None where it has none."""
        raise NotImplementedError  # pragma: no cover

    def _lend(self, take: Callable[..., Lease], *args: Any, **kw: Any) -> Lease:
        raise NotImplementedError  # pragma: no cover

    def _give_back(self, lease: Lease) -> None:
        raise NotImplementedError  # pragma: no cover

    def _holder(self) -> Any:
        raise NotImplementedError  # pragma: no cover

    def _loads(self, mapper: Any) -> None:
        raise NotImplementedError  # pragma: no cover

    def _refuse_write(self, clause: Any) -> None:
        raise NotImplementedError  # pragma: no cover
