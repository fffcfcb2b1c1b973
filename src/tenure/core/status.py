"""What ``db.status()`` gives: the numbers of one database."""

from __future__ import annotations

from typing import NamedTuple

from tenure.engines.gate import Gate
from tenure.engines.replicas import ReplicaStatus
from tenure.engines.rooms import idle_in


class Status(NamedTuple):
    """Numbers of one database: connections now, and what has happened since it was made. Those on one engine share them.
    An ``AsyncDatabase`` has a pool for each event loop that uses it now; their numbers are added.

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
    rooms, counts = gate.all_rooms(), gate.counts
    queues = [room.queue for room in rooms]
    bounds = [queue.capacity for queue in queues]
    return Status(
        name,
        None if None in bounds else sum(filter(None, bounds)),
        gate.out(),
        sum(map(idle_in, rooms)),
        sum(queue.waiting for queue in queues),
        sum(queue.peak for queue in queues),
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
