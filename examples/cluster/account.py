"""Holds against each other what clients were told, what is stored, what went out, and what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import func, select

from examples.cluster import settings
from examples.cluster.clients import Book
from examples.cluster.models import Customer, Night, Order, Receipt, messages
from tenure import Database
from tenure.jobs.outbox import Outbox

RESERVED = 3  # of a server's connections, for administrators


class Run(NamedTuple):
    """The nightly job, run for a tick."""

    tick: float
    node: str
    process: str


@dataclass
class Rows:
    """What is stored."""

    orders: dict[str, int] = field(default_factory=dict)  # by token
    ordered: Counter[int] = field(default_factory=Counter)  # orders of each customer
    points: Counter[int] = field(default_factory=Counter)  # of each customer
    receipts: set[int] = field(default_factory=set)
    nights: list[Run] = field(default_factory=list)
    pending: int = 0
    dead: int = 0
    capacity: int = 100  # connections that the primary takes


def read(db: Database) -> Rows:
    """All of it, as of one moment."""
    numbers = Outbox(db, messages).numbers()
    of_customer = select(Order.customer_id, func.count()).group_by(Order.customer_id)
    with db.unit(isolation="REPEATABLE READ") as session:
        return Rows(
            orders=dict(session.execute(select(Order.token, Order.id)).all()),
            ordered=Counter(dict(session.execute(of_customer).all())),
            points=Counter(dict(session.execute(select(Customer.id, Customer.points)).all())),
            receipts=set(session.scalars(select(Receipt.order_id))),
            nights=[Run(*row) for row in session.execute(select(Night.tick, Night.node, Night.process).order_by(Night.id))],
            pending=numbers.pending,
            dead=numbers.dead,
            capacity=int(session.scalars(select(func.current_setting("max_connections"))).one()),
        )


@dataclass
class Facts:
    """All that is known when a run has ended.

    Attributes:
        book: What clients were told.
        rows: What is stored.
        mails: How often a mail went out for each order.
        begun: Runs of the nightly job that were begun, whatever became of them.
        ends: The last words of the processes that were asked to end.
        statuses: With which status each ended; None if it had ended before it was asked.
        killed: How often which kind of process or server was killed.
        dead: The processes that were.
        outages: When a server was away.
        queued: Messages that RabbitMQ still has.
        most: The most connections at one time.
        left: What is left of them when all have ended.
        ended: When the schedulers were asked to end, by the database's clock.
        took: Seconds for which orders were placed.

    """

    book: Book
    rows: Rows
    mails: Counter[int] = field(default_factory=Counter)
    begun: list[Run] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    statuses: dict[str, int | None] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)
    dead: set[str] = field(default_factory=set)
    outages: list[tuple[float, float]] = field(default_factory=list)
    queued: int = 0
    most: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    ended: float = 0.0
    took: float = 0.0


class Promise(NamedTuple):
    """What must be true, the numbers, and what is wrong; nothing if it is true."""

    what: str
    numbers: str
    wrong: str = ""


def promises(facts: Facts) -> list[Promise]:
    """All that a run has to keep."""
    return [*_orders(facts), *_mails(facts), *_nights(facts), *_connections(facts), *_ends(facts)]


def _orders(facts: Facts) -> Iterable[Promise]:
    book, orders = facts.book, facts.rows.orders
    lost = [token for token, number in book.acknowledged.items() if orders.get(token) != number]
    kept = sorted(book.refused & orders.keys())
    strange = sorted(orders.keys() - book.acknowledged.keys() - book.refused - book.open)
    again = f"sent again: {_each(book.again) or 'none'}"
    yield Promise(
        "every order was answered in the end",
        f"{len(book.acknowledged)} taken, {len(book.refused)} refused; {again}",
        _said((book.open, f"{len(book.open)} were not"), (not book.acknowledged, "there are none")),
    )
    yield Promise(
        "what was taken is stored, what was refused is not",
        f"{len(orders)} orders stored",
        _said(
            (lost, f"{len(lost)} were taken and are not stored: {_some(lost)}"),
            (kept, f"{len(kept)} were refused and are stored: {_some(kept)}"),
            (strange, f"{len(strange)} are stored that nobody sent: {_some(strange)}"),
        ),
    )
    yield Promise(
        "who has ordered sees the order, on whichever server",
        f"read back: {_each(book.reads) or 'none'}",
        _said(
            (book.unseen, f"{len(book.unseen)} were not seen: {_some(book.unseen)}"),
            (not book.reads["standby"], "none was read on the standby"),
        ),
    )


def _mails(facts: Facts) -> Iterable[Promise]:
    rows, orders = facts.rows, set(facts.rows.orders.values())
    calls, again = facts.mails.total(), facts.mails.total() - len(facts.mails)
    unsent, strange = sorted(orders - facts.mails.keys()), sorted(facts.mails.keys() - orders)
    without, more = sorted(orders - rows.receipts), sorted(rows.receipts - orders)
    uneven = sorted(one for one in rows.ordered | rows.points if rows.ordered[one] != rows.points[one])
    yield Promise(
        "every order was mailed, at least once",
        f"{calls} mails for {len(facts.mails)} orders, {again} of them again",
        _said(
            (unsent, f"{len(unsent)} orders were not: {_some(unsent)}"),
            (strange, f"{len(strange)} mails are about orders that are not stored: {_some(strange)}"),
        ),
    )
    yield Promise(
        "and exactly once in effect",
        f"{len(rows.receipts)} receipts, {rows.points.total()} points",
        _said(
            (without, f"{len(without)} orders have no receipt: {_some(without)}"),
            (more, f"{len(more)} receipts are of no order: {_some(more)}"),
            (uneven, f"{len(uneven)} customers have not one point for each order: {_some(uneven)}"),
        ),
    )
    waiting = rows.pending + facts.queued
    yield Promise(
        "no message waits, and none was given up",
        f"outbox: {rows.pending} pending, {rows.dead} dead; RabbitMQ: {facts.queued}",
        _said((waiting, f"{waiting} wait"), (rows.dead, f"{rows.dead} were given up")),
    )


def _nights(facts: Facts) -> Iterable[Promise]:
    nights = sorted(facts.rows.nights)
    killed = [run for run in facts.begun if run not in nights]
    doubled: list[str] = []
    missed: list[str] = []
    for before, tick in pairwise([*nights, Run(facts.ended, "", "")] if nights else []):
        gap = (tick.tick - before.tick) / settings.EVERY
        if gap < 0.5 and tick.process and before.process not in facts.dead:  # else it died before it could say that it has run
            doubled.append(f"{tick.tick:.1f}")
        if gap > 1.75 and not any(since < tick.tick and before.tick < until for since, until in facts.outages):
            missed.append(f"after {before.tick:.1f}")
    yield Promise(
        "the nightly job ran once in each tick",
        f"{len(nights)} runs in {ticks_of(nights)} ticks; {len(killed)} more were killed in the middle",
        _said(
            (doubled, f"{len(doubled)} ran twice: {_some(doubled)}"),
            (missed, f"none ran {_some(missed)}"),
            (not nights, "it never ran"),
        ),
    )


def ticks_of(nights: list[Run]) -> int:
    """How many ticks there were from the first night to the last."""
    return round((nights[-1].tick - nights[0].tick) / settings.EVERY) + 1 if nights else 0


def bounds(capacity: int) -> dict[str, int]:
    """The arithmetic: how many connections there may be of each kind at most."""
    roles = settings.ROLES.values()
    return {
        "shop clients": len(settings.NODES) * sum(role.most for role in roles),
        "standby clients": len(settings.NODES) * sum(role.processes * role.pool for role in roles if role.reads),
        "shop servers": min(settings.TO_PRIMARY, capacity - RESERVED),
        "standby servers": min(settings.TO_STANDBY, capacity - RESERVED),
    }


def _connections(facts: Facts) -> Iterable[Promise]:
    over = [
        f"{what}: {facts.most[what]} of {most}" for what, most in bounds(facts.rows.capacity).items() if facts.most[what] > most
    ]
    yield Promise("never more connections than were reckoned with", "see above", _said((over, _some(over))))
    out = [f"{end['process']}: {end['out']}" for end in facts.ends if end["out"]]
    left = [f"{what}: {count}" for what, count in facts.left.items() if count]
    yield Promise(
        "no connection is out",
        f"{len(facts.ends)} processes said so at their end; PgBouncer and the primary agree",
        _said((out, f"out at the end: {_some(out)}"), (left, f"left when all had ended: {_some(left)}")),
    )


def _ends(facts: Facts) -> Iterable[Promise]:
    gone = [name for name, status in facts.statuses.items() if status is None]
    badly = [f"{name}: {status}" for name, status in facts.statuses.items() if status]
    silent = sum(role.processes for role in settings.ROLES.values()) * len(settings.NODES) - len(facts.ends)
    yield Promise(
        "all that were not killed ended at SIGTERM",
        f"{len(facts.statuses)} programs, with {len(facts.ends)} processes",
        _said(
            (gone, f"some had ended before: {_some(gone)}"),
            (badly, f"some with another status than 0: {_some(badly)}"),
            (silent, f"{silent} processes had no last word"),
        ),
    )


def _said(*troubles: tuple[Any, str]) -> str:
    return "; ".join(line for is_so, line in troubles if is_so)


def _some(things: list[Any]) -> str:
    return ", ".join(map(str, things[:3])) + (", …" if len(things) > 3 else "")


def _each(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
