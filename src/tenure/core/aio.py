"""AsyncDatabase: the asyncio shell. It carries out what ``base``, ``plan`` and ``unit`` decide."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import URL, Engine
from sqlalchemy.util import await_only, greenlet_spawn

from tenure import callsite
from tenure.callsite import Site
from tenure.checks import check_seconds
from tenure.core import plan
from tenure.core.aioblock import AsyncUnitFactory
from tenure.core.base import BaseDatabase
from tenure.core.current import afterwards
from tenure.core.database import taken
from tenure.core.drain import CLOSING, Drained, drain
from tenure.core.hooks import Hook, report
from tenure.core.limits import Limits
from tenure.core.loops import refuse_trio
from tenure.core.options import GuardMode, Hold, UnitOptions
from tenure.core.plan import Opening, Plan, Step, Verdict, adrive, attach, drive
from tenure.core.session import AsyncioUnitSession, UnitSession
from tenure.core.shield import finish
from tenure.core.unit import BaseUnit
from tenure.engines import presets
from tenure.engines.admission import Admission
from tenure.engines.deadline import Deadline
from tenure.engines.replicas import Replicas, servers
from tenure.exceptions import WrongDriver

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
else:
    try:
        from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    except ImportError:  # SQLAlchemy 2.1 wants greenlet for it, which those who do without asyncio need not have
        AsyncEngine = AsyncSession = type("AsyncioIsMissing", (), {})


class AsyncUnit(BaseUnit[AsyncSession]):
    """A unit of an ``AsyncDatabase``."""

    async def release(self) -> None:
        """Give the connection back now; the next statement takes one again.

        Raises:
            ReleaseRefused: Something is unwritten, uncommitted or still being read.

        """
        if self.door is not None:
            await greenlet_spawn(self.door.release)


class AsyncDatabase(BaseDatabase[AsyncSession]):
    """One database for asyncio. The arguments are those of ``Database``, with an ``AsyncEngine`` or a URL of an asyncio driver.

    Args:
        finish_within: Seconds that COMMIT or ROLLBACK, and the close after it, may take once the task is cancelled; then they
            are cancelled too and the connection is discarded. Default 10.

    """

    gives = AsyncSession
    session_class = AsyncioUnitSession
    unit_class = AsyncUnit
    is_async = True

    def __init__(
        self,
        url_or_engine: str | URL | AsyncEngine,
        *,
        name: str | None = None,
        isolation: str | None = None,
        hold: Hold = "auto",
        admission: Admission | None = None,
        guards: Mapping[str, GuardMode] | GuardMode | None = None,
        session_options: Mapping[str, Any] | None = None,
        liveness: float | None = 30.0,
        replicas: Replicas | Sequence[str | URL | AsyncEngine] = (),
        pooler: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        finish_within: float = 10.0,
        **engine_options: Any,
    ) -> None:
        if callsite.greenlet_finder() is None:
            raise ImportError("AsyncDatabase needs greenlet, by which SQLAlchemy serves asyncio. Install tenure[asyncio].")
        check_seconds("finish_within", finish_within, above=0.0)
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
        self._finish_within = finish_within
        self.engine: AsyncEngine = found.primary
        self.unit = AsyncUnitFactory(self)

    if TYPE_CHECKING:  # the base knows the class of its units at run time only

        @property
        def current(self) -> AsyncUnit: ...  # noqa: D102 - as in the base

    async def drain(self, timeout: float) -> Drained:  # noqa: ASYNC109 - a name that both faces share
        """As ``Database.drain``; only the calling task waits."""
        check_seconds("drain(timeout)", timeout)
        return await greenlet_spawn(drain, self, timeout, _pause)

    async def close(self) -> None:
        """Refuse new connections, and close those of an engine that was made from a URL. An engine taken as it was stays open.

        Units that are open have a second to end; then they are rolled back, as by ``drain(1.0)``.
        """
        await self.drain(CLOSING)
        for supply in self.supplies:
            await supply.gate.leave_loops(home=bool(self._servers.owned))
            supply.close()
        for engine in self._servers.owned:
            await engine.dispose()
        if self._anchor is not None:
            self._anchor.close()

    # -- the shell ------------------------------------------------------------------------------------

    def new_session(self, unit: BaseUnit[AsyncSession]) -> tuple[AsyncSession, UnitSession]:
        """A session for *unit*."""
        refuse_trio()
        session = AsyncSession(self.engine, sync_session_class=self.session_class, unit=unit, **self.session_options)
        door = session.sync_session
        assert isinstance(door, UnitSession)
        return session, door

    async def enter(
        self,
        options: UnitOptions,
        site: Site | None,
        *,
        name: str | None = None,
        under: BaseUnit[AsyncSession] | None = None,
        deadline: Deadline | None = None,
    ) -> BaseUnit[AsyncSession]:
        """Open or join a unit; for hosts. Every call needs its ``leave``."""
        if options.isolation is not None and self.supply.known_isolation() is None:
            await greenlet_spawn(self.supply.default_isolation)
        unit, how = self.open_unit(options, site, name=name, under=under, deadline=deadline)
        if how is not Opening.OWN:
            try:
                await adrive(self.beginning(unit, how), _acting(unit))
            except BaseException as error:
                self.finished(unit, self.joined_end(unit, error), site)
                raise
        return unit

    async def leave(
        self, unit: BaseUnit[AsyncSession], error: BaseException | None, site: Site | None, settled: Verdict | None = None
    ) -> None:
        """End what ``enter`` gave. *error* is what the body raised; it is raised again by the caller."""
        if unit.ended or unit.root.inherited:
            self.late(unit, error)
            return
        unit.end_site = site
        cancelled: asyncio.CancelledError | None = None
        verdict = self.at_once(unit, error, settled)
        if verdict is None:
            ending = self.ending(unit, error, settled)
            if ending is None:
                verdict = self.joined_end(unit, error)
            else:
                verdict, cancelled = await self._end(ending, unit, error)
        if hooks := self.finished(unit, verdict, site):
            try:
                cancelled = await self._run_hooks(unit, hooks, cancelled or error) or cancelled
            finally:
                self.units.leave(unit)
        if cancelled is not None:
            attach(cancelled, verdict.outcome)
            raise cancelled from verdict.error
        if verdict.error is not None and verdict.error is not error:
            raise verdict.error

    async def _end(
        self, ending: Plan, unit: BaseUnit[AsyncSession], error: BaseException | None
    ) -> tuple[Verdict, asyncio.CancelledError | None]:
        if unit.door is None or not unit.door.touched or (error is None and unit.needs_no_end()):
            if unit.door is None or not unit.door.keeps_connection:
                return drive(ending, unit.act), None  # nothing was begun: no I/O
            return await adrive(ending, _acting(unit)), None  # nothing that a cancellation could leave half done
        was_cancelled = isinstance(error, asyncio.CancelledError)
        return await finish(adrive(ending, _acting(unit)), self._finish_within, cancelled=was_cancelled)

    async def settle(self, unit: BaseUnit[AsyncSession], error: BaseException | None) -> Verdict:
        """Settle the outcome of a unit that stays open for reading, and run its hooks; for hosts that answer afterwards."""
        unit.ending = True
        verdict, cancelled = await self._end(plan.settle(error, unit), unit, error)
        unit.settled, unit.ending, unit.outcome = True, False, verdict.outcome
        self.remember(unit, verdict.outcome)
        if hooks := unit.take_hooks(verdict.outcome):
            cancelled = await self._run_hooks(unit, hooks, cancelled or error) or cancelled
        if cancelled is not None:
            attach(cancelled, verdict.outcome)
            raise cancelled from verdict.error
        return verdict

    async def _run_hooks(
        self, unit: BaseUnit[AsyncSession], hooks: list[Hook], error: BaseException | None
    ) -> asyncio.CancelledError | None:
        """Run hooks to their end, whatever happens to this task; gives back the cancellation that came meanwhile."""
        was_cancelled = isinstance(error, asyncio.CancelledError)
        failed, cancelled = await finish(self._each(hooks), self._finish_within, cancelled=was_cancelled)
        interruption = report(unit, failed)
        if interruption is not None and not isinstance(interruption, asyncio.CancelledError):
            raise interruption
        return cancelled

    async def _each(self, hooks: list[Hook]) -> list[plan.Call[Hook]]:
        self.current_place.set(afterwards)  # the context is that of the task in which only these hooks run
        return await adrive(plan.each(hooks), _call)

    def run_hooks_here(self, unit: BaseUnit[AsyncSession], hooks: list[Hook]) -> None:
        """Run hooks after a checkpoint, from within SQLAlchemy's greenlet."""
        if (cancelled := await_only(self._run_hooks(unit, hooks, None))) is not None:
            raise cancelled


def _engine_of(given: Any, options: dict[str, Any], pooler: str | None) -> AsyncEngine:
    """The engine for what the user has given as one."""
    if isinstance(given, Engine):
        raise WrongDriver("an Engine was given to AsyncDatabase. Use Database, or create_async_engine().")
    if isinstance(given, AsyncEngine):
        return taken(given, options, pooler)  # type: ignore[no-any-return]
    return presets.make_async_engine(presets.parse(given), options, pooler)  # type: ignore[no-any-return]


async def _call(hook: Hook) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result


def _acting(unit: BaseUnit[AsyncSession]) -> Callable[[Step], Awaitable[None]]:
    def act(step: Step) -> Awaitable[None]:
        return greenlet_spawn(unit.act, step)

    return act


def _pause(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))
