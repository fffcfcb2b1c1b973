"""Shows what runs on several hosts came to, in one table: a line for each host."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.hosts import HOSTS
from examples.load.account import Facts, broken, outcomes_of
from examples.load.clients import ACTS

OUTCOMES = ("committed", "read only", "rolled back")
COLUMNS = (
    "", "host", "server", "requests", "a second", *OUTCOMES, "acknow- ledged", "and stored", "refused", "and stored",
    "sum of balances", "most out", "out now", "median ms", "p99 ms",
)  # fmt: skip
WIDTH = 130  # of the widest table; a narrower terminal breaks its lines, and loses no figure


def compare(found: Mapping[str, Facts | str], console: Console, title: str) -> int:
    """Print the table and a line for each promise that was not kept; the exit status that this means.

    Args:
        found: For each host what its run came to, or why there was none.
        console: Where to print it.
        title: Above it.

    """
    console.width = max(console.width, WIDTH)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 1, 0, 0))
    for number, name in enumerate(COLUMNS):
        table.add_column("\n".join(name.split(" ", 1)), justify="left" if number < 3 else "right", no_wrap=True)
    wrong: list[str] = []
    for host, facts in found.items():
        here = HOSTS[host]
        why = [facts] if isinstance(facts, str) else broken(facts)
        figures = () if isinstance(facts, str) else _figures(facts)
        table.add_row(Text("✗", "bold red") if why else Text("✓", "bold green"), here.title, here.server, *figures)
        wrong += [f"{here.title}: {line}" for line in why]
    console.print(table)
    for line in wrong:
        console.print(f"✗ {line}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if not wrong:
        console.print(f"✓ nothing was lost, mixed up or left out on {_hosts(len(found))}", style="bold green", highlight=False)
    return 1 if wrong else 0


def _figures(facts: Facts) -> Iterable[str]:
    book, stored = facts.book, facts.rows.tokens
    outcomes = sum((outcomes_of(facts, act) for act in ACTS), Counter[str]())
    yield f"{book.requests:,}"
    yield f"{facts.pace:,.0f}"
    yield from (f"{outcomes[name]:,}" for name in OUTCOMES)
    for tokens in (book.acknowledged.keys(), book.refused):
        yield f"{len(tokens):,}"
        yield f"{len(tokens & stored.keys()):,}"
    yield f"{facts.rows.total:,}"
    status = (facts.report or {}).get("status", {})
    yield f"{status.get('peak', '?')}"
    yield str(status.get("in_use", "?"))
    cuts = statistics.quantiles(book.times, n=100) if len(book.times) > 1 else ()
    yield from (f"{cuts[at] * 1000:,.1f}" for at in (49, 98) if cuts)


def _hosts(count: int) -> str:
    return "one host" if count == 1 else f"any of {count} hosts"
