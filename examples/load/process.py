"""The server, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import URL

from examples.load.probe import LAST_LINE

ROOT = Path(__file__).resolve().parents[2]
START = 60.0  # seconds that it may take to print its address
END = 30.0  # and to end


class ServerFailed(Exception):
    """The server did not start."""


class Server:
    """``python -m MODULE …`` on a database.

    Args:
        command: The module to start, and its arguments.
        url: The database; it goes by the environment, where no list of processes shows its password.
        log: The file for what the server writes to stderr: web frameworks print there what handlers raise.

    """

    def __init__(self, command: Sequence[str], url: URL, log: Path) -> None:
        self.log = log
        self.report: dict[str, Any] | None = None
        self._started = threading.Event()
        self.address = ""
        environment = {
            **os.environ,
            "MARKET_DATABASE": url.render_as_string(hide_password=False),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                process_group=0,  # Ctrl-C is for the driver, which ends the server when its clients are done
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._started.wait(START)
        except BaseException:
            self.kill()
            raise
        if not self.address:
            self.kill()
            raise ServerFailed(
                f"{' '.join(command)} did not start on {url.render_as_string(hide_password=True)}: {self.last_words()}"
            )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return urlsplit(self.address).port or 80

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(LAST_LINE):
                self.report = json.loads(line.removeprefix(LAST_LINE))
            elif not self.address:
                self.address = line.strip()
                self._started.set()
        self._process.stdout.close()
        self._started.set()

    def stop(self) -> int:
        """Ask it to end, and give its exit status; one that does not end is killed."""
        self._process.terminate()
        return self._ended()

    def kill(self) -> int:
        """SIGKILL."""
        self._process.kill()
        return self._ended()

    def _ended(self) -> int:
        try:
            self._process.wait(END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        return self._process.returncode

    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"
