"""A program that this one has started: in a session of its own, which Ctrl-C does not reach, with its words in a file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Program:
    """A program that can be started, killed, and started again.

    Args:
        name: As the report shows it.
        command: What is run.
        log: The file for what it writes.
        environment: What it is told, beside this process's own.
        options: More for ``subprocess.Popen``.

    """

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.name = name
        self._command = command
        self._log = log
        self.environment = environment or {}
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it may take a while until it is up."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._options,
            )

    @property
    def ended(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, to its children too."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended, with all its children
            self._process.wait()

    def ask_to_end(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def end(self) -> int:
        """End it; its exit status."""
        self.ask_to_end()
        return self.wait()

    def wait(self, patience: float = 20.0) -> int:
        """Its exit status when it has ended; if it does not, it is killed. Its children are gone as well then."""
        if self._process is None:
            return 0
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            pass
        self.kill()
        return self._process.returncode

    def last_words(self) -> str:
        """The last line that it wrote."""
        lines = (
            [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()] if self._log.exists() else []
        )
        return lines[-1] if lines else "it said nothing"
