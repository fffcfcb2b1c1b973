"""What waits for the outcome of a unit: the hooks that follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.orm import SessionTransaction

from tenure import callsite
from tenure.core import events
from tenure.core.plan import Outcome

if TYPE_CHECKING:
    from tenure.core.unit import BaseUnit

Savepoints = tuple[SessionTransaction, ...]


class Hook(NamedTuple):
    """A function to call after the outcome; *within* are the savepoints in which it was registered, the innermost first."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    on_commit: bool
    within: Savepoints

    def __call__(self) -> Any:
        """Call it."""
        return self.function(*self.args, **self.kwargs)


class Hooks:
    """The hooks of one unit: those that wait for its outcome, and those that are due."""

    def __init__(self) -> None:
        self.waiting: list[Hook] = []
        self.due: list[Hook] = []

    def take(self, outcome: Outcome) -> list[Hook]:
        """Those that are due now that *outcome* is known; the others are dropped. Without a known outcome none is due."""
        due, waiting = self.take_due(), self.waiting
        self.waiting = []
        if outcome is Outcome.UNKNOWN:
            return due
        kept = outcome is not Outcome.ROLLED_BACK
        return due + [hook for hook in waiting if hook.on_commit == kept]

    def take_due(self) -> list[Hook]:
        """Those that are due already."""
        due, self.due = self.due, []
        return due

    def savepoint_undone(self, transaction: SessionTransaction) -> None:
        """A savepoint was rolled back: its hooks for a commit go with it, its others are due."""
        gone = [hook for hook in self.waiting if transaction in hook.within]
        self.waiting = [hook for hook in self.waiting if transaction not in hook.within]
        self.due += [hook for hook in gone if not hook.on_commit]


def report(unit: BaseUnit[Any], failed: Iterable[tuple[Hook, BaseException]]) -> BaseException | None:
    """Tell of the hooks that failed; gives back an interruption that must go on, if one came."""
    interruption: BaseException | None = None
    for hook, error in failed:
        if not isinstance(error, Exception):
            interruption = interruption or error
        name = getattr(hook.function, "__qualname__", repr(hook.function))
        site = callsite.of_error(error) or callsite.of_function(hook.function)
        events.tell(events.HookFailed(unit.database.name, unit.name, name, site, unit.root.outcome or Outcome.COMMITTED, error))
    return interruption
