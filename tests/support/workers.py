"""A runner's worker as a process of its own, which says on its standard output how far its jobs have come."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from support import probe
from support.face import Face

WITHIN = 30.0
"""Seconds in which a worker must have started and done what is waited for."""


class Worker:
    """``python -m *command*`` in a session of its own; ended, with its children, at the end of the block."""

    def __init__(self, log: Path, *command: str, **environment: str) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def said(self, what: str) -> str:
        """The rest of the next line that begins with *what*; others are passed over."""
        while True:
            try:
                first, _, rest = self._lines.get(timeout=WITHIN).partition(" ")
            except queue.Empty:
                message = f"the worker did not say {what!r}; its log ends with:\n{self._log.read_text()[-4000:]}"
                raise TimeoutError(message) from None
            if first == what:
                return rest

    def kill(self) -> None:
        """SIGKILL for the worker and its children."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(WITHIN)

    def stop(self) -> int:
        """SIGTERM, and its exit status once it has ended."""
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self._process.wait(WITHIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended with all its children
        self._process.wait(WITHIN)
        self._reader.join(WITHIN)
        assert self._process.stdout is not None
        self._process.stdout.close()


def until(face: Face, statement: str, wanted: Any, within: float = 5.0) -> None:
    """Wait until *statement* gives *wanted*."""
    ends = time.monotonic() + within
    while (found := probe.outside(face, statement)) != [wanted]:
        assert time.monotonic() < ends, (statement, found)
        time.sleep(0.01)


@contextlib.contextmanager
def slow_commit(face: Face) -> Iterator[None]:
    """COMMIT of a new user waits in the server until the block is left."""
    probe.outside(
        face,
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;"
        " CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        " WHEN (NEW.name LIKE 'in %') EXECUTE FUNCTION hold()",
    )
    engine = sa.create_engine(face.sync_engine.url)
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(4711)"))
            yield
    finally:
        engine.dispose()
        probe.outside(face, "DROP TRIGGER hold ON users; DROP FUNCTION hold()")


def told_of(folder: Path) -> list[str]:
    """The processes that have *folder* in their environment: what a program has started there, and its children. Where there is /proc."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found
