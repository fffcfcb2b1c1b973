"""One request: the place at which its unit opens, and the plan of its end, which ``blocking`` and ``aio`` carry out.

A request is in one of three phases. Until ``settle`` the handler works, and the unit opens when it is first asked for. ``settle``
comes when the status is known and before the first byte leaves: it commits or rolls back. From then on the body is sent and may
read, but must not write. ``finish`` ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextvars import Token
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tenure import callsite
from tenure.callsite import Site, words
from tenure.core import events
from tenure.core.current import Place
from tenure.core.plan import Outcome, Verdict
from tenure.core.unit import BaseUnit
from tenure.engines import fork
from tenure.engines.position import Client
from tenure.exceptions import LostWork
from tenure.web.answers import Refusal, keeps, reason, refusal
from tenure.web.together import Together, join

if TYPE_CHECKING:
    from tenure.web.boundary import Boundary

NOTHING: Final = Verdict(Outcome.READ_ONLY)
_KEPT: Final = 600  # seconds that a client keeps a position: far longer than replicas are behind, and over soon after a failover
# Two threads of one request may ask first, or end it, at the same time. A lock that may be taken again, for the garbage
# collector may end a request in the thread that is about to open another.
_turn = threading.RLock()


def _start_anew() -> None:
    global _turn
    _turn = threading.RLock()


fork.in_child(_start_anew)


class Step(NamedTuple):
    """A step of a request's end, to be called, and awaited on an event loop. One of the host's own has no request."""

    request: Request | None
    call: Callable[[], Any]


class Request:
    """One request: the place at which its unit opens. Made at its begin, when it costs next to nothing.

    Args:
        boundary: What the application has decided.
        name: ``GET /path``.
        given: What the host knows of it: WSGI's environ, ASGI's scope, or the request of a framework that has neither.

    """

    # What most requests never need is the class's own, until it is needed.
    unit: BaseUnit[Any] | None = None
    settled: Verdict | None = None
    wanted = False  # some thread opens its unit, or has
    failed: BaseException | None = None  # what came in place of a COMMIT where it was sent, until somebody answers for it
    client: Client | None = None  # where there are replicas
    worker: Any = None  # whose the unit is, where that is not the thread that opens it
    meant: tuple[int, BaseException | None] | None = None  # what was answered, where no unit was open when it was settled
    awaited = False  # its end is awaited on an event loop
    alone = False  # it ends by itself, whatever requests of other databases are under way here
    together: Together | None = None  # with requests of other databases
    asked: tuple[int, BaseException | None] | None = None  # what is answered, where others have to know it too
    ending = False
    over = False
    begun = False  # its answer has begun to leave
    claimed = False  # a host that has contexts of its own knows in which of them it is
    whole = False  # the host knows that nothing of the body is made while it is sent
    _came_with: Any = None
    _outside: Client | None = None
    _told = False  # the client has its cookies

    def __init__(self, boundary: Boundary, name: str, given: Any = None) -> None:
        self.boundary = boundary
        self.name = name
        self.given = given
        self.token: Token[Place] | None
        if boundary.routing is None:
            self.token = boundary.place.set(self)  # as enter() does
        else:
            self.client = boundary.client(given)
            self._came_with = None if self.client is None else self.client.mark
            self.token = self.enter()

    def __call__(self) -> BaseUnit[Any] | None:
        """The request's unit, if something has asked for it."""
        return self.unit

    def open(self) -> BaseUnit[Any] | None:
        """The request's unit, opened now if nothing has asked before; None when the request is over."""
        if self.unit is None:
            self._open(callsite.here(2))
        return None if self.over else self.unit

    def _open(self, site: Site | None) -> None:
        self.wanted = True  # before it is looked whether that is too late: who settles looks the other way round
        with _turn:
            if self.unit is None and not self.over:
                unit = self.boundary.database.own_unit(self.boundary.options.of(self.given), site, name=self.name)
                if self.meant is not None:
                    self._settle_late(unit, *self.meant)
                else:
                    join(self)
                unit.worker = self.worker
                self.unit = unit

    def _settle_late(self, unit: BaseUnit[Any], status: int, error: BaseException | None) -> None:
        """*unit* opens in the body of an answer: it has written nothing, and its outcome is what the answer means."""
        kept = error is None and (self.boundary.explicit or self.boundary.keeps(status))
        unit.settled, unit.reason = True, reason(status, error)
        unit.outcome = Outcome.READ_ONLY if kept else Outcome.ROLLED_BACK
        self.settled = Verdict(unit.outcome)

    # -- where it is current ----------------------------------------------------------------------------

    def enter(self) -> Token[Place]:
        """Make the request current again, as for a part of its body; give the token to ``leave``."""
        boundary = self.boundary
        if self.client is not None and boundary.routing is not None:
            self._outside = boundary.routing.clients.var.get()
            boundary.routing.clients.var.set(self.client)
        return boundary.place.set(self)

    def leave(self, token: Token[Place] | None) -> None:
        """Make current what was before. Threads are used again: nothing of this request may stay behind."""
        if token is None:
            return
        boundary = self.boundary
        if self.client is not None and boundary.routing is not None:
            boundary.routing.clients.var.set(self._outside)
        boundary.current.reset(token)

    # -- what the answer means ------------------------------------------------------------------------------

    def settle_unopened(self, status: int, error: BaseException | None) -> bool:
        """Settle a request that has no unit, which takes no step and no lock: False where it has one."""
        if self.unit is not None:
            return False
        if self.settled is not None:
            return True
        self.settled, self.meant = NOTHING, (status, error)
        return self.stands()

    def stands(self) -> bool:
        """Whether no unit was open when this was settled. One that another thread opens from now on comes too late to write."""
        if not self.wanted:
            return True
        with _turn:
            if (unit := self.unit) is None or unit.settled:
                return True
            self.settled = self.meant = None
            return False

    def finish_unopened(self) -> bool:
        """Finish a request that has no unit, which takes no step and no lock: False where it has one."""
        if self.unit is not None:
            return False
        if not self.wanted:
            self.over = True
        if self.wanted:
            with _turn:
                self.over = self() is None
        if not self.over:
            return False
        self.settled = self.settled or NOTHING
        self.ending = True
        return True

    def decide(self, status: int, error: BaseException | None) -> BaseUnit[Any] | None:
        """The unit to settle for an answer with *status*, told to roll back if that is what the answer means."""
        unit = self.unit
        if unit is None:
            if self.settle_unopened(status, error):
                return None
            unit = self.unit
            assert unit is not None
        unit.reason = reason(status, error)
        if error is None and self.boundary.explicit:
            self._leave_nothing(unit, status)
        elif error is None and not self.boundary.keeps(status):
            unit.rollback_only(f"status {status}")
        return unit

    def refuse_success(self, status: int) -> None:
        """Raise again what came in place of a COMMIT, where an answer with *status* would hide it; any other answers for it."""
        failed = self.failed
        if failed is not None and keeps(status):
            raise failed
        self.failed = None

    def refused(self, error: BaseException) -> Refusal:
        """What a host answers that *error* has reached, if that says that the client may come again and nothing was sent yet.

        Raises:
            BaseException: What the server is to answer: *error*, or what came in place of a COMMIT, of which *error* was made.

        """
        cause = self.handed_over() or error
        refused = None if self.begun else refusal(cause)
        if refused is not None:
            return refused
        if cause is error:
            raise error
        raise cause from None

    def handed_over(self) -> BaseException | None:
        """What came in place of a COMMIT where it was sent, for those who answer for it from here on; None where nothing did."""
        failed, self.failed = self.failed, None
        return failed

    def set_cookies(self) -> list[tuple[str, str]]:
        """The Set-Cookie headers for a client that has written in this request, once it is settled, and once for each answer."""
        if self.together is None:
            return self.set_cookie()
        # The one that has settled them all sends those of all.
        return [] if self.settled is None else [cookie for one in self.together.members for cookie in one.set_cookie()]

    def set_cookie(self) -> list[tuple[str, str]]:
        """That header for this database, if there is one."""
        name, client, routing = self.boundary.position_cookie, self.client, self.boundary.routing
        if name is None or client is None or routing is None or self._told or client.mark == self._came_with:
            return []
        self._told = True
        secure = "; Secure" if self.boundary.is_secure(self.given) else ""
        cookie = f"{name}={client.mark.token(routing.wall())}; Path=/; Max-Age={_KEPT}; HttpOnly; SameSite=Lax{secure}"
        return [("Set-Cookie", cookie)]

    def _leave_nothing(self, unit: BaseUnit[Any], status: int) -> None:
        """What the application has not committed is rolled back; that is worth a warning when the answer promises success."""
        lost = None if unit.door is None else unit.door.unsaved()
        if lost is None:
            return
        unit.rollback_only(f"{lost.rstrip(',')}, never committed")
        if keeps(status):
            self._warn(f"{unit.name!r} ({words(unit.site)}) {self._went_well(status)}, but {lost} is lost. Call commit().")

    def _went_well(self, status: int) -> str:
        return f"answered {status}"

    def _warn(self, message: str) -> None:
        events.tell(events.WorkLost(self.boundary.database.name, self.name, str(LostWork(message))))

    def check_body(self) -> None:
        """Warn of what the body left unwritten: nothing will store it."""
        unit = self.unit
        if unit is not None and unit.door is not None and not unit.ended and (lost := unit.door.unsaved()):
            self._warn(
                f"{unit.name!r} ({words(unit.site)}): {lost} came while the body was sent and is lost. Use a unit of its own."
            )

    # -- what is to be done: carried out in this thread, in another, or on an event loop ------------------------

    def settling(self, status: int, error: BaseException | None) -> Generator[Step, Any, None]:
        """The plan of ``settle``: commit or roll back, before the first byte leaves."""
        if self.settled is not None:
            return
        if self.together is None:
            yield from self.settling_alone(status, error)
            return
        self.asked = (status, error)
        yield from self.together.settling(status, error)

    def settling_alone(self, status: int, error: BaseException | None) -> Generator[Step, Any, None]:
        """The plan of ``settle``, for this database."""
        if self.settled is not None:
            return
        unit = self.decide(status, error)
        if unit is None:
            return
        try:
            verdict: Verdict = yield Step(self, partial(self._shell.settle, unit, error))
        finally:
            self.settled = Verdict(unit.outcome or Outcome.UNKNOWN)  # also when a hook was interrupted
        if verdict.error is not None and verdict.error is not error:
            unit.reason = type(verdict.error).__name__
            raise verdict.error

    def finishing(self, error: BaseException | None, site: Site | None) -> Generator[Step, Any, None]:
        """The plan of ``finish``: the body was sent, or the client has left."""
        with _turn:
            if self.ending:
                return
            self.ending = True
        try:
            if self.settled is None and (error is not None or self.asked is None):  # the host gave up before there was a status
                yield from self.settling(500, error or RuntimeError("the request ended without an answer"))
        finally:
            if self.settled is None and self.together is not None:
                self.together.leaves(self, error, site)
            else:
                yield from self.leaving(error, site)

    def leaving(self, error: BaseException | None, site: Site | None) -> Generator[Step, Any, None]:
        """The last part of the plan of ``finish``."""
        self.check_body()
        self.together = None
        with _turn:
            self.over = True
        if self.unit is not None:
            yield Step(self, partial(self._shell.leave, self.unit, error, site, self.settled))

    @property
    def _shell(self) -> Any:
        return self.boundary.database  # whose methods of these names wait, or are awaited
