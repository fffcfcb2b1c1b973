"""The results as they stand in docs/explanation/benchmarks.md, between two markers: ``python -m benchmarks --page``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks.report import TARGETS, Kept, kept

PAGE: Final = Path(__file__).parents[1] / "docs" / "explanation" / "benchmarks.md"
BEGIN: Final = "<!-- results: python -m benchmarks --page -->"
END: Final = "<!-- end of results -->"


def write(names: Iterable[str]) -> None:
    """Put the results of the rows *names*, as far as they were run, into the page."""
    found = kept(names)
    if not found:
        raise SystemExit("There are no results yet: run `make bench` first.")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE.name} has lost its markers: {BEGIN!r} and {END!r}.")
    PAGE.write_text(f"{before}{BEGIN}\n\n{_text(found)}\n{END}{after}", encoding="utf-8")


def _text(found: list[Kept]) -> str:
    newest = max(found, key=lambda one: one.date)
    versions = ", ".join(f"{name} {version}" for name, version in newest.versions.items())
    lines = tuple(target.cells for one in found for target in one.targets)
    parts = [
        f"{newest.date}, {newest.rounds} rounds. {versions}.\n",
        "### Targets and what was reached\n",
        _table(TARGETS, lines),
    ]
    for one in found:
        parts += [f"### {table.title}\n\n{_table(table.columns, table.lines)}" for table in one.tables]
    return "\n".join(parts)


def _table(columns: tuple[str, ...], lines: tuple[tuple[str, ...], ...]) -> str:
    rule = ["---", *("---" if name == "verdict" else "---:" for name in columns[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, tuple(rule), *lines))
