"""Shows what a run came to: the nights, the connections, and the account."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Table

from examples.cluster import settings
from examples.cluster.account import RESERVED, Facts, bounds, promises

IN_A_ROW = 10  # nights
KILLED = "\N{BALLOT X}"
TIMES = "\N{MULTIPLICATION SIGN}"


def show(facts: Facts, console: Console) -> int:
    """Print it; the exit status that it means."""
    console.print(_nights(facts))
    console.print(_connections(facts))
    console.print(_account(facts))
    wrong = [one for one in promises(facts) if one.wrong]
    for one in wrong:
        console.print(f"✗ {one.what}: {one.wrong}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if not wrong:
        console.print("✓ nothing was lost, done twice or left out", style="bold green")
    return 1 if wrong else 0


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _nights(facts: Facts) -> Table:
    """Who ran each tick; before it, with a cross, who was killed while it did."""
    by_tick: defaultdict[float, list[str]] = defaultdict(list)
    stored = set(facts.rows.nights)
    for run in sorted({*facts.begun, *stored}, key=lambda one: (one.tick, one in stored)):
        by_tick[run.tick].append(run.node if run in stored else f"{run.node}{KILLED}")
    cells = [" ".join(by_tick[tick]) for tick in sorted(by_tick)]
    table = _table(
        f"Which node ran the nightly job ({KILLED}: killed in the middle)", "tick", *map(str, range(IN_A_ROW)), right=("tick",)
    )
    for number in range(0, len(cells), IN_A_ROW):
        table.add_row(str(number), *cells[number : number + IN_A_ROW])
    return table


def _connections(facts: Facts) -> Table:
    table = _table("Connections", "", "processes", "each", "at most", "most seen", right=("at most", "most seen"))
    most, nodes = bounds(facts.rows.capacity), len(settings.NODES)
    for name, role in settings.ROLES.items():
        each = f"pool of {role.pool}" + (f" + {role.beside}" if role.beside else "")
        peak = max((end["peak"] for end in facts.ends if end["role"] == name), default=0)
        table.add_row(name, f"{nodes} {TIMES} {role.processes}", each, str(nodes * role.most), f"{peak} in one process")
    table.add_section()
    lines = {
        "shop clients": ("to PgBouncer, for the primary", ""),
        "standby clients": ("to PgBouncer, for the standby", "web's again"),
        "shop servers": (
            "from PgBouncer to the primary",
            f"pool_size of PgBouncer; of {facts.rows.capacity}, {RESERVED} reserved",
        ),
        "standby servers": ("from PgBouncer to the standby", "pool_size of PgBouncer"),
    }
    for key, (name, how) in lines.items():
        table.add_row(name, "", how, str(most[key]), str(facts.most[key]))
    return table


def _account(facts: Facts) -> Table:
    killed = ", ".join(f"{name} {TIMES} {count}" for name, count in sorted(facts.killed.items())) or "nothing"
    table = _table(f"{facts.took:.0f} s; killed: {killed}", "", "what must be true", "what was found")
    for one in promises(facts):
        table.add_row("[red]✗" if one.wrong else "[green]✓", one.what, one.numbers)
    return table
