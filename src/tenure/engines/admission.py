"""Who gets a connection next: a bounded queue in front of the pool, first come, first served, by direct hand-over.

The brain of waiting, for threads and event loops alike. It knows how many places there are and who stands in line, and never
waits itself: ``waiting.py`` does. SQLAlchemy's own queue lets newcomers barge: in a tight loop over two connections, two threads
of sixteen have been seen to keep both for as long as they ran.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tenure.checks import check_seconds
from tenure.engines.ledger import Holder, Lease
from tenure.engines.overload import Overload
from tenure.exceptions import BadOption


@dataclass(frozen=True, slots=True)
class Admission:
    """How long, and in what number, units wait for a connection.

    Args:
        max_waiting: How many may wait at once; one more is refused at once with ``Overloaded``. Default: any number.
        max_wait: How long one waits, in seconds, before ``PoolExhausted``. Default: the pool's ``pool_timeout``, which is 30 s
            unless the engine was given another.
        target: The wait, in seconds, that is still good service. When no one was served faster for a whole interval of
            ten such times, those who have waited for twice the target are refused with ``Overloaded`` until that changes.
            Default: off. It must be longer than it takes to make a connection.

    Raises:
        BadOption: A value is out of range.

    """

    max_waiting: int | None = None
    max_wait: float | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        if self.max_waiting is not None and (type(self.max_waiting) is not int or self.max_waiting < 0):
            raise BadOption(f"Admission(max_waiting={self.max_waiting!r}): give how many may wait, at least 0.")
        if self.max_wait is not None:
            check_seconds("Admission(max_wait)", self.max_wait)
        if self.target is not None:
            check_seconds("Admission(target)", self.target, above=0.0)


class State(Enum):
    """What has become of one who waits."""

    WAITING = "waiting"
    SERVED = "served"
    SHED = "shed"  # waited too long in an overloaded queue
    DISMISSED = "dismissed"  # its unit is at its end
    GONE = "gone"  # gave up: timed out, or cancelled


class Places:
    """The places of one pool; when ``dispose()`` has put another in its stead, there are others."""

    __slots__ = ()


class Turn:
    """One who waits in line.

    Attributes:
        lease: For what; it has its place when it was served.
        since: Since when, by ``time.monotonic()``, in seconds.
        wake: Called once, when it is served or shed; False when nobody is there to be woken.

    """

    __slots__ = ("lease", "since", "state", "wake")

    def __init__(self, lease: Lease, wake: Callable[[], bool]) -> None:
        self.lease = lease
        self.wake = wake
        self.state = State.WAITING
        self.since = 0.0


class Queue:
    """The places of one pool, those who wait for one, and the leases that may be taken from those who only keep them.

    A lease is *spare* when its unit has parked it: idle, nothing open on it, kept so that the unit's next read needs no trip to
    the pool. Nobody waits while one is spare, and nothing is parked while somebody waits.

    The lock may be taken again in the same thread: the garbage collector may give a connection back in the middle of a method,
    and each method leaves the queue in order whenever that was (``_serve``).
    """

    def __init__(self, capacity: int | None, admission: Admission, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.admission = admission
        self.used = 0
        self.peak = 0
        self.waiting = 0
        self.last_wait = 0.0
        self.watched_by: object = None  # the event loop that looks after those who wait
        self._clock = clock
        self._lock = threading.RLock()
        self._line: deque[Turn] = deque()
        self._spare: dict[int, Lease] = {}
        self._places = Places()
        self._overload = None if admission.target is None else Overload(admission.target)

    # -- places -----------------------------------------------------------------------------------------

    def enter(self, lease: Lease) -> bool:
        """Give *lease* a place, if one is free and nobody is waiting for it."""
        with self._lock:
            if self.capacity is not None and (self.used >= self.capacity or self.waiting):
                return False
            self._seat(lease)
            return True

    def leave(self, lease: Lease) -> None:
        """Give the place of *lease* up, if it has one: the first in line has it at once."""
        with self._lock:
            self._spare.pop(id(lease), None)  # an interruption may have come between parking it and knowing that
            place, lease.place = lease.place, None
            if place is self._places:
                self.used -= 1
                self._serve()

    def renew(self, capacity: int | None) -> list[Lease]:
        """The pool is another one now: all its places are free. Gives the spare leases of the old one, to be closed."""
        with self._lock:
            self.capacity, self.used, self._places = capacity, 0, Places()
            spare, self._spare = list(self._spare.values()), {}
            self._serve()
        return spare

    def start_anew(self) -> None:
        """As ``Heir``: those in line have stayed in the parent; ``renew`` is to follow."""
        self._lock = threading.RLock()
        self._line.clear()
        self.waiting = self.peak = 0
        self.last_wait = 0.0
        self.watched_by = None

    def is_past(self, lease: Lease) -> bool:
        """Whether *lease* has its place in a pool that another one has replaced."""
        return lease.place is not None and lease.place is not self._places

    def _seat(self, lease: Lease) -> None:
        lease.place, self.used = self._places, self.used + 1  # at once, for an interruption may come between two lines
        self._note_peak()

    # -- the line ---------------------------------------------------------------------------------------

    def join(self, turn: Turn) -> Lease | None:
        """Stand in line, unless there is a spare lease: that is given, its place goes over, and the caller must close it."""
        with self._lock:
            if self._spare:
                taken = self._spare.pop(next(iter(self._spare)))
                turn.lease.place, taken.place = taken.place, None
                turn.state = State.SERVED
                return taken
            turn.since = self._clock()
            self._line.append(turn)
            self.waiting += 1
            self._serve()
            return None

    def abandon(self, turn: Turn) -> None:
        """Step out of the line. When the turn came before that, ``turn.state`` says so, and the lease has its place."""
        with self._lock:
            if turn.state is not State.WAITING:
                return
            turn.state = State.GONE
            self.waiting -= 1
            if len(self._line) > 2 * self.waiting + 16:  # those who have gone stay in line until it is tidied
                self._line = deque(one for one in self._line if one.state is State.WAITING)

    def dismiss(self, holder: Holder) -> None:
        """Send *holder* away, if it waits."""
        with self._lock:
            for turn in self.turns():
                if turn.lease.holder() is holder:
                    turn.state = State.DISMISSED
                    self.waiting -= 1
                    turn.wake()

    def turns(self) -> list[Turn]:
        """Those who wait now, the first in line first."""
        with self._lock:
            return [one for one in self._line if one.state is State.WAITING]

    def _serve(self) -> None:
        while self.waiting and (self.capacity is None or self.used < self.capacity):
            turn = self._line.popleft()
            if turn.state is not State.WAITING:
                continue
            self.waiting -= 1
            waited = self._clock() - turn.since
            self.last_wait = waited
            shed = self._overload is not None and self._overload.sheds(self._clock(), waited)
            turn.state = State.SHED if shed else State.SERVED
            if turn.wake() and not shed:
                self._seat(turn.lease)

    # -- what is kept, but may be taken ---------------------------------------------------------------------

    def park(self, lease: Lease) -> bool:
        """Keep an idle lease for its unit until somebody needs it; False when somebody does now."""
        with self._lock:
            if self.waiting or lease.place is not self._places:
                return False
            lease.rests_since = self._clock()
            self._spare[id(lease)] = lease
            return True

    def unpark(self, lease: Lease) -> bool:
        """Have a parked lease back; False when it was taken."""
        with self._lock:
            if self._spare.pop(id(lease), None) is None:
                return False
            self._note_peak()
            return True

    def take_spare(self) -> list[Lease]:
        """All that is parked; the caller closes it."""
        with self._lock:
            spare, self._spare = list(self._spare.values()), {}
            return spare

    def is_spare(self, lease: Lease) -> bool:
        """Whether *lease* is parked."""
        return id(lease) in self._spare

    @property
    def spare(self) -> int:
        """How many leases are parked."""
        return len(self._spare)

    def _note_peak(self) -> None:
        if (out := self.used - len(self._spare)) > self.peak:
            self.peak = out


def admission_of(value: Any) -> Admission | None:
    """*value*, which a user gave as ``admission=``.

    Raises:
        BadOption: It is no ``Admission``.

    """
    if value is not None and not isinstance(value, Admission):
        raise BadOption(f"admission={value!r}: give Admission(max_waiting=…, max_wait=…).")
    return value
