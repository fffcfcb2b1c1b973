"""Which tick a firing belongs to, and what is remembered of the last run: the rule of ``once``, with no lock and no clock of its own.

A tick is nominal: it was due at a time of the database's clock, and the next is due one interval later. Machines fire by their own
clocks, so a firing that comes up to a quarter of the interval early or late is for that tick, and moves nothing. One that comes later
still begins a new row of ticks. So two runs are never closer than half the interval, and in the long run not closer than one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import BLANK_SCHEMA, Column, Connection, Double, MetaData, String, Table, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from tenure.exceptions import annotate
from tenure.jobs.clock import Now


class Run(NamedTuple):
    """The last run of a job.

    Attributes:
        tick: When it was due.
        started: When it began.
        finished: When it ended; None while it goes on, and for one whose process has died.
        holder: Which process and thread it is or was in.

    """

    tick: float
    started: float
    finished: float | None
    holder: str


def tick_of(last: Run | None, now: float, every: float) -> float | None:
    """The tick that a firing at *now* is for, or None if that has been run.

    A run that has died does not count. Nor does one which lies in the future: the database's clock was set back.
    """
    if last is None or now - last.started <= -every / 2:
        return now
    due, play = last.tick + every, every / 4
    if now < due - play:
        return last.tick if last.finished is None else None
    return due if now <= due + play else now


def overdue(last: Run, now: float, every: float) -> bool:
    """Whether a run that still goes on keeps the next tick from being run."""
    return last.finished is None and now >= last.tick + every - every / 4


def table(metadata: MetaData) -> Table:
    """Put the table of the last runs into *metadata*, for migrations; without that it is created where it is missing."""
    return Table(
        "tenure_once",
        metadata,
        Column("id", String(40), primary_key=True),
        Column("name", String(190), nullable=False),
        Column("tick", Double, nullable=False),
        Column("started", Double, nullable=False),
        Column("finished", Double),
        Column("holder", String(250), nullable=False),
        schema=BLANK_SCHEMA,
    )


_RUNS: Final = table(MetaData())
_OF_RUN: Final = (_RUNS.c.tick, _RUNS.c.started, _RUNS.c.finished, _RUNS.c.holder)


def last_run(connection: Connection, key: str) -> tuple[Run | None, float]:
    """What is remembered of the job *key*, and the time."""
    now: float = connection.execute(select(Now())).scalar_one()
    row = connection.execute(select(*_OF_RUN).where(_RUNS.c.id == key)).one_or_none()
    return (None if row is None else Run(*row)), now


def begins(connection: Connection, key: str, name: str, run: Run) -> None:
    """Remember that *run* begins."""
    values = {"name": name, **run._asdict()}
    if not connection.execute(update(_RUNS).where(_RUNS.c.id == key).values(values)).rowcount:
        connection.execute(insert(_RUNS).values(id=key, **values))


def ends(connection: Connection, key: str, run: Run) -> None:
    """Remember that *run* is over, if no other has begun since."""
    same = _RUNS.c.started.between(run.started - 0.001, run.started + 0.001)  # a float, which went there and back as text
    connection.execute(update(_RUNS).where(_RUNS.c.id == key, same).values(finished=Now()))


def create(connection: Connection) -> None:
    """Create the table, unless it is there; others may do the same at the same time."""
    try:
        if connection.dialect.name == "postgresql":  # where two that create it at once get in each other's way
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7463529874103)")
        connection.execute(CreateTable(_RUNS, if_not_exists=True))
    except DBAPIError as error:
        annotate(
            error,
            "tenure: once() remembers the last runs in the table 'tenure_once', and could not create it. Create it by a migration:"
            " tenure.jobs.once.table(metadata) puts it into your metadata.",
        )
        raise
