"""Why nobody gets a connection, in words: who holds them, what the matter is, and what to do about it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from tenure import workers
from tenure.callsite import Site, words
from tenure.engines.ledger import Holder, Holding, Lease, Stranger, is_spare
from tenure.exceptions import BlockedLoop, DatabaseDraining, Overloaded, PoolExhausted, SecondConnection

if TYPE_CHECKING:
    from tenure.engines.gate import Gate

_LISTED: Final = 20  # holders that an error lists one by one
_IDLE: Final = 0.1  # seconds without a statement, while others wait, that are more than the time between two of them

# What may be the matter, the one that explains most first where two are as frequent, and the remedy.
REMEDIES: Final = {
    "leaked": "A larger pool will not help: end every unit with a with-block, and every connection with close().",
    "hold and wait": 'A larger pool only helps for a while: join the unit around (leave out propagation="new"), or commit first.',
    "threads starved": "A larger pool will not help: the holders wait for a thread, and the threads for a connection."
    " Give the holders threads of their own, or fewer threads to those who wait.",
    "database locked": "A larger pool will not help: end the transaction that the others wait for sooner.",
    "held idle": "A larger pool will not help: commit, or unit.release(), before slow work that is no SQL.",
    "too small": "All of them are at work: shorten the work, or give the pool more connections.",
}


class _Held(NamedTuple):
    """One connection that is out, and what it is held for."""

    lease: Lease
    holding: Holding
    age: float
    kind: str


def overloaded(gate: Gate, bound: str) -> Overloaded:
    """The error for one who is not let in line (*bound* is ``max_waiting``) or is sent away from it (``target``)."""
    queue = gate.queue
    limit = getattr(queue.admission, bound)
    retry_after = float(max(1, round(queue.last_wait + 0.5)))
    return Overloaded(
        f"{gate.name!r}: {gate.queue.waiting} units wait ({bound}={limit:g}), {gate.out()} of {queue.capacity} out."
        f" Retry after {retry_after:g} s.",
        retry_after,
    )


def dismissed(gate: Gate, holder: Holder | None) -> DatabaseDraining:
    """The error for *holder*, which still waited when a drain ran out of time."""
    one = Holding("engine.connect()", None, None) if holder is None else holder.holding()
    return DatabaseDraining(
        f"{one.unit!r} ({words(one.line or one.site)}) still waited for a connection of {gate.name!r} when the drain ran out of time."
        " Nothing was stored; do it again in another process."
    )


def refuse_deadlock(gate: Gate, asking: Lease, holder: Holder) -> None:
    """Raise SecondConnection if code around *holder* has a connection, and whoever has the others waits for one more as well."""
    if gate.queue.spare:
        return
    held = [one for lease in gate.ledger.leases() if (one := lease.holder()) is not None]
    first = next((one for one in held if one is not holder and one in asking.behind), None)
    if first is None:
        return
    stuck = _stuck(gate, asking)
    if any(one not in stuck for one in held):
        return  # somebody will give one back
    outer, inner, capacity = first.holding(), holder.holding(), gate.queue.capacity
    all_wait = "" if capacity == 1 else ", and all of them are held by units that wait like this one"
    (first if isinstance(holder, Stranger) else holder).guard(
        SecondConnection(
            f"{outer.unit!r} holds a connection of {gate.name!r} ({words(outer.site)}) and asks for a second in {inner.unit!r}"
            f" ({words(inner.line or inner.site)}); the pool has {capacity}{all_wait}. Join the unit, or commit and release first."
        )
    )


def refuse_blocked_loop(gate: Gate, holder: Holder) -> None:
    """Raise BlockedLoop if *holder*, which blocks where it waits, is about to do that in a task of an event loop."""
    worker = workers.alive(workers.here())
    if isinstance(holder, Stranger) or not isinstance(worker, asyncio.Task) or gate.queue.spare:
        return
    one = holder.holding()
    holder.guard(
        BlockedLoop(
            f"{one.unit!r} ({words(one.line or one.site)}) needs a connection of {gate.name!r}, whose {gate.queue.capacity} are out, and would"
            f" stop the event loop of {workers.describe(worker)} while it waits, and with it those who are to give one back. Make the handler"
            " `def`, use an AsyncDatabase, or call a function: `await asyncio.to_thread(db.unit(function))`."
        )
    )


def _stuck(gate: Gate, asking: Lease) -> set[Holder]:
    """Who cannot go on before somebody that waits, *asking* among them, has got a connection."""
    waiting = [turn.lease for turn in gate.queue.turns()]
    return {one for lease in (*waiting, asking) for one in lease.behind if one is not lease.holder()}


def exhausted(gate: Gate, lease: Lease, waited: float) -> PoolExhausted:
    """The error for *lease*, for which none came free in *waited* seconds."""
    held = _examine(gate, lease, waited)
    kind = _verdict(held)
    groups = "; ".join(_groups(held)) or "Nobody known holds them"
    error = PoolExhausted(
        f"{gate.name!r}: none of {gate.queue.capacity} free in {waited:.1f} s, {gate.queue.waiting + 1} wait. {groups}."
        f" {REMEDIES[kind]}",
        kind,
        tuple(gate.ledger.reports(is_spare)),
    )
    for one in held[:_LISTED]:
        error.add_note(_line(one))
    if len(held) > _LISTED:
        error.add_note(f"  and {len(held) - _LISTED} more")
    return error


def _examine(gate: Gate, asking: Lease, waited: float) -> list[_Held]:
    """What each connection that is out is held for, the oldest first."""
    waiting = [turn.lease.holder() for turn in gate.queue.turns()]
    starving = {id(workers.alive(one.holding().worker)) for one in (*waiting, asking.holder()) if one is not None}
    leases = sorted(gate.ledger.leases(), key=lambda one: one.since)
    held = [(lease, one, one.holding()) for lease in leases if (one := lease.holder()) is not None]
    stuck, patience = _stuck(gate, asking), min(_IDLE, waited / 2)
    locks = any(not one.running and one.idle > patience and lease.pinned for lease, _, one in held)

    def kind(lease: Lease, holder: Holder, one: Holding) -> str:
        if holder.owner_is_gone():
            return "leaked"
        if holder in stuck:
            return "hold and wait"
        if one.running:
            return "database locked" if locks and one.running_for > patience else "running"
        if id(workers.alive(one.worker)) in starving:
            return "threads starved"
        idle = lease.age() if isinstance(holder, Stranger) else one.idle
        return "held idle" if idle > patience else "running"

    return [_Held(lease, one, lease.age(), kind(lease, holder, one)) for lease, holder, one in held]


def _verdict(held: list[_Held]) -> str:
    counts = Counter("too small" if one.kind == "running" else one.kind for one in held)
    if counts["database locked"]:  # whoever holds the lock is idle: one such explains any number that wait for it
        return "database locked"
    return max(REMEDIES, key=lambda kind: counts[kind]) if counts else "too small"


def _groups(held: list[_Held]) -> list[str]:
    """Holders that do the same at the same line, the largest group first, as ``held idle: 12 by 'GET /chat' (chat.py:88), oldest 212 s``."""
    groups: dict[tuple[str, str, Site | None], list[_Held]] = {}
    for one in held:
        groups.setdefault((one.kind, one.holding.unit, one.holding.site), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    texts = [
        f"{kind}: {len(ones)} by {unit!r} ({words(site)}), oldest {max(one.age for one in ones):.1f} s"
        for (kind, unit, site), ones in ordered
    ]
    return [texts[0][:1].upper() + texts[0][1:], *texts[1:]] if texts else []


def _line(one: _Held) -> str:
    holding = one.holding
    doing = "running" if holding.running else f"idle for {holding.idle:.1f} s since {words(holding.line)}"
    last = "" if holding.statement is None else f", last: {' '.join(holding.statement.split())[:200]}"
    return (
        f"  {holding.unit!r} ({words(holding.site)}) in {workers.describe(holding.worker)}, held {one.age:.1f} s, {doing}{last}"
    )
