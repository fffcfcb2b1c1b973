"""Counts connections: those of the processes to PgBouncer, and PgBouncer's to the servers."""

from __future__ import annotations

import threading
from collections import Counter

import psycopg
from sqlalchemy import URL, create_engine, text
from sqlalchemy.pool import NullPool

from examples.cluster.servers import PgBouncer

EVERY = 0.2  # seconds
_IN_TRANSACTION = text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")


class Watch(threading.Thread):
    """The most that there were at one time, until it is told to end."""

    def __init__(self, pgbouncer: PgBouncer) -> None:
        super().__init__(name="watch", daemon=True)
        self.most: Counter[str] = Counter()
        self._pgbouncer = pgbouncer
        self._ending = threading.Event()

    def run(self) -> None:
        """Count until the end."""
        while not self._ending.wait(EVERY):
            try:
                self.most |= connections(self._pgbouncer)
            except psycopg.OperationalError:  # PgBouncer was killed
                continue

    def end(self) -> None:
        """No more."""
        self._ending.set()
        self.join()


def connections(pgbouncer: PgBouncer) -> Counter[str]:
    """How many there are now: of clients, to servers, and of those in use."""
    found: Counter[str] = Counter()
    for pool in pgbouncer.show("POOLS"):
        name = pool["database"]
        found[f"{name} clients"] += pool["cl_active"] + pool["cl_waiting"]
        found[f"{name} servers"] += sum(pool[f"sv_{state}"] for state in ("active", "idle", "used", "tested", "login"))
        found[f"{name} in use"] += pool["sv_active"]
    return found


def left(pgbouncer: PgBouncer, primary: URL) -> Counter[str]:
    """What is still in use, and should not be when all processes have ended."""
    now = connections(pgbouncer)
    found = Counter({f"{name} {what}": now[f"{name} {what}"] for name in ("shop", "standby") for what in ("clients", "in use")})
    with create_engine(primary, poolclass=NullPool).connect() as connection:
        found["idle in transaction"] = connection.scalar(_IN_TRANSACTION) or 0
    return found
