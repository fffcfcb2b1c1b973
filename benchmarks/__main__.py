"""`python -m benchmarks [--rounds N] [--quick] [--page] [ROW ...]`."""

from __future__ import annotations

import argparse
import os
import warnings

from benchmarks import page, servers
from benchmarks.bench import Bench
from benchmarks.report import RESULTS, Report
from benchmarks.rows import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Side by side with other libraries.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 0), help="default 15, with --quick 5")
    parser.add_argument("--quick", action="store_true", default=os.environ.get("QUICK", "") not in ("", "0"))
    parser.add_argument(
        "--page", action="store_true", help="write the results of the last runs into docs/explanation/benchmarks.md"
    )
    asked = parser.parse_args()
    if unknown := [name for name in asked.rows if name not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    if asked.page:
        page.write(ROWS)
        return
    rounds = asked.rounds or (5 if asked.quick else 15)
    warnings.simplefilter("ignore")  # the peers' own deprecations
    report = Report(rounds)
    with servers.postgresql() as url:
        bench = Bench(report, rounds, 1_000 if asked.quick else 10_000, url, 1.0 if asked.quick else 2.0)
        for name in asked.rows or ROWS:
            ROWS[name](bench)
            report.keep(name)
    report.end(asked.rows or ROWS)
    report.console.print(f"The same as JSON: {os.path.relpath(RESULTS)}/*.json")


if __name__ == "__main__":
    main()
