"""What every row is given."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL

from benchmarks.report import Report


@dataclass
class Bench:
    """What every row needs.

    Attributes:
        report: Where it says what it found.
        rounds: How many rounds it runs.
        units: How many units and tasks the memory is watched over.
        postgresql: The embedded server, without a driver's name.
        seconds: For how long a server is loaded in one round.

    """

    report: Report
    rounds: int
    units: int
    postgresql: URL
    seconds: float

    def on(self, driver: str) -> URL:
        """The embedded server by *driver*."""
        return self.postgresql.set(drivername=f"postgresql+{driver}")


@contextmanager
def program(module: str, *arguments: object) -> Iterator[int]:
    """Run a module of this package that prints its port, in a process of its own; ended by its id when the block is left."""
    process: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if not (said := process.stdout.readline().strip()):
            raise RuntimeError(f"benchmarks.{module} ended with status {process.wait()}")
        yield int(said)
    finally:
        process.send_signal(signal.SIGKILL)  # under overload it would wait for those whom it still serves
        process.communicate()


def run(work: Any) -> Any:
    """Run a coroutine in a loop of its own."""
    with asyncio.Runner() as runner:
        return runner.run(work)
