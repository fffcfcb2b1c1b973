"""The results as they stand in docs/explanation/benchmarks.md, between two markers: ``python -m benchmarks --page``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks.report import TARGETS, Kept, kept

PAGE: Final = Path(__file__).parents[1] / "docs" / "explanation" / "benchmarks.md"
BEGIN: Final = "<!-- results: python -m benchmarks --page -->"
END: Final = "<!-- end of results -->"
_TARGETS: Final = "Targets and what was reached"


def write(names: Iterable[str]) -> None:
    """Put the results of the rows *names*, as far as they were run, into the page. What was not run stays as it is there."""
    found = kept(names)
    if not found:
        raise SystemExit("There are no results yet: run `make bench` first.")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    there, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE.name} has lost its markers: {BEGIN!r} and {END!r}.")
    PAGE.write_text(f"{before}{BEGIN}\n\n{_text(found, there)}\n{END}{after}", encoding="utf-8")


def _text(found: list[Kept], there: str) -> str:
    newest = max(found, key=lambda one: one.date)
    versions = ", ".join(f"{name} {version}" for name, version in newest.versions.items())
    tables = dict(part.strip().split("\n\n", 1) for part in there.split("\n### ")[1:])
    lines = {cells[0]: cells for cells in _cells(tables.pop(_TARGETS, ""))}
    for one in found:
        lines |= {target.cells[0]: target.cells for target in one.targets}
        tables |= {table.title: _table(table.columns, table.lines) for table in one.tables}
    parts = [
        f"{newest.date}, {newest.rounds} rounds. {versions}.\n",
        f"### {_TARGETS}\n",
        _table(TARGETS, tuple(lines.values())),
    ]
    return "\n".join([*parts, *(f"### {title}\n\n{table.strip()}\n" for title, table in tables.items())])


def _cells(table: str) -> list[tuple[str, ...]]:
    """The lines of a table of the page, but for its head."""
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.strip().splitlines()[2:]]


def _table(columns: tuple[str, ...], lines: tuple[tuple[str, ...], ...]) -> str:
    rule = ["---", *("---" if name == "verdict" else "---:" for name in columns[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, tuple(rule), *lines))
