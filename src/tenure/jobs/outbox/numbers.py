"""How an outbox stands: what waits, what was sent, what was given up, and for how long the oldest has waited."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Table, func, select
from sqlalchemy.orm import Session

from tenure.jobs.clock import Now
from tenure.jobs.outbox.table import DEAD, PENDING, SENT


class Numbers(NamedTuple):
    """The messages of an outbox.

    Attributes:
        pending: How many wait to be sent, those that failed and are tried again among them.
        sent: How many were sent, as far as they are kept.
        dead: How many were given up.
        lag: For how long the oldest that is pending has waited, in seconds; 0.0 if none is.

    """

    pending: int
    sent: int
    dead: int
    lag: float


def count(session: Session, table: Table) -> Numbers:
    """The numbers of the outbox in *table*."""
    of_state = select(table.c.state, func.count(), func.min(table.c.created), Now()).group_by(table.c.state)
    found = {state: (number, now - oldest) for state, number, oldest, now in session.execute(of_state)}
    pending, lag = found.get(PENDING, (0, 0.0))
    return Numbers(pending, found.get(SENT, (0, 0.0))[0], found.get(DEAD, (0, 0.0))[0], max(0.0, float(lag)))
