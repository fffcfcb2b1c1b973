"""What the run found, as tables for people and as JSON for whoever compares runs."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import Timed

PACKAGES: Final = (
    "SQLAlchemy",
    "psycopg",
    "asyncpg",
    "Flask-SQLAlchemy",
    "Flask-SQLAlchemy-Lite",
    "advanced-alchemy",
    "oslo.db",
    "zope.sqlalchemy",
)
RESULTS: Final = Path(__file__).parent / "results"  # a file for each row: a part of them can be run again


@dataclass(frozen=True)
class Target:
    """What was to be reached, and what was.

    Attributes:
        row: Where it was measured.
        wanted: The most that it may be, or the least.
        found: What it was.
        unit: What both are counted in; a ratio if empty.
        least: Whether more is better.

    """

    row: str
    wanted: float
    found: float
    unit: str = ""
    least: bool = False

    @property
    def verdict(self) -> str:
        """``reached``, or by how much it was not."""
        over = (self.wanted - self.found) if self.least else (self.found - self.wanted)
        return "reached" if over <= 0 else f"not reached by {over:.2f}{self.unit and ' '}{self.unit}"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """A line of the table of targets."""
        unit = self.unit and f" {self.unit}"
        return self.row, f"{'≥' if self.least else '≤'} {self.wanted:.2f}{unit}", f"{self.found:.2f}{unit}", self.verdict


TARGETS: Final = ("measured", "target", "found", "verdict")


@dataclass(frozen=True)
class Shown:
    """A table as it was printed.

    Attributes:
        title: What was measured.
        columns: Their names, the first one's lines to the left.
        lines: The cells.

    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


class Report:
    """Prints each table as it comes, and the targets at the end."""

    def __init__(self, rounds: int) -> None:
        self.console = Console(highlight=False, width=140)
        self.rounds = rounds
        self.targets: list[Target] = []
        self.shown: list[Shown] = []
        self.rows: list[dict[str, Any]] = []
        self.versions = {"Python": platform.python_version(), **dict(_versions())}
        self.console.print(f"tenure's benchmarks, {datetime.now(UTC):%Y-%m-%d}, {rounds} rounds", style="bold")
        self.console.print(", ".join(f"{name} {found}" for name, found in self.versions.items()))

    def timed(self, title: str, found: dict[str, Timed]) -> None:
        """Variants beside their base, the first."""
        lines = []
        for one in found.values():
            low, high = one.quartiles
            lines.append((one.name, f"{one.median:.2f}", f"{low:.2f}-{high:.2f}", _time(one.scale)))
            self.rows.append(
                {"table": title, "variant": one.name, "ratio": one.median, "low": low, "high": high, "seconds": one.scale}
            )
        self._show(Shown(title, ("variant", "ratio", "quartiles", "scale"), tuple(lines)))

    def counted(self, title: str, columns: Iterable[str], lines: Iterable[tuple[str, ...]]) -> None:
        """A table of other numbers."""
        shown = Shown(title, tuple(columns), tuple(lines))
        self.rows += [{"table": title, **dict(zip(shown.columns, line, strict=True))} for line in shown.lines]
        self._show(shown)

    def target(self, row: str, wanted: float, found: float, unit: str = "", *, least: bool = False) -> None:
        """Note a target."""
        self.targets.append(Target(row, wanted, found, unit, least))

    def _show(self, shown: Shown) -> None:
        self.shown.append(shown)
        self._print(
            shown, lambda line: "bold" if line[0].startswith("tenure") else "dim" if line[0].startswith("floor") else None
        )

    def _print(self, shown: Shown, style: Callable[[tuple[str, ...]], str | None]) -> None:
        table = Table(title=shown.title, box=box.SIMPLE_HEAD, title_justify="left")
        for number, name in enumerate(shown.columns):
            table.add_column(name, justify="right" if number and name != "verdict" else "left", min_width=0 if number else 44)
        for line in shown.lines:
            table.add_row(*line, style=style(line))
        self.console.print(table)

    def keep(self, name: str) -> None:
        """Row *name* is whole: write down what it has found, and go on with the next."""
        found = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "rounds": self.rounds,
            "versions": self.versions,
            "rows": self.rows,
            "tables": [asdict(one) for one in self.shown],
            "targets": [{**asdict(one), "verdict": one.verdict} for one in self.targets],
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        self.rows, self.shown, self.targets = [], [], []

    def end(self, names: Iterable[str]) -> bool:
        """Print the targets of the rows *names*; whether all were reached."""
        lines = [target.cells for found in kept(names) for target in found.targets]
        self._print(Shown("Targets", TARGETS, tuple(lines)), lambda line: None if line[3] == "reached" else "yellow")
        return all(line[3] == "reached" for line in lines)


@dataclass(frozen=True)
class Kept:
    """What a run has written down of one row.

    Attributes:
        date: When it was run.
        rounds: Of how many rounds.
        versions: Of Python and of the libraries.
        tables: What was printed.
        targets: What was to be reached.

    """

    date: str
    rounds: int
    versions: dict[str, str]
    tables: list[Shown]
    targets: list[Target]


def kept(names: Iterable[str]) -> list[Kept]:
    """What was written down of each of the rows *names*, as far as they were run."""
    found = []
    for name in names:
        if not (path := RESULTS / f"{name}.json").exists():
            continue
        given = json.loads(path.read_text(encoding="utf-8"))
        tables = [Shown(one["title"], tuple(one["columns"]), tuple(map(tuple, one["lines"]))) for one in given["tables"]]
        targets = [Target(**{key: one[key] for key in ("row", "wanted", "found", "unit", "least")}) for one in given["targets"]]
        found.append(Kept(given["date"], given["rounds"], given["versions"], tables, targets))
    return found


def _versions() -> Iterable[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-5 else f"{seconds * 1e6:.0f} µs"
