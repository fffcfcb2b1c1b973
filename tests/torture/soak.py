"""The long form: rounds one after another, progress while they run, and a table of all that happened."""

import argparse
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from torture.faults import Faults
from torture.round import SETTINGS, Round, play, postgresql

from support.cluster import Cluster

EVERY = 2.0
"""Seconds between two lines of progress."""


@dataclass
class Sums:
    """All that has happened on one driver."""

    rounds: int = 0
    seconds: float = 0.0
    calls: int = 0
    cancelled: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, made: Round, faults: Faults) -> None:
        self.rounds += 1
        self.seconds += made.took
        self.calls += made.scenario.done
        self.cancelled += made.cancelled
        self.ends += made.book.counts
        self.errors += made.book.errors
        self.faults += faults.counts
        self.wrong += [f"seed {made.seed} on {made.driver}: {one}" for one in made.book.wrong]


class Soak:
    """Rounds on *drivers* in turn for *seconds*, or until somebody asks it to `stop`."""

    def __init__(self, drivers: list[str], seconds: float, seed: int, each: float, most: int | None) -> None:
        self.sums = {driver: Sums() for driver in drivers}
        self._seconds, self._seed, self._each = seconds, seed, each
        self._most = most or sys.maxsize
        self._now: Round | None = None
        self._faults: Faults | None = None
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._began = time.monotonic()

    def stop(self, *_signal: object) -> None:
        """End the round that runs, and then all. Asked a second time, at once."""
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()
        if self._now is not None:
            self._now.stop.set()

    def run(self) -> None:
        teller = threading.Thread(target=self._tell, name="progress", daemon=True)
        with Cluster(SETTINGS) as cluster:
            teller.start()
            try:
                while self._goes_on():
                    self._round(cluster)
            finally:
                self._over.set()
                teller.join()

    def _goes_on(self) -> bool:
        done = sum(one.rounds for one in self.sums.values())
        return not self._stopping.is_set() and done < self._most and time.monotonic() - self._began < self._seconds

    def _round(self, cluster: Cluster) -> None:
        number = sum(one.rounds for one in self.sums.values())
        driver = list(self.sums)[number % len(self.sums)]
        seed = str(self._seed + number)
        left = self._seconds - (time.monotonic() - self._began)
        still = random.Random(seed).choice((0.1, 0.3, 1.5))  # how long nothing passes at worst
        made, faults = postgresql(cluster, driver, seed, min(self._each, max(left, 3.0)), still=still)
        self._now, self._faults = made, faults
        if self._stopping.is_set():
            made.stop.set()
        play(cluster, made, faults)
        self._now = self._faults = None
        self.sums[driver].add(made, faults)
        for one in made.book.wrong[:3]:
            print(f"\n!! seed {seed} on {driver}: {one}", flush=True)

    def _tell(self) -> None:
        while not self._over.wait(EVERY):
            made, faults = self._now, self._faults
            if made is None or faults is None:
                continue
            past = [one for one in self.sums.values() if one.rounds]
            ends = sum((one.ends for one in past), Counter()) + made.book.counts
            broken = sum((one.faults for one in past), Counter()) + faults.counts
            wrong = sum(len(one.wrong) for one in past) + len(made.book.wrong)
            status = made.face.db.status()
            seconds = int(time.monotonic() - self._began)
            print(
                f"{seconds // 60:02}:{seconds % 60:02} {made.driver:13} stored {ends['stored']}, not stored {ends['not stored']},"
                f" unknown {ends['unknown']} | faults {broken.total()} | out {status.in_use}, waiting {status.waiting} | wrong {wrong}",
                flush=True,
            )

    def table(self) -> str:
        """All that happened, a column for each driver."""
        columns = list(self.sums.values())
        rows: list[tuple[str, list[object]]] = [
            ("rounds", [one.rounds for one in columns]),
            ("seconds", [round(one.seconds) for one in columns]),
            ("calls", [one.calls for one in columns]),
            *((end, [one.ends[end] for one in columns]) for end in ("stored", "not stored", "unknown")),
            ("cancelled by the test", [one.cancelled for one in columns]),
        ]
        for title, counters in (("fault", [one.faults for one in columns]), ("seen", [one.errors for one in columns])):
            names = sorted(set().union(*counters))
            rows += [(f"{title}: {name}", [counter[name] for counter in counters]) for name in names]
        rows.append(("WRONG", [len(one.wrong) for one in columns]))
        lines = [("", list(self.sums)), *rows]
        return "\n".join(f"{name:34}" + "".join(f"{cell!s:>15}" for cell in cells) for name, cells in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--drivers", default="psycopg,asyncpg", help="of psycopg, asyncpg, psycopg_async")
    parser.add_argument("--round", type=float, default=20.0, help="seconds that each round lasts")
    parser.add_argument("--rounds", type=int, default=None, help="at most so many")
    given = parser.parse_args(arguments)
    for name in ("tenure", "sqlalchemy", "asyncio", "psycopg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # thousands of connections are lost on purpose

    soak = Soak(given.drivers.split(","), given.minutes * 60, given.seed, given.round, given.rounds)
    print(f"seed {given.seed}, {given.minutes:g} min on {given.drivers}, process {os.getpid()}; Ctrl-C ends", flush=True)
    signal.signal(signal.SIGINT, soak.stop)
    soak.run()
    print(f"\n{soak.table()}", flush=True)
    return 1 if any(one.wrong for one in soak.sums.values()) else 0
