"""What a process of the cluster is told by its environment, and the numbers on which all of them agree."""

from __future__ import annotations

import os
from typing import NamedTuple

NODE = os.environ.get("CLUSTER_NODE", "north")
ROLE = os.environ.get("CLUSTER_ROLE", "web")
PROCESS = os.environ.get("CLUSTER_PROCESS", "")  # no other has had this name
DATABASE = os.environ.get("CLUSTER_DATABASE", "postgresql+psycopg://localhost:6432/shop")
REPLICA = os.environ.get("CLUSTER_REPLICA", "")  # for those who read from one
BROKER = os.environ.get("CLUSTER_BROKER", "amqp://guest:guest@127.0.0.1:5672/%2F")
QUEUE = os.environ.get("CLUSTER_QUEUE", "receipts")
LEDGER = os.environ.get("CLUSTER_LEDGER", "ledger.jsonl")
SOCKET = int(os.environ.get("CLUSTER_SOCKET", "0"))  # on which a web process listens; it is handed down and outlives the process

EVERY = 1.0  # seconds from one night to the next
MAILING = 0.03  # seconds that the mail server takes to answer
NIGHT = 0.3  # seconds that the nightly job takes


class Role(NamedTuple):
    """What a node has of one kind of process, and the connections which that comes to.

    Attributes:
        processes: How many of a node's processes of this kind use the database.
        pool: How many connections each may have to the primary, and where it reads from the standby as many to that.
        beside: How many more at most, beside its pool.
        reads: Whether it reads from the standby.

    """

    processes: int
    pool: int
    beside: int = 0
    reads: bool = False

    @property
    def most(self) -> int:
        """The connections of one node's processes to the primary, at most."""
        return self.processes * (self.pool + self.beside)


NODES = ("north", "south")
ROLES = {
    "web": Role(processes=1, pool=4, reads=True),  # its six threads share four connections
    "worker": Role(processes=2, pool=1),  # Celery's, each with one task at a time
    "relay": Role(processes=1, pool=1),
    "scheduler": Role(processes=1, pool=1, beside=2),  # the lock of `once`
}
TO_PRIMARY = 8  # PgBouncer's connections to the primary, at most
TO_STANDBY = 4
