"""What is pending in a unit: failures, which must be undone before it can commit, and hooks, which wait for its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.orm import SessionTransaction

from tenure import callsite
from tenure.callsite import Site, words
from tenure.core.hooks import Hook, Hooks, Savepoints
from tenure.core.plan import Outcome
from tenure.exceptions import BadOption, RollbackOnly

if TYPE_CHECKING:
    from tenure.core.session import UnitSession


class Failure(NamedTuple):
    """Something that failed; *within* are the savepoints that were open, the innermost first."""

    error: BaseException
    site: Site | None
    within: Savepoints


class Failures:
    """Those of one unit, the first one first."""

    def __init__(self) -> None:
        self._all: list[Failure] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def note(self, failure: Failure) -> None:
        """One more, unless it is known: an error passes several doors on its way out."""
        if not any(one.error is failure.error and one.within == failure.within for one in self._all):
            self._all.append(failure)

    def rename(self, error: BaseException, other: BaseException) -> None:
        """*error* is raised as *other*."""
        self._all = [one._replace(error=other) if one.error is error else one for one in self._all]

    def undo(self, savepoint: SessionTransaction | None) -> None:
        """What failed in *savepoint* was undone, or everything was (None)."""
        self._all = [] if savepoint is None else [one for one in self._all if savepoint not in one.within]

    def first(self, savepoint: SessionTransaction | None) -> Failure | None:
        """The first that concerns *savepoint*, or the whole unit (None)."""
        return next((one for one in self._all if savepoint is None or savepoint in one.within), None)


class Pending:
    """The part of a unit that keeps them. Those of a part that has joined are kept by its root."""

    site: Site | None
    settled = False
    partly_stored = False  # a checkpoint has committed something: what follows may fail, but not undo it
    savepoint: SessionTransaction | None = None
    _door: UnitSession | None = None
    _hooks: Hooks | None = None
    _failures: Failures | None = None

    @property
    def root(self) -> Pending:
        """The unit that has the session and the transaction."""
        raise NotImplementedError  # pragma: no cover

    def _add_hook(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, on_commit: bool) -> None:
        kind = "on_commit" if on_commit else "on_rollback"
        if not callable(function):
            raise BadOption(f"{kind}({function!r}): give a function and its arguments, not the result of calling it.")
        self._check_open()
        root = self.root
        within = () if root._door is None else root._door.savepoints()
        if root._hooks is None:
            root._hooks = Hooks()
        root._hooks.waiting.append(Hook(function, args, kwargs, on_commit, within))

    def take_hooks(self, outcome: Outcome) -> list[Hook]:
        """The hooks that are due now that *outcome* is known; the others are dropped."""
        return [] if self._hooks is None else self._hooks.take(outcome)

    def checkpoint(self, outcome: Outcome) -> None:
        """The transaction was ended by the unit's own code, and the unit goes on: the hooks that this makes due are due now.

        Once the unit is settled it was a transaction of reads, and says nothing about the unit's work.
        """
        if self.settled:
            return
        self.partly_stored = self.partly_stored or (outcome is Outcome.COMMITTED and self.stored())
        if self._hooks is not None:
            self._hooks.due = self._hooks.take(outcome)

    @property
    def has_due(self) -> bool:
        """Whether hooks wait to be run."""
        return self._hooks is not None and bool(self._hooks.due)

    def take_due(self) -> list[Hook]:
        """The hooks that wait to be run."""
        return [] if self._hooks is None else self._hooks.take_due()

    # -- failures ---------------------------------------------------------------------------------------

    def failed(self, error: BaseException, site: Site | None = None, *, all_is_lost: bool = False) -> None:
        """Note what must be undone before the unit can commit: with an open savepoint or, *all_is_lost*, as a whole."""
        root = self.root
        if root._failures is None:
            root._failures = Failures()
        within = () if root._door is None or all_is_lost else root._door.savepoints()
        root._failures.note(Failure(error, site or callsite.of_error(error) or callsite.here(2), within))

    def renamed(self, error: BaseException, other: BaseException) -> None:
        """*error*, which may have been noted as a failure, is raised as *other*."""
        if self._failures:
            self._failures.rename(error, other)

    def savepoint_undone(self, transaction: SessionTransaction) -> None:
        """A savepoint was rolled back: what failed in it is undone, and its hooks for a commit go with it."""
        if self._failures:
            self._failures.undo(transaction)
        if self._hooks is not None:
            self._hooks.savepoint_undone(transaction)

    def all_undone(self) -> None:
        """The whole transaction was rolled back by the unit's own code: the unit goes on as new."""
        self._failures = None

    def swallowed(self) -> Exception | None:
        """The error for a failure that was caught, but not undone, in what ends now."""
        failures = self.root._failures
        first = None if failures is None else failures.first(self.savepoint)
        if first is None:
            return None
        error = RollbackOnly(
            f"{self.name!r} ({words(self.site)}) was rolled back: {type(first.error).__name__} at {words(first.site)} was caught, not"
            ' undone. Put what may fail into db.unit(propagation="nested"), or call rollback() where it is caught.'
        )
        error.__cause__ = first.error
        return error

    # -- filled in by the unit ---------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """As errors call it."""
        raise NotImplementedError  # pragma: no cover

    def stored(self) -> bool:
        """Whether the COMMIT that has just succeeded stored something."""
        raise NotImplementedError  # pragma: no cover

    def _check_open(self) -> None:
        raise NotImplementedError  # pragma: no cover
