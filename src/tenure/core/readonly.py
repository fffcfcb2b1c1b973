"""What a read-only unit refuses, and every other once its answer is being sent: flushes, DML, DDL, raw SQL that writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import DBAPIError

from tenure import callsite
from tenure.callsite import Site, words
from tenure.core.guard import GuardedSession
from tenure.engines.profile import refused_write
from tenure.exceptions import ReadOnlyUnit

# What a statement does, by the name under which SQLAlchemy visits it; for the text of an error only.
_WRITES = {"insert": "INSERT", "update": "UPDATE", "delete": "DELETE"}


class ReadOnlySession(GuardedSession):
    """A session that writes only where its unit may."""

    # -- the way in ----------------------------------------------------------------------------------------

    def _through(self, operation: str, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """The way into the session for everything that may reach the database."""
        if self._turn is not None and self._turn is self._identity():  # a call within a call: the outermost sees to everything
            return call(*args, **kw)
        self._enter(operation)
        error: BaseException | None = None
        try:
            while True:
                try:
                    return call(*args, **kw)
                except Exception as failed:
                    if not self._elsewhere(failed):
                        raise
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
