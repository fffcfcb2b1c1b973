"""Holds against each other what the clients know, what the server says, and what is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import URL, Connection, create_engine, inspect, text
from sqlalchemy.pool import NullPool

from examples.load.clients import ACTS, LEFT, NONE, Act, Book, Ground


@dataclass
class Rows:
    """What is stored."""

    accounts: int = 0
    opening: int = 0
    total: int = 0
    crooked: list[int] = field(default_factory=list)  # accounts that do not hold what their payments come to
    half_orders: int = 0  # payments for an order that is not there
    unshipped: int = 0
    tokens: dict[str, str] = field(default_factory=dict)  # of this run's requests
    doubled: list[str] = field(default_factory=list)
    job_runs: dict[str, str] = field(default_factory=dict)  # token: job


def read(url: URL, run: str = "") -> Rows:
    """Read what *run* has stored, and how all accounts stand: by a connection of its own, of no pool and no unit."""
    engine = create_engine(url, poolclass=NullPool)
    if engine.dialect.name != "sqlite":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")  # all of it as of one moment
    with engine.begin() as connection:
        if not inspect(connection).has_table("shop_job_run"):
            return Rows()
        return _read(connection, run)


def _read(connection: Connection, run: str) -> Rows:
    def all_of(sql: str, **values: Any) -> list[Any]:
        return list(connection.execute(text(sql), values))

    def one(sql: str) -> int:
        return int(connection.execute(text(sql)).scalar_one() or 0)

    found = [(row.token, kind) for kind, sql in _TOKENS.items() for row in all_of(sql, run=f"{run}-%")]
    counted = Counter(token for token, _ in found)
    return Rows(
        accounts=one("SELECT count(*) FROM shop_account"),
        opening=one("SELECT sum(opening) FROM shop_account"),
        total=one("SELECT sum(balance) FROM shop_account"),
        crooked=[row.id for row in all_of(_CROOKED)],
        half_orders=one(_HALF_ORDERS),
        unshipped=one("SELECT count(*) FROM shop_order WHERE NOT shipped"),
        tokens=dict(found),
        doubled=[token for token, count in counted.items() if count > 1],
        job_runs={row.token: row.job for row in all_of("SELECT token, job FROM shop_job_run")},
    )


_TOKENS = {
    "order": "SELECT token FROM shop_order WHERE token LIKE :run",
    "transfer": "SELECT token FROM shop_payment WHERE token LIKE :run",
}
_CROOKED = """
    SELECT a.id FROM shop_account a WHERE a.balance <> a.opening
    + (SELECT coalesce(sum(p.amount), 0) FROM shop_payment p WHERE p.target_id = a.id)
    - (SELECT coalesce(sum(p.amount), 0) FROM shop_payment p WHERE p.source_id = a.id)
"""
_HALF_ORDERS = """
    SELECT count(*) FROM shop_payment p LEFT JOIN shop_order o ON o.payment_id = p.id WHERE p.purpose = 'order' AND o.id IS NULL
"""


@dataclass
class Facts:
    """All that is known when a run has ended.

    Attributes:
        book: What the clients know.
        ground: What was known before.
        earlier: What was stored before.
        rows: What is stored now.
        report: What the server said last; None if it was killed.
        status: The server's exit status.
        whole: It ran for as long as it should, so every act must have occurred.
        interrupted: It was asked to end earlier.
        gone: The server had ended before the driver asked it to.
        killed: The server was killed on purpose: clients may have been left without an answer, and it says nothing.
        took: How many seconds the clients asked.

    """

    book: Book
    ground: Ground
    earlier: Rows
    rows: Rows
    report: dict[str, Any] | None
    status: int = 0
    whole: bool = True
    interrupted: bool = False
    gone: bool = False
    killed: bool = False
    took: float = 0.0

    @property
    def pace(self) -> float:
        """Requests a second."""
        return self.book.requests / self.took if self.took else 0.0

    @property
    def new_job_runs(self) -> dict[str, str]:
        """The rows that jobs have written in this run."""
        return {token: job for token, job in self.rows.job_runs.items() if token not in self.earlier.job_runs}

    def stored(self, kind: str) -> int:
        """How many of this run's rows there are of a kind."""
        return sum(1 for one in self.rows.tokens.values() if one == kind)

    def acknowledged(self, kind: str) -> int:
        """How many the clients were told of."""
        return sum(1 for one in self.book.acknowledged.values() if one == kind)


def broken(facts: Facts) -> list[str]:
    """The promises that were not kept, a line for each; none if nothing was lost, mixed up or left out."""
    found = [*_rows(facts), *_answers(facts)]
    if not facts.killed:
        found += [*_server(facts), *_outcomes(facts), *_jobs(facts)]
    return found


def _rows(facts: Facts) -> list[str]:
    book, rows = facts.book, facts.rows
    lost = [token for token, kind in book.acknowledged.items() if rows.tokens.get(token) != kind]
    kept = sorted(book.refused & rows.tokens.keys())
    unknown = sorted(rows.tokens.keys() - book.acknowledged.keys() - book.refused - book.untold)
    return _said(
        (lost, f"lost: {len(lost)} acknowledged but not stored: {_some(lost)}"),
        (kept, f"half done: {len(kept)} refused but stored: {_some(kept)}"),
        (unknown, f"mixed up: {len(unknown)} stored that nobody asked for: {_some(unknown)}"),
        (rows.doubled, f"mixed up: {len(rows.doubled)} stored more than once: {_some(rows.doubled)}"),
        (rows.total != facts.ground.total, f"the sum of all balances was {facts.ground.total:,} and is {rows.total:,}"),
        (rows.crooked, f"half done: {len(rows.crooked)} accounts do not hold what their payments come to: {_some(rows.crooked)}"),
        (rows.half_orders, f"half done: {rows.half_orders} paid orders are not there"),
        (rows.unshipped and not facts.killed, f"left out: {rows.unshipped} orders were not shipped"),
    )


def _answers(facts: Facts) -> list[str]:
    book = facts.book
    none = sum(answers[NONE] for answers in book.answers.values())
    never = book.missing()
    return _said(
        (book.mixed_up, f"mixed up: {len(book.mixed_up)} answers, such as {_some(book.mixed_up)}"),
        (book.odd, f"{len(book.odd)} answers are not what was to be expected: {_some(sorted(set(book.odd)))}"),
        (none and not facts.killed and not (facts.interrupted and facts.gone), f"left out: {none} requests were not answered"),
        (never and facts.whole, f"left out: nobody {_some(never)}"),
    )


def _server(facts: Facts) -> list[str]:
    report = facts.report
    if report is None:
        return [f"the server ended with status {facts.status} and without a last word"]
    out = report["status"]["in_use"]
    troubles = ", ".join(f"{name} {count} times" for name, count in sorted(report["troubles"].items()))
    doubt = sum(outcomes.get("unknown", 0) for outcomes in report["outcomes"].values())
    return _said(
        (facts.gone and not facts.interrupted, "the server ended by itself"),
        (facts.status, f"the server ended with status {facts.status}"),
        (out, f"{out} connections are still out: {_some([one['unit'] for one in report['holders']])}"),
        (troubles, f"tenure told of {troubles}"),
        (doubt, f"{doubt} units have an outcome that nobody knows"),
    )


def _outcomes(facts: Facts) -> list[str]:
    """Every answered request was one unit, which ended as its answer says. Those of clients that left may have ended anyhow."""
    found: list[str] = []
    for act in ACTS:
        answers = facts.book.answers.get(act.name, Counter())
        outcomes = outcomes_of(facts, act)
        due = Counter[str]()
        for answer, count in answers.items():
            if answer not in (LEFT, NONE):
                due[_due(act, int(answer))] += count
        more = sum((outcomes - due).values())
        less = sum((due - outcomes).values())
        if less or more > answers[LEFT] + answers[NONE]:
            found.append(f"left out or mixed up: {act.name}: answers {dict(answers)}, but the units were {dict(outcomes)}")
    return found


def outcomes_of(facts: Facts, act: Act) -> Counter[str]:
    """What became of the units of an act."""
    return Counter((facts.report or {"outcomes": {}})["outcomes"].get(act.name, {}))


def _due(act: Act, answer: int) -> str:
    if answer >= 400:
        return "rolled back"
    return "committed" if act.writes else "read only"


def _jobs(facts: Facts) -> list[str]:
    if facts.report is None:
        return []
    rows = facts.new_job_runs
    returned = {token: job for job, tokens in facts.report["returned"].items() for token in tokens}
    lost = [token for token in returned if rows.get(token) != returned[token]]
    kept = [token for token in rows if token not in returned]
    return _said(
        (lost, f"lost: {len(lost)} runs of jobs returned, but their rows are not stored"),
        (kept, f"half done: {len(kept)} runs of jobs did not return, but their rows are stored"),
        (not returned and facts.whole, "left out: no job has run"),
    )


def _said(*promises: tuple[Any, str]) -> list[str]:
    return [line for is_broken, line in promises if is_broken]


def _some(things: list[Any]) -> str:
    return ", ".join(map(str, things[:3])) + (", …" if len(things) > 3 else "")
