"""Where connections come from: the one place that takes them from the pool and gives them back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from tenure.callsite import here, words
from tenure.engines import locks, resting
from tenure.engines.admission import Admission
from tenure.engines.dialects import before
from tenure.engines.gate import gate_of
from tenure.engines.interrupt import interrupt_of
from tenure.engines.ledger import Holder, Lease
from tenure.engines.liveness import Liveness, only_ours
from tenure.engines.masked import shown
from tenure.engines.outcome import Witness
from tenure.engines.profile import profile_of, say
from tenure.exceptions import BadOption, DatabaseClosed, sqlstate

# A prepared statement was lost, or is there already: duplicate_prepared_statement, invalid_sql_statement_name.
_UNPREPARED: Final = frozenset(["42P05", "26000"])
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Terms(NamedTuple):
    """How a transaction is to begin.

    Attributes:
        isolation: Its isolation, or None for the engine's own.
        readonly: Whether the server is to refuse writes in it.
        settings: What is set for as long as it lasts.
        one_call: It reads, and ends with the call that it begins in.
        handed_over: The connection is asked for as such: its settings must hold before the first statement.

    """

    isolation: str | None = None
    readonly: bool = False
    settings: Mapping[str, str] = _NOTHING
    one_call: bool = False
    handed_over: bool = False


class Supply:
    """Hands out leases on the connections of one engine.

    Args:
        engine: Taken as it is, its own events included.
        name: The database's name, as errors show it.
        admission: How to wait for one; None: as the engine's gate has it, or by default.
        liveness: A pooled connection that rested longer is asked whether it is alive, in seconds; None never asks.

    Raises:
        BadOption: Another ``Database`` waits in another way for connections of the same engine.

    """

    def __init__(self, engine: Engine, name: str, admission: Admission | None = None, liveness: float | None = 30.0) -> None:
        self.engine = engine
        self.name = name
        self.profile = profile_of(engine)
        self.interrupt = interrupt_of(engine)
        self.gate = gate_of(engine, name, admission)
        self.give_back, self.park, self.unpark = self.gate.give_back, self.gate.park, self.gate.unpark
        self.ledger = self.gate.ledger
        self.witness = Witness(engine, self.ledger)
        self.liveness = Liveness(engine, self.ledger, liveness)
        self.closed = False
        self.has_link = self.interrupt is None or self.interrupt.limit is None  # to a server; SQLite has none
        self._parks = isinstance(engine.pool, QueuePool)
        # SQLite as it is prepared here: who may write has the one write lock from BEGIN on.
        self._locks_first = self.profile.reads_alone and not self.has_link
        self._failures_count = self.profile.failure_spoils or bool(self.profile.undone_by)
        self._isolation = self.profile.isolation
        if self.profile.classic is not None:
            before(engine.dialect, "set_connection_execution_options", _options_are_set)
        if self.profile.switch_back is not None:  # never removed: it also serves leases that outlive this object
            event.listen(engine, "checkin", self.profile.switch_back)
        self._hears_failures = False
        if self.profile.rests:  # as switch_back
            event.listen(engine, "checkout", resting.checked_out)
        if self._failures_count:
            self.hear_failures()

    def read(self, holder: Holder, *, begun: bool = False) -> Lease:
        """A connection in autocommit, for one plain read.

        Where somebody has a say in how a transaction begins (*begun*, or a listener that may ``SET LOCAL``), it is one that begins
        a transaction for this read: what they set would not hold in autocommit, or could not be switched to.
        """
        classic = self.profile.isolation is None and (begun or self._is_listened_to())
        lease = self._take(holder)
        if self.profile.switch is not None and (self.profile.rests or not classic):
            try:
                self.profile.switch(lease.connection.connection, "write" if classic else "read")
            except BaseException:  # whether it is in autocommit is not known now
                lease.connection.invalidate()
                self.gate.give_back(lease)
                raise
        lease.keepable = self._parks and not classic
        return lease

    def _is_listened_to(self) -> bool:
        heard = self.engine.dispatch
        return bool(heard.begin or heard.engine_connect or not only_ours(self.engine.pool.dispatch.checkout))

    def transact(self, holder: Holder, terms: Terms) -> Lease:
        """A connection on which a transaction is to begin on *terms*."""
        profile = self.profile
        options = dict(profile.readonly) if terms.readonly else {}
        if terms.isolation is not None and terms.isolation != self._isolation:
            options["isolation_level"] = terms.isolation
        if self._locks_first and not terms.readonly and len(self.ledger):
            self.gate.sweep(locks.has_lock)  # an owner that is gone may have left it, with nobody in line to find that
        lease = self._take(holder)
        connection = lease.connection
        lease.pinned, lease.may_write = True, not terms.readonly
        try:
            if profile.switch is not None:
                purpose = "readonly call" if terms.one_call else "readonly" if terms.readonly else "write"
                profile.switch(connection.connection, purpose)
            if options:
                connection.execution_options(**options)
            if terms.readonly and profile.readonly_on is not None:
                before, undo = profile.readonly_on
                say(connection, before)
                lease.undo = undo
            self._settle(connection, terms)
        except BaseException:
            self.gate.give_back(lease)
            raise
        return lease

    def explain_lock(self, error: BaseException, holder: Holder) -> None:
        """Add a note to *error* that says who has the write lock, if it came of that. Who is gone by now does not keep it."""
        if locks.explain(self.ledger, error, holder) and self._locks_first:
            self.gate.sweep(locks.has_lock)

    def resume(self, lease: Lease) -> bool:
        """Use a parked lease for the next read; False when it was taken, or its connection was lost and is discarded."""
        if not self.unpark(lease):
            return False
        usable = False
        try:
            usable = self.liveness.is_usable(lease)
        finally:
            if not usable:
                lease.connection.invalidate()
                self.gate.give_back(lease)
        return usable

    def default_isolation(self, holder: Holder | None = None) -> str:
        """The isolation of the database's transactions when none is asked for; asked once for each engine, on behalf of *holder*."""
        if self._isolation is None:
            if holder is None:
                self._refuse_if_closed()
                with self.engine.connect() as connection:
                    self._isolation = _isolation_of(connection)
                return self._isolation
            lease = self._take(holder)
            try:
                self._isolation = _isolation_of(lease.connection)
            finally:
                self.gate.give_back(lease)
        return self._isolation

    def known_isolation(self) -> str | None:
        """The same, if it has been asked already."""
        return self._isolation

    def close(self) -> None:
        """Refuse every further connection."""
        if not self.closed:
            self.closed = True
            self.gate.abandon()
            self.liveness.close()
            self.witness.close()
            if self._hears_failures:
                event.remove(self.engine, "handle_error", self._statement_failed)

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise DatabaseClosed(
                f"{self.name!r} was closed before its use at {words(here(2))}. Make a new Database, or close this one later."
            )

    def _take(self, holder: Holder) -> Lease:
        if self.closed:
            self._refuse_if_closed()
        try:
            if self.profile.rests:
                with resting.taking():
                    return self.gate.take(holder)
            return self.gate.take(holder)
        except (DBAPIError, OSError) as error:  # asyncpg lets an OSError through as it is
            check = "the server runs" if self.has_link else "the folder is there and may be written"
            error.add_note(
                f"tenure: no connection of {self.name!r} could be made to {shown(self.engine.url)}."
                f" Nothing was stored. Check that {check} and that the URL names it."
            )
            raise

    def _settle(self, connection: Connection, terms: Terms) -> None:
        """Have the transaction begin with its settings."""
        self.check_settings(terms.settings)
        along = _NOTHING if terms.handed_over else terms.settings
        pipelined = self.profile.pipeline is not None and self.profile.pipeline(connection.connection, along)
        if not terms.settings or (pipelined and not terms.handed_over):
            return
        names = {f"n{i}": name for i, name in enumerate(terms.settings)}
        values = {f"v{i}": value for i, value in enumerate(terms.settings.values())}
        calls = ", ".join(f"set_config(:n{i}, :v{i}, true)" for i in range(len(names)))
        statement = text(f"SELECT {calls}")

        def begun(connection: Connection) -> None:
            connection.execute(statement, {**names, **values})

        event.listen(connection, "begin", begun)

    def hear_failures(self) -> None:
        """From now on tell holders of errors on their connections; a listener costs a little in each statement."""
        if not self._hears_failures and not self.closed:
            self._hears_failures = True
            event.listen(self.engine, "handle_error", self._statement_failed)

    def _statement_failed(self, context: Any) -> BaseException | None:
        error = context.sqlalchemy_exception or context.original_exception
        code = sqlstate(error)
        if code in _UNPREPARED:
            from tenure.engines.pooler import explain

            explain(error, self.engine)
        lease = None if context.connection is None else self.ledger.lease_on(context.connection)
        holder = None if lease is None else lease.holder()
        if holder is None:
            return None
        if self.profile.failure_spoils or code in self.profile.undone_by:
            holder.statement_failed(error)
        return holder.instead_of(error)

    def check_settings(self, settings: Mapping[str, str]) -> None:
        """Raise BadOption where the server has no settings that end with the transaction."""
        if settings and not self.profile.takes_settings:
            raise BadOption(
                f"settings={sorted(settings)}: {self.engine.dialect.name} has no settings that end with the transaction (SET LOCAL);"
                " they would stay on the connection. Leave them out, or use PostgreSQL."
            )


def _options_are_set(connection: Connection, options: Mapping[str, Any]) -> None:
    if "isolation_level" in options:
        from tenure.engines import pipeline

        pipeline.undo(connection.connection)


def _isolation_of(connection: Connection) -> str:
    return str(connection.get_isolation_level()).upper().replace("-", " ")
