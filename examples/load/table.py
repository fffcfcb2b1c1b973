"""Shows what a run came to, in one table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from examples.load.account import Facts, broken, outcomes_of
from examples.load.clients import ACTS, LEFT, NONE

TIMES = "\N{MULTIPLICATION SIGN}"


def show(facts: Facts, console: Console, title: str) -> int:
    """Print the table and a line for each promise that was not kept; the exit status that this means."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for name, justify in (("", "left"), ("", "right"), ("answers", "left"), ("what became of it", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for rows in (_requests(facts), _jobs(facts)):
        for row in rows:
            table.add_row(*row)
        table.add_section()
    for row in _promises(facts):
        table.add_row(*row)
    console.print(table)

    wrong = broken(facts)
    for line in wrong:
        console.print(f"✗ {line}", style="bold red", markup=False, highlight=False)
    if not wrong:
        console.print("✓ nothing was lost, mixed up or left out", style="bold green")
    return 1 if wrong else 0


def _requests(facts: Facts) -> Iterable[tuple[str, ...]]:
    for act in ACTS:
        answers = facts.book.answers.get(act.name, Counter())
        yield act.name, _n(sum(answers.values())), _each(answers), _each(outcomes_of(facts, act))


def _jobs(facts: Facts) -> Iterable[tuple[str, ...]]:
    report = facts.report or {"outcomes": {}, "returned": {}, "raised": {}}
    acts = {act.name for act in ACTS}
    for name, outcomes in sorted(report["outcomes"].items()):
        if name in acts:
            continue
        returned, raised = len(report["returned"].get(name, ())), report["raised"].get(name, 0)
        runs = {"returned": returned, "raised": raised}
        rows = sum(1 for job in facts.new_job_runs.values() if job == name)
        shown = f"{_each(runs)}, rows {_n(rows)}" if returned or raised else ""
        kind = "job" if shown else "unit"
        yield f"{kind} {name}", _n(sum(outcomes.values())), shown, _each(outcomes)


def _promises(facts: Facts) -> Iterable[tuple[str, ...]]:
    book, rows = facts.book, facts.rows
    for kind in ("order", "transfer"):
        stored = f"stored {_n(facts.stored(kind))}"
        yield f"{kind}s acknowledged", _n(facts.acknowledged(kind)), stored, _untold(facts, kind)
    yield "refused or failed", _n(len(book.refused)), f"stored {_n(len(book.refused & rows.tokens.keys()))}", ""
    crooked = f"{len(rows.crooked)} accounts contradict their payments"
    yield "sum of all balances before", _n(facts.ground.total), f"after {_n(rows.total)}", crooked
    if facts.report is not None:
        status = facts.report["status"]
        waits, longest = status["waited"], status["longest_wait"]
        of = f"of {status['capacity'] or 'any number'}"
        yield "most connections out", str(status["peak"]), of, f"out now {status['in_use']}"
        yield "waits for a connection", _n(waits), f"longest {_ms(longest)}" if waits else "", ""
    if len(book.times) > 1:
        cuts = statistics.quantiles(book.times, n=100)
        yield "median time of an answer", _ms(cuts[49]), f"99th percentile {_ms(cuts[98])}", f"longest {_ms(max(book.times))}"


def _untold(facts: Facts, kind: str) -> str:
    """Rows of clients that did not wait for the answer: there or not, both is right."""
    count = sum(1 for token, stored in facts.rows.tokens.items() if stored == kind and token in facts.book.untold)
    return f"of them {_n(count)} for clients that left" if count else ""


def _each(counts: dict[str, int] | Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda one: (one[0] in (LEFT, NONE), one[0]))
    shown = [(name, count) for name, count in ordered if count]
    return ", ".join(name if len(shown) == 1 else f"{name} {TIMES} {_n(count)}" for name, count in shown)


def _n(count: int) -> str:
    return f"{count:,}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
