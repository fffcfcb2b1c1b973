"""What cannot be rolled back: a file to which each process adds lines. It stands for the mail server and for the systems' logs."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from examples.cluster import settings


def note(what: str, **facts: Any) -> None:
    """Add a line. It is written at once and as a whole, whoever else writes and whatever becomes of this process."""
    line = {"what": what, "process": settings.PROCESS, "node": settings.NODE, "role": settings.ROLE, **facts}
    file = os.open(settings.LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(file)


class Ledger:
    """The same file, as the driver reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[dict[str, Any]] = []
        self._read = 0  # bytes
        self._lock = threading.Lock()
        path.touch()

    def lines(self, what: str) -> list[dict[str, Any]]:
        """All lines about that. One that is just being written comes the next time."""
        with self._lock, self.path.open("rb") as file:
            file.seek(self._read)
            new, _, _ = file.read().rpartition(b"\n")
            if new:
                self._read += len(new) + 1
                self._lines += map(json.loads, new.splitlines())
            return [line for line in self._lines if line["what"] == what]
