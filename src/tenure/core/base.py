"""What ``Database`` and ``AsyncDatabase`` share: everything that decides. Their own modules only carry out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from tenure import callsite, workers
from tenure.callsite import Site, words
from tenure.checks import check_seconds
from tenure.core import detached, events, plan
from tenure.core import options as opts
from tenure.core.current import Current, afterwards
from tenure.core.green import GreenletsBlocked
from tenure.core.hooks import Hook
from tenure.core.limits import Limits, Notices
from tenure.core.obituary import gone
from tenure.core.openunits import OpenUnits
from tenure.core.options import GuardMode, Hold, UnitOptions
from tenure.core.plainread import PlainReads
from tenure.core.plan import Opening, Outcome, Plan, Step, Verdict, attach
from tenure.core.portable import Portable
from tenure.core.replicated import Replicated
from tenure.core.session import UnitSession
from tenure.core.status import Status, status_of
from tenure.core.unit import BaseUnit
from tenure.engines import presets
from tenure.engines.admission import Admission, admission_of
from tenure.engines.deadline import Deadline, earlier
from tenure.engines.ledger import HolderReport, is_spare
from tenure.engines.masked import shown
from tenure.engines.replicas import Servers
from tenure.engines.supply import Supply
from tenure.exceptions import DatabaseDraining, JoinRefused, NoUnit, TenureError, UnexpectedUnit

S = TypeVar("S")
_STORED: Final = Verdict(Outcome.COMMITTED)
_NOTHING_STORED: Final = Verdict(Outcome.READ_ONLY)


class BaseDatabase(Replicated, Portable, Generic[S]):
    """One database: an engine, and the units that use it. Safe to share by all threads and tasks."""

    gives: type
    session_class: type[UnitSession]
    unit_class: type[BaseUnit[S]]
    is_async: bool

    def __init__(
        self,
        found: Servers,
        *,
        name: str | None,
        isolation: str | None,
        hold: Hold,
        admission: Admission | None,
        guards: Mapping[str, GuardMode] | GuardMode | None,
        session_options: Mapping[str, Any] | None,
        liveness: float | None,
        limits: Limits,
    ) -> None:
        engine, *others = (getattr(one, "sync_engine", one) for one in (found.primary, *found.replicas))
        if liveness is not None:
            check_seconds("liveness", liveness)
        self.name = name or "main"
        self.hold: Hold = hold
        self.isolation = UnitOptions(isolation=isolation, hold=hold, name=name).isolation
        self.modes = opts.guard_modes(guards)
        self.supply = Supply(engine, self.name, admission_of(admission), liveness)
        self.notices = Notices(limits)
        self.routing = self.route(found.settings, [Supply(one, self.name, admission_of(admission), liveness) for one in others])
        self.plain = PlainReads(engine.dialect)
        self.current_place = Current(self.name)
        self.classic: dict[tuple[Supply, Hold | None, str | None], bool] = {}  # whether a unit of such options holds throughout
        self.units = OpenUnits()
        self.in_greenlet = GreenletsBlocked(self.name, engine)
        for supply in self.supplies:
            supply.gate.around.append(self._holders_around)
        self.session_options = opts.session_options(session_options)
        self._servers = found
        self._anchor = presets.anchor(engine.url)
        if self.modes["detached"] != "off":
            detached.install()

    # -- what a user asks ---------------------------------------------------------------------------

    @property
    def session(self) -> S:
        """The session of the current unit.

        Raises:
            NoUnit: No unit is open in this context.
            UnitEnded: The one that was has ended.

        """
        return self.current.session

    @property
    def current(self) -> BaseUnit[S]:
        """The innermost unit of this context. Never opens one, but for the request that a web boundary has begun.

        Raises:
            NoUnit: No unit is open in this context.
            UnitEnded: The one that was has ended.

        """
        unit = self.current_place.open()
        if unit is not None:
            return unit
        ended = self.current_place.here()
        if ended is not None:
            raise gone(ended)
        what = f"{self._where()}. Decorate the function with @db.unit, or open one: {self.as_written}."
        raise NoUnit(f"{what} The requests of an application have one where the database is registered with it.")

    def on_commit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """``db.current.on_commit``: call *function* after the commit of the current unit."""
        self.current.on_commit(function, *args, **kwargs)

    def on_rollback(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """``db.current.on_rollback``: call *function* after the rollback of the current unit."""
        self.current.on_rollback(function, *args, **kwargs)

    def status(self) -> Status:
        """How many connections there are, are out, and were out at most. Takes no connection."""
        return status_of(self.name, self.supply.gate, self.replica_numbers())

    def holders(self) -> list[HolderReport]:
        """Who holds a connection now, the oldest first. Takes no connection."""
        gates = [supply.gate for supply in self.supplies]
        found = [report for gate in gates for report in gate.ledger.reports(is_spare)]
        return sorted(found, key=lambda one: one.age, reverse=True)

    def _holders_around(self) -> Iterator[UnitSession]:
        return (door for unit in self.current_place.around() if (door := unit.door) is not None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {shown(self.supply.engine.url)}>"

    # -- opening ------------------------------------------------------------------------------------------

    def unit_options(self, values: Mapping[str, Any]) -> UnitOptions:
        """``UnitOptions`` of keyword arguments, as far as it is known now that this database takes them.

        Raises:
            BadOption: A name is not an option, or a value is not one it takes.

        """
        found = opts.unit_options(values)
        if found.verify_commit:
            self.supply.witness.check()
        return found

    def open_unit(
        self,
        options: UnitOptions,
        site: Site | None,
        *,
        name: str | None = None,
        under: BaseUnit[S] | None = None,
        deadline: Deadline | None = None,
    ) -> tuple[BaseUnit[S], Opening]:
        """Decide what entering a unit means here, and make that unit current. No I/O.

        Args:
            options: What is asked for.
            site: The user's line.
            name: Its name, where the options give none.
            under: The unit of a session that the caller passed by hand.
            deadline: That of all runs of a function, if one has begun to count; else it begins now.

        """
        outer = under if under is not None else self.current_place.open()
        how = plan.OPENINGS[options.propagation][outer is not None]
        if how is Opening.OWN and under is None:
            unit = self.own_unit(options, site, outer, name=name, deadline=deadline)
        else:
            self._refuse_joining(how, options, outer, site, name or "a unit")
            assert outer is not None
            unit = self.unit_class(self, options, site, outer, name=name, joins=True)
            if options.timeout is not None or outer.deadline is not None:
                unit.deadline = earlier(outer.deadline, options.timeout)
        unit.token = self.current_place.enter(unit)
        return unit, how

    def own_unit(
        self,
        options: UnitOptions,
        site: Site | None,
        outer: BaseUnit[S] | None = None,
        *,
        name: str | None = None,
        deadline: Deadline | None = None,
    ) -> BaseUnit[S]:
        """A unit with a session of its own, which is not made current."""
        if options.settings:
            self.supply.check_settings(options.settings)
        if outer is None and self.units.draining:
            self.check_not_draining(options.name or name or "a unit", site)
        unit = self.unit_class(self, options, site, outer, name=name)
        self.units.enter(unit)
        if options.timeout is not None:
            unit.deadline = deadline or Deadline(options.timeout)
        return unit

    def check_not_draining(self, name: str, site: Site | None) -> None:
        """Raise DatabaseDraining where no unit may begin any more that is not part of another, or of its hooks."""
        units = self.units
        if not units.draining or self.supply.closed:  # then it says so itself
            return
        if units.over or self.current_place.var.get() is not afterwards:
            raise DatabaseDraining(
                f"{name} ({words(site)}) was to begin while {self.name!r} is drained; units that are open may end. Begin no work after"
                " drain(), or do it again in another process."
            )

    def beginning(self, unit: BaseUnit[S], how: Opening) -> Any:
        """The plan that begins *unit*."""
        unit.session  # noqa: B018 - a unit within another needs the session now
        if unit.deadline is not None and unit.door is not None:
            unit.door.timed = True
        return plan.begin(how, unit.options.readonly, unit.within_readonly)

    def _refuse_joining(self, how: Opening, asked: UnitOptions, outer: BaseUnit[S] | None, site: Site | None, name: str) -> None:
        """Raise where there is no unit to join, or *outer* is one that may not be joined or gives less than is *asked* for."""
        if outer is None:
            raise NoUnit(f"{self._where()}, and propagation='mandatory' must join one. Open it in the caller: {self.as_written}.")
        root = outer.root
        if how is Opening.OWN:
            raise JoinRefused(
                f"{name} ({words(site)}) has propagation={asked.propagation!r}, but was given the session of {root.name!r}"
                f" ({words(root.site)}) by hand. Leave the session out, or let it join."
            )
        if how is Opening.UNEXPECTED:
            raise UnexpectedUnit(
                f"{name} ({words(site)}) has propagation='never', but is called within {root.name!r} ({words(root.site)}). Call it"
                ' outside, or use propagation="new".'
            )
        isolation = None if asked.isolation is None else self._given_isolation(root)
        if wrong := opts.beyond(asked, root.options, isolation, root.options.hold or self.hold):
            raise JoinRefused(
                f"the unit at {words(site)} would join {root.name!r} ({words(root.site)}) but asks for {wrong}."
                ' Ask for it in the outer unit, or use propagation="new".'
            )

    def _given_isolation(self, root: BaseUnit[S]) -> str | None:
        asked = root.options.isolation or self.isolation
        profile = self.supply.profile
        if asked is None and profile.isolation is not None and profile.reads_alone and (root.options.hold or self.hold) == "auto":
            return "READ COMMITTED"  # its reads run in autocommit, each with a snapshot of its own
        return asked or self.supply.known_isolation()

    # -- ending ---------------------------------------------------------------------------------------------

    def at_once(self, unit: BaseUnit[S], error: BaseException | None, settled: Verdict | None = None) -> Verdict | None:
        """End *unit* without I/O, if nothing was done that takes some; None where a plan must be carried out."""
        if error is not None or not unit.owns or not unit.needs_no_end():
            return None
        door = unit.door
        if self.is_async and door is not None and door.keeps_connection:
            return None  # giving it back is awaited
        unit.ending = True
        verdict = settled or (_STORED if unit.stored() else _NOTHING_STORED)
        if door is not None and not door.retire():
            try:
                door.close()
            except BaseException as failed:
                return plan.unclosed(verdict, failed)
        return verdict

    def ending(self, unit: BaseUnit[S], error: BaseException | None, settled: Verdict | None = None) -> Plan | None:
        """The plan that ends *unit*; None for one that has joined, whose end is no more than a note."""
        if unit.savepoint is not None:
            return plan.settle(error, unit, Step.RELEASE, Step.ROLLBACK_TO)
        if not unit.owns:
            return None
        unit.ending = True
        return plan.end(error, unit, settled)

    def late(self, unit: BaseUnit[S], error: BaseException | None) -> None:
        """Leave a unit that was rolled back in the absence of its owner, who must not take that for success."""
        if unit.token is not None:
            self.current_place.reset(unit.token)
            unit.token = None
        if error is None:
            raise gone(unit)

    def joined_end(self, unit: BaseUnit[S], error: BaseException | None) -> Verdict:
        """A unit that had joined another is over: if it failed, the other may not commit as if it had not."""
        only_reads = unit.options.readonly and not unit.within_readonly
        if error is None and only_reads and unit.door is not None and not unit.rollback_asked:
            try:
                unit.door.refuse_unflushed()
            except TenureError as refused:
                error = refused
        if error is not None:
            unit.failed(error, callsite.of_error(error))
        return Verdict(Outcome.READ_ONLY if error is None else Outcome.ROLLED_BACK, error)

    def finished(self, unit: BaseUnit[S], verdict: Verdict, site: Site | None) -> list[Hook]:
        """Close the books on *unit*: nothing is current any more; which hooks are due."""
        if unit.token is not None:
            self.current_place.reset(unit.token)
            unit.token = None
        if self.routing is not None:
            self.remember(unit, verdict.outcome)
        hooks = unit.take_hooks(verdict.outcome) if unit.owns else []
        unit.lingers = bool(hooks)
        if verdict.outcome is Outcome.UNKNOWN and unit.owns:
            self.supply.gate.counts.in_doubt += 1
        if unit.savepoint is not None and verdict.outcome is not Outcome.ROLLED_BACK and verdict.error is not None:
            unit.failed(verdict.error)
        unit.close(verdict.outcome, verdict.error, site)
        if verdict.trouble is not None:
            events.tell(events.EndTroubled(self.name, unit.name, unit.site, verdict.outcome, verdict.trouble))
        if verdict.error is not None and not isinstance(verdict.error, Exception):
            attach(verdict.error, verdict.outcome)
        return hooks

    # -- guards -----------------------------------------------------------------------------------------------

    def guard(self, error: TenureError) -> None:
        """Raise *error*, or warn of it, or let it pass, as its guard is set."""
        mode = self.modes.get(error.slug, "raise")
        if mode == "raise":
            raise error
        if mode == "warn":
            events.tell(events.GuardTripped(self.name, error.slug, str(error)))

    def warn_leak(self, leak: events.UnitLeaked) -> None:
        """Tell that a unit was abandoned, unless that guard is off."""
        if self.modes["leaked-unit"] != "off":
            events.tell(leak)

    # -- filled in by the two faces -----------------------------------------------------------------------------

    def new_session(self, unit: BaseUnit[S]) -> tuple[S, UnitSession]:
        """A session for *unit*: as the user sees it, and as the synchronous object behind it."""
        raise NotImplementedError  # pragma: no cover

    def run_hooks_here(self, unit: BaseUnit[S], hooks: list[Hook]) -> None:
        """Run hooks from within a synchronous call of the session."""
        raise NotImplementedError  # pragma: no cover

    def _where(self) -> str:
        return f"no unit of {self.name!r} is open in {workers.describe(workers.here())} ({words(callsite.here(2))})"

    @property
    def as_written(self) -> str:
        """How a unit is opened."""
        return "async with db.unit() as session" if self.is_async else "with db.unit() as session"
