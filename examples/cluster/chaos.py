"""SIGKILL at random, to a server what it calls a crash. The seed says who is next, and after how long."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from examples.cluster.nodes import Nodes, Process
from examples.cluster.process import Program

DEFAULT = ("worker", "relay", "scheduler", "web")
SERVERS = ("standby", "pgbouncer", "broker")
NOTHING = "nothing"
PAUSE = (0.4, 1.2)  # seconds from one kill to the next, at least and at most
AWAY = (0.0, 0.5)  # seconds until another takes its place
SERVER_AWAY = (1.0, 2.0)
ONE_IN = 6  # so many kills are of a server, where servers are killed


class Chaos(threading.Thread):
    """Kills and restarts, one at a time, until it is told to end. Then all run again.

    Args:
        nodes: The processes.
        servers: Those of the servers that are killed too.
        roles: Of which roles processes are killed.
        seed: Of the dice.
        tell: Called with what has happened.

    """

    def __init__(
        self, nodes: Nodes, servers: Sequence[Program], roles: Sequence[str], seed: int, tell: Callable[[str], None]
    ) -> None:
        super().__init__(name="chaos", daemon=True)
        self.killed: Counter[str] = Counter()
        self.dead: set[str] = set()  # the ids of the processes
        self.outages: list[tuple[float, float]] = []  # when servers were away, in seconds since 1970
        self.error: Exception | None = None
        self._nodes, self._servers = nodes, list(servers)
        self._victims = [one for one in nodes.processes if one.role in roles]
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self._tell = tell

    def run(self) -> None:
        """Kill until the end."""
        try:
            while (self._victims or self._servers) and not self._ending.wait(self._random.uniform(*PAUSE)):
                self._kill(self._next())
        except Exception as error:  # whoever waits for the end is told
            self.error = error

    def end(self) -> None:
        """Stop killing; what was killed last is started again, unless `error` says why not."""
        self._ending.set()
        self.join()

    def _next(self) -> Program:
        if self._servers and (not self._victims or self._random.randrange(ONE_IN) == 0):
            return self._random.choice(self._servers)
        return self._random.choice(self._victims)

    def _kill(self, victim: Program) -> None:
        if isinstance(victim, Process):
            if self._nodes.may_be_killed(victim):
                self.dead.add(victim.id)
                self._kill_for(victim, victim.role, AWAY)
        else:
            began = time.time()
            self._kill_for(victim, victim.name, SERVER_AWAY)
            self.outages.append((began, time.time()))

    def _kill_for(self, victim: Program, kind: str, away: tuple[float, float]) -> None:
        seconds = self._random.uniform(*away)
        self._tell(f"killed: {victim.name}, for {seconds:.1f} s")
        victim.kill()
        self.killed[kind] += 1
        self._ending.wait(seconds)
        victim.start()
