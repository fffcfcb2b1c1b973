"""``make upstream``: SQLAlchemy's own ORM tests on tenure's sessions, with SQLite, psycopg and asyncpg; and Flask-SQLAlchemy's own
tests with every application adopted, of which those count that pass without.

A test that fails must be listed in exceptions.toml with its reason, and one that is listed must fail: else this run fails.
``UPSTREAM`` restricts it, as ``UPSTREAM=sqlite`` or ``UPSTREAM=psycopg,asyncpg``.
"""

import importlib.util
import os
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from upstream import fsa_suite, orm_suite  # noqa: E402
from upstream.orm_suite import Result  # noqa: E402

from support import servers  # noqa: E402

TEMPLATE = "upstream_template"
"""The database that those of the workers are copies of. Nobody may be connected to it."""
FLASK = "flask-sqlalchemy"
PARTS = {"sqlite": "sqlite", "psycopg": "postgresql+psycopg", "asyncpg": "postgresql+asyncpg", FLASK: "sqlite"}
MOST_LEFT = 200
"""More sessions than this left to SQLAlchemy, and the run says too little about tenure."""


@dataclass(frozen=True)
class Verdict:
    """How a result compares with the exceptions.

    Attributes:
        unlisted: Tests that fail and are not listed.
        mended: Tests that are listed and pass.
        missing: Tests that are listed and did not run, as on another version of SQLAlchemy.

    """

    unlisted: list[str]
    mended: list[str]
    missing: list[str]


def exceptions(part: str, path: Path = HERE / "exceptions.toml") -> dict[str, str]:
    """The tests that may fail in *part*, each with its reason."""
    found: dict[str, str] = {}
    for group in tomllib.loads(path.read_text())["exception"]:
        if unknown := set(group["on"]) - PARTS.keys():
            raise SystemExit(f"{path.name}: {sorted(unknown)} is none of {', '.join(PARTS)}")
        if part in group["on"]:
            found.update(dict.fromkeys(group["tests"], group["why"]))
    return found


def compare(result: Result, listed: dict[str, str]) -> Verdict:
    """What of *result* is not as *listed*."""
    return Verdict(
        sorted(result.failed.keys() - listed.keys()),
        sorted(listed.keys() & result.passed),
        sorted(listed.keys() - result.passed - result.failed.keys()),
    )


def report(part: str, result: Result, verdict: Verdict, seconds: float) -> bool:
    """Print what came of *part*; whether it is as it must be."""
    for test in verdict.unlisted:
        print(f"\n!! {part}: {test} fails:\n{result.failed[test]}")
    for test in verdict.mended:
        print(f"\n!! {part}: {test} passes now: take it out of exceptions.toml")
    for test in verdict.missing:
        print(f"\n-- {part}: {test} is listed in exceptions.toml and was not run")
    if too_many := result.left > MOST_LEFT:
        print(f"\n!! {part}: more than {MOST_LEFT} sessions were left to SQLAlchemy")
    if none := not result.swapped:
        print(f"\n!! {part}: no session was tenure's")
    print(
        f"== {part}: {len(result.passed)} passed, {len(result.failed)} failed ({len(result.failed) - len(verdict.unlisted)} listed),"
        f" {result.skipped} skipped; sessions swapped: {result.swapped}, left to SQLAlchemy: {result.left}; {seconds:.0f} s",
        flush=True,
    )
    return not (verdict.unlisted or verdict.mended or too_many or none)


@contextmanager
def database(part: str) -> Iterator[str]:
    """The URL of an empty database for *part*, as SQLAlchemy's tests want it."""
    if part == "sqlite":
        yield f"sqlite:///upstream{os.getpid()}.db"  # a file: in memory all sessions of a thread would be one connection
        return
    base = servers.server("postgresql").base
    name = f"upstream_{part}"
    _say(base, f"CREATE DATABASE {TEMPLATE}")
    _say(base.set(database=TEMPLATE), "CREATE SCHEMA test_schema", "CREATE SCHEMA test_schema_2")
    _say(base, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield base.set(drivername=PARTS[part], database=name).render_as_string(hide_password=False)
    _say(base, f"DROP DATABASE {name} WITH (FORCE)", f"DROP DATABASE {TEMPLATE}")


def _say(url: sa.URL, *statements: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def main() -> int:
    """Run the parts and give the exit status."""
    chosen = [part for part in os.environ.get("UPSTREAM", "").split(",") if part] or list(PARTS)
    if unknown := set(chosen) - PARTS.keys():
        raise SystemExit(f"UPSTREAM: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    workers = 2 if importlib.util.find_spec("xdist") else 0
    good = True
    try:
        for part in chosen:
            began = time.monotonic()
            if part == FLASK:
                listed = exceptions(part)
                result = fsa_suite.run(listed, *sys.argv[1:])
                good &= report(part, result, compare(result, listed), time.monotonic() - began)
                continue
            print(f"== {part}: the ORM tests of SQLAlchemy {sa.__version__}", flush=True)
            with database(part) as url:
                result = orm_suite.run(url, *sys.argv[1:], f"--postgresql-templatedb={TEMPLATE}", workers=workers)
            good &= report(part, result, compare(result, exceptions(part)), time.monotonic() - began)
    finally:
        servers.stop_all()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
