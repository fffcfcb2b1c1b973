"""What ``db.status()`` gives: the numbers of one database."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.pool import QueuePool

from tenure.engines.gate import Gate
from tenure.engines.replicas import ReplicaStatus


class Status(NamedTuple):
    """Numbers of one database: connections now, and what has happened since it was made. Those on one engine share them.

    Attributes:
        name: The database's name.
        capacity: How many connections its pool hands out at most; None without a bound.
        in_use: How many are out now, whoever took them.
        idle: How many rest in the pool, or are only kept for a unit's next read and can be had.
        waiting: How many units wait for one.
        peak: The most that were in use at once.
        acquired: How often a connection was taken.
        timed_out: How often a wait ended with ``PoolExhausted``.
        cancelled: How often one who waited was cancelled or interrupted.
        refused: How often one was refused with ``Overloaded``.
        leaked: How often a connection was taken back from an owner that was gone.
        discarded: How many connections were thrown away while they were out.
        in_doubt: How many units ended with an unknown outcome.
        waited: How often one had to wait for a connection, whatever came of it.
        longest_wait: The longest of these waits, in seconds.
        replicas: The same for each replica, as far as it has them; the other numbers are the primary's.

    """

    name: str
    capacity: int | None
    in_use: int
    idle: int
    waiting: int
    peak: int
    acquired: int
    timed_out: int
    cancelled: int
    refused: int
    leaked: int
    discarded: int
    in_doubt: int
    waited: int
    longest_wait: float
    replicas: tuple[ReplicaStatus, ...] = ()


def status_of(name: str, gate: Gate, replicas: tuple[ReplicaStatus, ...]) -> Status:
    """The numbers of the database behind *gate*. Takes no connection."""
    pool, queue, counts = gate.engine.pool, gate.queue, gate.counts
    return Status(
        name,
        queue.capacity,
        gate.out(),
        (pool.checkedin() if isinstance(pool, QueuePool) else 0) + queue.spare,
        queue.waiting,
        queue.peak,
        counts.acquired,
        counts.timed_out,
        counts.cancelled,
        counts.refused,
        counts.leaked,
        counts.discarded,
        counts.in_doubt,
        counts.waited,
        counts.longest_wait,
        replicas,
    )
