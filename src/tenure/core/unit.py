"""The unit of work: who it belongs to, what is known about it, and what runs after it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextvars import Token
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tenure import callsite
from tenure.callsite import Site, words
from tenure.core import events
from tenure.core.obituary import gone
from tenure.core.options import UnitOptions
from tenure.core.pending import Pending
from tenure.core.plan import Outcome, Step
from tenure.engines.deadline import Deadline
from tenure.engines.outcome import doubt
from tenure.exceptions import NotOwner, OutcomeSettled, RollbackOnly

if TYPE_CHECKING:
    from tenure.core.base import BaseDatabase
    from tenure.core.current import Place
    from tenure.core.session import UnitSession
    from tenure.engines.position import Mark

S = TypeVar("S")


class BaseUnit(Pending, Generic[S]):
    """One bounded piece of work. What ``db.current`` gives; made by ``db.unit`` and by hosts, never by hand.

    A unit that has joined another, or is a savepoint in it, has that unit's session and *root*; one that *owns* has opened the
    transaction, and so may end it.
    """

    ended = False
    ending = False
    dropped = False  # nobody can end it any more
    inherited = False  # by a child process
    lingers = False  # its hooks run when it has ended
    outcome: Outcome | None = None
    mark: Mark | None = None  # where the primary's log was when this unit had stored something; only where there are replicas
    reason = "returned"
    token: Token[Place] | None = None
    worker: Any = None  # the thread or task that it belongs to, where a host says so; else the one that opened it
    end_site: Site | None = None
    end_time = 0.0
    doubtful = False  # it is not known whether the COMMIT of a checkpoint took place
    deadline: Deadline | None = None  # the earliest that binds this unit: its own, or that of one which it has joined
    answer: bool | None = None  # what the server said when it was asked what became of a COMMIT
    _entering = False
    _asked: str | None = None
    _session: S | None = None

    def __init__(
        self,
        database: BaseDatabase[S],
        options: UnitOptions,
        site: Site | None,
        parent: BaseUnit[S] | None = None,
        *,
        name: str | None = None,
        joins: bool = False,
    ) -> None:
        self.database = database
        self.options = options
        self.site = site
        self.parent = parent
        self._root = parent.root if joins and parent is not None else None
        self.owns = self._root is None
        self._name = name
        self.opened = time.monotonic()

    def __del__(self) -> None:
        """The last net: nobody can end this unit any more."""
        if not self.ended and self._door is None:
            self.database.units.leave(self)
        if self.ended or self._door is None or sys.is_finalizing():
            return
        self.dropped = True
        self._door.keep(self)
        if self._door.touched:
            self._door.dropped()
        else:
            self.close(Outcome.READ_ONLY, None, None)

    # -- what a user sees ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The unit's name: as given, else that of the decorated function, the request, or the function around the block."""
        given = self.options.name or self._name
        if given is not None:
            return given
        if self.site is None:
            return "unit"
        function = self.site[0].co_name
        return words(self.site).partition(":")[0] if function == "<module>" else function

    @property
    def session(self) -> S:
        """The unit's session.

        Raises:
            UnitEnded: The unit has ended.
            ForkedUnit: It is that of a parent process.

        """
        root = self.root
        if root.ended:
            raise gone(self)
        if root._session is None:
            root._session, root._door = self.database.new_session(root)
        return root._session

    def on_commit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call *function* with the arguments once the unit's work is committed and its connection has gone home.

        Hooks run in order, each whatever the others do, with no unit current. One registered in a savepoint that is rolled back
        is dropped with it. A hook that raises is reported and changes nothing. While the body of a response is sent the outcome is
        known: the hook runs when the unit ends if that was a commit, and is dropped if it was a rollback.

        Raises:
            BadOption: *function* cannot be called.
            UnitEnded: The unit has ended.

        """
        self._add_hook(function, args, kwargs, on_commit=True)

    def on_rollback(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call *function* with the arguments once the work done here is rolled back and the connection has gone home.

        One registered in a savepoint that is rolled back runs too, after the outcome of the whole unit, whatever that is.
        Otherwise as ``on_commit``.
        """
        self._add_hook(function, args, kwargs, on_commit=False)

    def rollback_only(self, reason: str = "rollback_only() was called") -> None:
        """Roll back at the end, on purpose: the caller sees the result as if the work had been kept.

        Within a savepoint (``propagation="nested"``) this concerns the savepoint alone; else the whole unit.

        Raises:
            OutcomeSettled: The unit was committed already, as while the body of a response is sent.
            UnitEnded: The unit has ended.

        """
        self._check_open()
        scope = self.scope()
        if scope.settled and scope.outcome in (Outcome.COMMITTED, Outcome.UNKNOWN):
            raise OutcomeSettled(
                f"rollback_only() at {words(callsite.here(2))} comes too late: {self.root.name!r} ({words(self.root.site)}) was settled before"
                f" the response began, with the outcome {scope.outcome.value!r}. Decide before the first byte."
            )
        if not scope.settled:  # else nothing was stored, and that is what is asked for
            scope._asked = reason

    @property
    def readonly(self) -> bool:
        """Whether this unit, or one around it that it has joined, refuses writes now."""
        unit: BaseUnit[S] | None = self
        while unit is not None:
            if (unit.options.readonly and not unit._entering) or unit.settled:
                return True
            unit = None if unit.root is unit else unit.parent
        return False

    @property
    def within_readonly(self) -> bool:
        """Whether a unit around this one refuses writes now."""
        return self.parent is not None and self.parent.readonly

    @property
    def root(self) -> BaseUnit[S]:
        """The unit that has the session and the transaction: this one, or the one that it has joined."""
        return self._root or self

    # -- what the shells and the session ask ----------------------------------------------------------

    @property
    def door(self) -> UnitSession | None:
        """The session as the synchronous object that both faces share, or None while it was not asked for."""
        return self._door if self._root is None else self._root._door

    def scope(self) -> BaseUnit[S]:
        """The unit whose work can be undone by itself: the innermost savepoint, else the root."""
        unit: BaseUnit[S] = self
        while unit.savepoint is None and unit.root is not unit and unit.parent is not None:
            unit = unit.parent
        return unit

    def needs_no_end(self) -> bool:
        """Whether neither COMMIT nor ROLLBACK has anything to do here: no failure, and at most plain reads."""
        if not self.owns or self._asked is not None or self._failures:
            return False
        return self._door is None or not self._door.touched or self._door.nothing_to_commit()

    def ends_at_once(self) -> bool:
        """Whether its end neither asks the database nor runs a hook, and so takes no time worth a thread of its own."""
        door = self._door
        if self._hooks is not None and (self._hooks.waiting or self._hooks.due):
            return False
        return door is None or (not door.keeps_connection and (not door.touched or door.nothing_to_commit()))

    def descends_from(self, root: BaseUnit[Any]) -> bool:
        """Whether *root* is this unit's own or one further out."""
        unit: BaseUnit[Any] | None = self
        while unit is not None:
            if unit.root is root:
                return True
            unit = unit.parent
        return False

    def _check_open(self) -> None:
        if self.root.ended or self.ended:
            raise gone(self)

    def stays_behind(self) -> None:
        """Called in a child of the process in which the unit goes on."""
        if self.ended:
            return
        self.ended = self.inherited = True
        self._session = self._hooks = self._failures = None
        if self._door is not None:
            self._door.keep(self)
            self._door = None

    # -- what a plan asks ---------------------------------------------------------------------------------

    @property
    def rollback_asked(self) -> bool:
        """Whether ``rollback_only()`` was called for what ends now."""
        return self._asked is not None

    def stored(self) -> bool:
        """Whether the COMMIT that has just succeeded stored something."""
        return self.partly_stored or (self._door is not None and self._door.wrote and not self.options.readonly)

    def took_place(self) -> bool:
        """Whether the COMMIT was done, although an error came: what raised it ran after the COMMIT."""
        return self.savepoint is None and self._door is not None and self._door.commit_done()

    def in_doubt(self, error: BaseException) -> BaseException | None:
        """What to raise when the connection was lost, or the program interrupted, while COMMIT was under way; else None."""
        door = self._door
        if door is None or not door.commit_sent() or self.savepoint is not None or self.options.readonly:
            return None  # what only reads has nothing to store
        return doubt(f"{self.name!r} ({words(self.site)})", error)

    @property
    def verifies(self) -> bool:
        """Whether the server is asked what became of a COMMIT whose answer was lost."""
        return self.options.verify_commit

    def unfit(self) -> Exception | None:
        """The error for a checkpoint of a unit that may not commit."""
        if self.settled:
            return None  # a transaction of reads, in the body of an answer
        if self._asked is None:
            return self.swallowed()
        return RollbackOnly(
            f"{self.name!r} ({words(self.site)}) was to commit at {words(callsite.here(3))} after rollback_only({self._asked!r}), and was"
            " rolled back. Leave out one of the two."
        )

    # -- carrying out a plan ----------------------------------------------------------------------------------

    def act(self, step: Step) -> None:
        """Carry one step out. Synchronous code for both faces: the async shell runs it in SQLAlchemy's greenlet."""
        door = self.door
        if door is None:
            if self.root.ended:  # from outside, at the end of a drain
                raise gone(self)
            return
        if step is Step.COMMIT:
            door.end_transaction(keep=True)
        elif step is Step.ROLLBACK:
            door.end_transaction(keep=False)
        elif step is Step.CLOSE:
            door.close()
        elif step is Step.ASK:
            self.answer = door.ask()
        elif step is Step.INVALIDATE:
            door.invalidate() if self.owns else door.discard()
        elif step is Step.FLUSH:
            self._entering = True  # what is written now is the outer unit's
            try:
                door.flush()
            finally:
                self._entering = False
        elif step is Step.SAVEPOINT:
            self.savepoint = door.begin_nested()
        elif self.savepoint is not None:
            door.end_savepoint(self.savepoint, keep=step is Step.RELEASE)

    # -- the end --------------------------------------------------------------------------------------------

    def close(self, outcome: Outcome, error: BaseException | None, site: Site | None) -> None:
        """The unit has ended, and this is how. Once: it may have been ended from outside meanwhile."""
        if self.ended:
            return
        self.ended = True
        if not self.lingers:
            self.database.units.leave(self)
        self.outcome = outcome
        self.end_site = site
        self.end_time = time.monotonic()
        self._session = None
        if self._door is not None:
            self._door.keep(self)
            self._door = None
        if error is not None:
            self.reason = type(error).__name__
        elif self._asked is not None and outcome is Outcome.ROLLED_BACK:
            self.reason = self._asked
        took = self.end_time - self.opened
        is_old = took > self.database.notices.age and not self.settled
        if self.owns and (is_old or outcome is Outcome.UNKNOWN or events.wanted(events.UnitClosed)):
            self._tell(outcome, took, is_old)

    def _tell(self, outcome: Outcome, took: float, is_old: bool) -> None:
        if is_old:
            self.database.notices.too_old(self, took, self.end_site)
        if outcome is Outcome.UNKNOWN:
            events.tell(events.InDoubt(self.database.name, self.name, self.site, self.reason))
        events.tell(events.UnitClosed(self.database.name, self.name, self.site, outcome, self.reason, took))

    def refuse_unless_owner(self, operation: str) -> None:
        """Raise NotOwner where this unit has joined another."""
        if not self.owns:
            root = self.root
            raise NotOwner(
                f"{operation}() at {words(callsite.here(3))} in {self.name!r} would end its caller's unit {root.name!r}"
                f' ({words(root.site)}). Leave the {operation} to it, or use propagation="new".'
            )
