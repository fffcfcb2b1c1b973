"""What the run found, as tables for people and as JSON for whoever compares runs."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
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
RESULTS: Final = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Target:
    """What was to be reached, and what was.

    Attributes:
        row: Where it was measured.
        wanted: The most that it may be.
        found: What it was.
        unit: What both are counted in; a ratio if empty.

    """

    row: str
    wanted: float
    found: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """``reached``, or by how much it was not."""
        over = self.found - self.wanted
        return "reached" if over <= 0 else f"not reached by {over:.2f}{self.unit and ' '}{self.unit}"


class Report:
    """Prints each row as it comes, and the targets at the end."""

    def __init__(self, rounds: int) -> None:
        self.console = Console(highlight=False, width=120)
        self.rounds = rounds
        self.targets: list[Target] = []
        self.rows: list[dict[str, Any]] = []
        self.versions = {"Python": platform.python_version(), **dict(_versions())}
        self.console.print(f"tenure's benchmarks, {datetime.now(UTC):%Y-%m-%d}, {rounds} rounds", style="bold")
        self.console.print(", ".join(f"{name} {found}" for name, found in self.versions.items()))

    def timed(self, title: str, found: dict[str, Timed], note: str = "") -> None:
        """A row of variants beside their base, the first."""
        table = Table(title=title, caption=note or None, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
        table.add_column("variant", min_width=44)
        table.add_column("ratio", justify="right")
        table.add_column("quartiles", justify="right")
        table.add_column("scale", justify="right")
        for one in found.values():
            low, high = one.quartiles
            style = "bold" if one.name.startswith("tenure") else "dim" if one.name.startswith("floor") else None
            table.add_row(one.name, f"{one.median:.2f}", f"{low:.2f}-{high:.2f}", _time(one.scale), style=style)
            self.rows.append(
                {"row": title, "variant": one.name, "ratio": one.median, "low": low, "high": high, "seconds": one.scale}
            )
        self.console.print(table)

    def counted(self, title: str, columns: Iterable[str], lines: Iterable[tuple[str, ...]], note: str = "") -> None:
        """A table of other numbers."""
        table = Table(title=title, caption=note or None, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
        names = list(columns)
        for number, name in enumerate(names):
            table.add_column(name, justify="right" if number else "left")
        for line in lines:
            table.add_row(*line, style="bold" if line[0].startswith("tenure") else None)
            self.rows.append({"row": title, **dict(zip(names, line, strict=True))})
        self.console.print(table)

    def target(self, row: str, wanted: float, found: float, unit: str = "") -> None:
        """Note a target."""
        self.targets.append(Target(row, wanted, found, unit))

    def end(self) -> bool:
        """Print the targets and write the results; whether all targets were reached."""
        table = Table(title="Targets", box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("measured", "at most", "found", "verdict"):
            table.add_column(name, justify="left" if name in ("measured", "verdict") else "right")
        for one in self.targets:
            style = None if one.verdict == "reached" else "yellow"
            unit = one.unit and f" {one.unit}"
            table.add_row(one.row, f"{one.wanted:.2f}{unit}", f"{one.found:.2f}{unit}", one.verdict, style=style)
        self.console.print(table)
        RESULTS.write_text(
            json.dumps(
                {
                    "date": f"{datetime.now(UTC):%Y-%m-%d}",
                    "rounds": self.rounds,
                    "versions": self.versions,
                    "rows": self.rows,
                    "targets": [{**asdict(one), "verdict": one.verdict} for one in self.targets],
                },
                indent=1,
            ),
            encoding="utf-8",
        )
        return all(one.verdict == "reached" for one in self.targets)


def _versions() -> Iterable[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-5 else f"{seconds * 1e6:.0f} µs"
