"""Starts the cluster, kills at random, and ends with the account: ``SECONDS=20 python -m examples.cluster``."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from examples.cluster.models import EVERY, Attempt, Base, Mail, Night, Order, messages
from examples.load.places import place
from tenure import Database
from tenure.jobs import outbox

PROCESSES = {"shop": 2, "relay": 3, "nightly": 3}
PAUSE = 0.3  # seconds from one kill to the next
PATIENCE = 60.0  # seconds
ROOT = Path(__file__).parents[2]


class Cluster:
    """The processes, and who was killed."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url.render_as_string(hide_password=False)
        self.killed: Counter[str] = Counter()
        self.running = [(role, self._start(role)) for role, count in PROCESSES.items() for _ in range(count)]

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-m", "examples.cluster.node", role, self.url]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)

    def is_up(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it has said that it works."""
        return bool(select.select([process.stdout], [], [], 0)[0])

    def wait(self) -> None:
        """Until all are up."""
        until(lambda: all(self.is_up(process) for _, process in self.running))

    def kill_one(self) -> None:
        """SIGKILL to a relay or a scheduler, unless it is the last of its role that is up; another takes its place."""
        up = [one for one in self.running if self.is_up(one[1])]
        often = Counter(role for role, _ in up)
        if not (victims := [one for one in up if one[0] != "shop" and often[one[0]] > 1]):
            return
        role, process = victim = random.choice(victims)
        process.kill()
        process.wait()
        self.killed[role] += 1
        self.running.remove(victim)
        self.running.append((role, self._start(role)))

    def end(self, role: str) -> list[int]:
        """SIGTERM to all of a role; their statuses."""
        ending = [process for one, process in self.running if one == role]
        for process in ending:
            process.send_signal(signal.SIGTERM)
        return [process.wait(20) for process in ending]


def until(condition: Callable[[], object]) -> None:
    """Go on when *condition* holds, or after `PATIENCE`: then the account shows what is missing."""
    ends = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < ends:
        time.sleep(0.05)


def nights(db: Database) -> int:
    with db.unit() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(Night)) or 0


def account(db: Database, box: outbox.Outbox, nights_since: int) -> list[tuple[str, str, bool]]:
    """What must be true, what was found, and whether it is."""
    with db.unit() as session:
        orders = session.scalar(sa.select(sa.func.count()).select_from(Order)) or 0
        mails = session.scalar(sa.select(sa.func.count()).select_from(Mail)) or 0
        calls = session.scalar(sa.select(sa.func.count()).select_from(Attempt)) or 0
        times = list(session.scalars(sa.select(Night.at).order_by(Night.at)))
        others = session.scalar(sa.text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")) or 0
    numbers, ticks = box.numbers(), (times[-1] - times[0]) / EVERY
    return [
        ("every order was mailed, exactly once in effect", f"{orders} orders, {mails} mails", orders == mails > 0),
        ("and at least once by the relays", f"{calls} calls, {calls - mails} of them again", calls >= mails),
        (
            "no message waits, none is dead",
            f"{numbers.pending} pending, {numbers.dead} dead",
            numbers.pending + numbers.dead == 0,
        ),
        ("no night came twice", f"{len(times)} nights in {ticks:.0f} ticks", len(times) <= ticks + 2),
        ("and they go on after schedulers were killed", f"{nights_since} more", nights_since > 1),
        ("nothing is left on the server", f"{others - 1} connections", others == 1),
    ]


def main() -> int:
    seconds = float(os.environ.get("SECONDS") or 20)
    with place("postgres") as found:
        url = found.database()
        db = Database(url)
        Base.metadata.create_all(db.engine)
        box = outbox.Outbox(db, messages)
        cluster = Cluster(url)
        cluster.wait()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(PAUSE)
            cluster.kill_one()
        before = nights(db)
        cluster.wait()
        statuses = cluster.end("shop")
        until(lambda: not box.numbers().pending and nights(db) > before + 1)
        since = nights(db) - before
        statuses += cluster.end("relay") + cluster.end("nightly")
        lines = account(db, box, since)
        lines.append(("all ended cleanly at SIGTERM", f"{len(statuses)} processes", not any(statuses)))
        db.close()
    print("killed: " + ", ".join(f"{count} {role}" for role, count in sorted(cluster.killed.items())))
    for what, numbers, holds in lines:
        print(f"{'ok    ' if holds else 'BROKEN'} {what}: {numbers}")
    return 0 if all(holds for *_, holds in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
