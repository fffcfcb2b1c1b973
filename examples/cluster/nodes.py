"""The processes of all nodes."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from examples.cluster import settings
from examples.cluster.ledger import Ledger
from examples.cluster.process import Program
from examples.cluster.stop import ClusterError, until

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("--loglevel", "WARNING", "--without-gossip", "--without-mingle")
COMMANDS = {
    "web": ("gunicorn", "-c", "python:examples.cluster.web_server", "examples.cluster.web:app"),
    "worker": ("celery", "-A", "examples.cluster.tasks", "worker", "-c", str(settings.ROLES["worker"].processes), *QUIET),
    "relay": ("examples.cluster.relay",),
    "scheduler": ("examples.cluster.scheduler",),
}


class Process(Program):
    """One of a node's programs. It gets a new `id` each time that it is started: in the ledger that tells it from the one before."""

    _numbers = itertools.count(1)

    def __init__(self, node: str, role: str, ledger: Ledger, told: Mapping[str, str], **options: object) -> None:
        self.node, self.role, self.id = node, role, ""
        self._ledger = ledger
        folder = ledger.path.parent
        environment = {
            **told,
            "CLUSTER_NODE": node,
            "CLUSTER_ROLE": role,
            "CLUSTER_LEDGER": str(ledger.path),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "TMPDIR": str(folder),  # what is killed leaves its temporary files
        }
        command = [sys.executable, "-W", "ignore", "-m", *COMMANDS[role]]
        super().__init__(f"{node} {role}", command, folder / f"{node}-{role}.log", environment, **options)

    def start(self) -> None:
        """Start it, without waiting for it."""
        self.id = self.environment["CLUSTER_PROCESS"] = f"{self.name} {next(self._numbers)}"
        super().start()

    @property
    def is_up(self) -> bool:
        """Whether it has said that it works."""
        return not self.ended and any(line["process"] == self.id for line in self._ledger.lines("up"))


class Nodes:
    """All processes of all nodes. Each node's web process has a socket that outlives it: who comes while it is away waits for the next."""

    def __init__(self, ledger: Ledger, told: Mapping[str, str], standby: str, sockets: Mapping[str, socket.socket]) -> None:
        self.processes: list[Process] = []
        self.ports = {node: int(one.getsockname()[1]) for node, one in sockets.items()}
        for node, listening in sockets.items():
            number = listening.fileno()
            web = {**told, "CLUSTER_REPLICA": standby, "CLUSTER_SOCKET": str(number)}
            self.processes.append(Process(node, "web", ledger, web, pass_fds=[number]))
            self.processes += [Process(node, role, ledger, told) for role in settings.ROLES if role != "web"]

    def start(self) -> None:
        """Start all and wait for them."""
        for one in self.processes:
            one.start()
        until(lambda: all(one.is_up or one.ended for one in self.processes))
        for one in self.processes:
            if not one.is_up:
                raise ClusterError(f"{one.name} did not start: {one.last_words()}")

    def may_be_killed(self, victim: Process) -> bool:
        """Whether *victim* is up, and not the last scheduler: a night for which there is none is nobody's fault."""
        others = (one for one in self.processes if one.role == victim.role and one is not victim)
        return victim.is_up and (victim.role != "scheduler" or any(one.is_up for one in others))

    def end(self) -> dict[str, int | None]:
        """SIGTERM to all, and their exit statuses; None for one that had ended already."""
        gone = {one.name for one in self.processes if one.ended}
        for one in self.processes:
            one.ask_to_end()
        return {one.name: None if one.name in gone else one.wait() for one in self.processes}


@contextmanager
def nodes(ledger: Ledger, told: Mapping[str, str], standby: str) -> Iterator[Nodes]:
    """The nodes, not yet started. None of their processes is left afterwards."""
    with ExitStack() as stack:
        sockets = {node: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for node in settings.NODES}
        made = Nodes(ledger, told, standby, sockets)
        for one in made.processes:
            stack.callback(one.kill)
        yield made
