"""Database: the synchronous shell. It carries out what ``base``, ``plan`` and ``unit`` decide."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import Session

from tenure.callsite import Site
from tenure.checks import check_seconds
from tenure.core import plan
from tenure.core.base import BaseDatabase
from tenure.core.block import UnitFactory
from tenure.core.drain import CLOSING, Drained, drain
from tenure.core.hooks import Hook, report
from tenure.core.inject import name_of
from tenure.core.limits import Limits
from tenure.core.options import GuardMode, Hold, UnitOptions
from tenure.core.plan import Opening, Verdict, drive
from tenure.core.session import UnitSession
from tenure.core.unit import BaseUnit
from tenure.engines import presets
from tenure.engines.admission import Admission
from tenure.engines.deadline import Deadline
from tenure.engines.replicas import Replicas, servers
from tenure.exceptions import BadOption, UnsupportedCallable, WrongDriver


class Unit(BaseUnit[Session]):
    """A unit of a ``Database``."""

    def release(self) -> None:
        """Give the connection back now; the next statement takes one again.

        Raises:
            ReleaseRefused: Something is unwritten, uncommitted or still being read.

        """
        if self.door is not None:
            self.door.release()


class Database(BaseDatabase[Session]):
    """One database for code that blocks: threads, jobs, WSGI.

    Args:
        url_or_engine: A database URL, whose engine is made under the preset of its database; or an ``Engine``, taken as it is.
        name: Its name in errors, logs and metrics. Default ``"main"``.
        isolation: The isolation of its units. Default: the database's own.
        hold: When a unit holds a connection: ``"auto"`` (default), for each plain read alone and from the first write to the
            commit; ``"transaction"``, from the first statement on.
        admission: How long, and in what number, units wait for a connection. Default: for the pool's ``pool_timeout``.
        guards: ``"off"``, ``"warn"`` or ``"raise"`` (default) for all guards, or a mapping from their slugs.
        session_options: Keyword arguments for every ``Session``, such as ``autoflush`` or ``info``. Default:
            ``expire_on_commit=False``.
        replicas: Servers that read-only units may use: a list of URLs or engines, or ``Replicas(…)``. Default: none.
        pooler: ``"pgbouncer"`` where PgBouncer in transaction mode stands before the server: settings of the driver, and
            ``PoolerRefused`` for what would be left on a connection. Default: none.
        liveness: A connection that rested in the pool for longer is asked whether it is alive, in seconds. Default 30.0; 0 asks every
            time, None never. One that the server has closed is replaced in any case, without asking.
        limits: What a unit may come to before it is logged. Default: ``Limits(idle=30.0, age=600.0, objects=10_000)``.
        engine_options: Passed to ``create_engine``; they go before the preset's.

    Raises:
        BadOption: An argument has a wrong type or value.
        WrongDriver: The driver is one for asyncio.

    """

    gives = Session
    session_class = UnitSession
    unit_class = Unit
    is_async = False

    def __init__(
        self,
        url_or_engine: str | URL | Engine,
        *,
        name: str | None = None,
        isolation: str | None = None,
        hold: Hold = "auto",
        admission: Admission | None = None,
        guards: Mapping[str, GuardMode] | GuardMode | None = None,
        session_options: Mapping[str, Any] | None = None,
        liveness: float | None = 30.0,
        replicas: Replicas | Sequence[str | URL | Engine] = (),
        pooler: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        **engine_options: Any,
    ) -> None:
        found = servers(url_or_engine, replicas, engine_options, lambda one, options: _engine_of(one, options, pooler))
        super().__init__(
            found,
            name=name,
            isolation=isolation,
            hold=hold,
            admission=admission,
            guards=guards,
            session_options=session_options,
            liveness=liveness,
            limits=limits,
        )
        self.engine: Engine = found.primary
        self.unit = UnitFactory(self)

    if TYPE_CHECKING:  # the base knows the class of its units at run time only

        @property
        def current(self) -> Unit: ...  # noqa: D102 - as in the base

    def drain(self, timeout: float) -> Drained:
        """Refuse new units, wait until those that are open have ended, and end the rest.

        Units within open ones, and those of hooks, still begin. Whoever waits for a connection gets it in turn.

        Args:
            timeout: Seconds to wait. What is open then is stopped and rolled back, which may take a second more.

        Returns:
            How many ended by themselves, and who did not. Those are logged as well (``drained-unit``).

        Raises:
            BadOption: *timeout* is no number, or below 0.

        """
        check_seconds("drain(timeout)", timeout)
        return drain(self, timeout, time.sleep)

    def close(self) -> None:
        """Refuse new connections, and close those of an engine that was made from a URL. An engine taken as it was stays open.

        Units that are open have a second to end; then they are rolled back, as by ``drain(1.0)``.
        """
        self.drain(CLOSING)
        for supply in self.supplies:
            supply.close()
        for engine in self._servers.owned:
            engine.dispose()
        if self._anchor is not None:
            self._anchor.close()

    # -- the shell ------------------------------------------------------------------------------------

    def new_session(self, unit: BaseUnit[Session]) -> tuple[Session, UnitSession]:
        """A session for *unit*."""
        session = self.session_class(unit, **self.session_options)
        return session, session

    def enter(
        self,
        options: UnitOptions,
        site: Site | None,
        *,
        name: str | None = None,
        under: BaseUnit[Session] | None = None,
        deadline: Deadline | None = None,
    ) -> BaseUnit[Session]:
        """Open or join a unit; for hosts. Every call needs its ``leave``."""
        unit, how = self.open_unit(options, site, name=name, under=under, deadline=deadline)
        if how is not Opening.OWN:
            try:
                drive(self.beginning(unit, how), unit.act)
            except BaseException as error:
                self.finished(unit, self.joined_end(unit, error), site)
                raise
        return unit

    def leave(
        self, unit: BaseUnit[Session], error: BaseException | None, site: Site | None, settled: Verdict | None = None
    ) -> None:
        """End what ``enter`` gave. *error* is what the body raised; it is raised again by the caller."""
        if unit.ended or unit.root.inherited:
            self.late(unit, error)
            return
        unit.end_site = site
        verdict = self.at_once(unit, error, settled)
        if verdict is None:
            ending = self.ending(unit, error, settled)
            verdict = self.joined_end(unit, error) if ending is None else drive(ending, unit.act)
        if hooks := self.finished(unit, verdict, site):
            try:
                self.run_hooks_here(unit, hooks)
            finally:
                self.units.leave(unit)
        if verdict.error is not None and verdict.error is not error:
            raise verdict.error

    def settle(self, unit: BaseUnit[Session], error: BaseException | None) -> Verdict:
        """Settle the outcome of a unit that stays open for reading, and run its hooks; for hosts that answer afterwards."""
        unit.ending = True
        verdict = drive(plan.settle(error, unit), unit.act)
        unit.settled, unit.ending, unit.outcome = True, False, verdict.outcome
        self.remember(unit, verdict.outcome)
        if hooks := unit.take_hooks(verdict.outcome):
            self.run_hooks_here(unit, hooks)
        return verdict

    def run_hooks_here(self, unit: BaseUnit[Session], hooks: list[Hook]) -> None:
        """Run hooks, with no unit current."""
        with self.current_place.afterwards():
            failed = drive(plan.each(hooks), _call)
        interruption = report(unit, failed)
        if interruption is not None:
            raise interruption


def _call(hook: Hook) -> None:
    result = hook()
    if inspect.iscoroutine(result):
        result.close()
        raise UnsupportedCallable(
            f"hook {name_of(hook.function)!r} is async def, and a Database cannot await it. Use AsyncDatabase."
        )


def _engine_of(given: Any, options: dict[str, Any], pooler: str | None) -> Engine:
    """The engine for what the user has given as one."""
    if hasattr(given, "sync_engine"):
        raise WrongDriver("an AsyncEngine was given to Database. Use AsyncDatabase.")
    if not isinstance(given, Engine):
        return presets.make_engine(presets.parse(given), options, pooler)
    engine: Engine = taken(given, options, pooler)
    if engine.dialect.is_async:
        raise WrongDriver(f"the engine's driver {engine.dialect.driver!r} is for asyncio. Use AsyncDatabase.")
    return engine


def taken(engine: Any, options: Mapping[str, Any], pooler: str | None = None) -> Any:
    """*engine*, which was made elsewhere, as it is; BadOption if it commits every statement, or *options* came with it."""
    if pooler is not None:
        raise BadOption(f"pooler={pooler!r} sets options of create_engine(), but an engine was given. Give its URL.")
    if options:
        raise BadOption(f"{min(options)}=… is an option of create_engine(), but an engine was given. Set it where that is made.")
    # Private: no public name tells what create_engine(isolation_level=…) was given. tests/core/test_options.py fails when it changes.
    asked = getattr(engine.dialect, "_on_connect_isolation_level", None)
    presets.refuse_autocommit(asked, engine.get_execution_options())
    return engine
