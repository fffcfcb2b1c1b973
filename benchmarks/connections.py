"""What a connection costs: taken and given back, and kept between the reads of one unit."""

from __future__ import annotations

from contextlib import ExitStack

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from benchmarks import models
from benchmarks.bench import Bench
from benchmarks.models import KEY, User
from benchmarks.rounds import measure
from tenure import Database


def taking(bench: Bench) -> None:
    """A connection taken and given back, nobody else there."""
    url = bench.on("psycopg")
    engine, db = create_engine(url), Database(url)

    def plain() -> None:
        with engine.connect():
            pass

    def strange() -> None:
        with db.engine.connect():
            pass

    with db.unit() as session:
        session.connection()
        supply, holder = db.supply, db.current.door
        assert holder is not None

        def lease() -> None:
            supply.give_back(supply.read(holder))

        session.rollback()
        names = (
            "the pool alone: engine.connect()",
            "tenure: by a unit, with admission and ledger",
            "tenure: by db.engine.connect()",
        )
        found = measure(dict(zip(names, (plain, lease, strange), strict=True)), bench.rounds)
    bench.report.timed("A connection taken and given back (psycopg)", found)
    bench.report.target("a connection taken and given back", 1.8, found[names[1]].median)
    engine.dispose()
    db.close()


def later(bench: Bench) -> None:
    """Reads after the first one in a unit."""
    url = bench.on("psycopg")
    engine = create_engine(url)
    models.create(engine)
    auto, classic = Database(url), Database(url, hold="transaction")
    statement = select(User).where(User.id == KEY)
    with ExitStack() as units:
        sessions = {
            'tenure, hold="transaction"': units.enter_context(classic.unit()),
            "tenure": units.enter_context(auto.unit()),
            "Session(engine), transaction held": units.enter_context(Session(engine)),
        }
        work = {name: lambda session=session: session.execute(statement).all() for name, session in sessions.items()}
        found = measure(work, bench.rounds)
    bench.report.timed("A later read in one unit, PostgreSQL (psycopg)", found)
    bench.report.target('a later read / the same with hold="transaction"', 1.15, found["tenure"].median)
    engine.dispose()
    auto.close()
    classic.close()
