"""Redis and RabbitMQ of a test's own, to be killed and started again where they were, with what was in them."""

import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import kombu

from support.servers import ServerMissingError, give_up

WITHIN = 60.0
"""Seconds in which a broker must be up; RabbitMQ takes its time after a kill."""


def _program(name: str, server: str) -> str:
    # Debian's rabbitmq-server on the PATH runs as a user of its own, who has no part in a test's folder.
    found = shutil.which(name, path=f"/usr/lib/rabbitmq/bin:{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        give_up(
            ServerMissingError(server, f"the program {name} is not installed", f"Install it (Debian: {server.lower()}-server).")
        )
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class OwnBroker(ABC):
    """A broker as a process of its own; ended at the end of the block."""

    server: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._processes: list[subprocess.Popen[Any]] = []

    @property
    @abstractmethod
    def address(self) -> str:
        """Its URL."""

    @abstractmethod
    def _run(self) -> None:
        """Start its process."""

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run()
        ends = time.monotonic() + WITHIN
        while not self._answers():
            assert time.monotonic() < ends, (self.folder / "log").read_text()[-4000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with kombu.Connection(self.address, connect_timeout=1) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
        except Exception:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL for it and all its children."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(WITHIN)
        self._processes.clear()

    def _popen(self, *command: str, **environment: str) -> None:
        with (self.folder / "log").open("ab") as log:
            started: Callable[..., subprocess.Popen[Any]] = subprocess.Popen
            self._processes.append(
                started(
                    command, env={**os.environ, **environment}, start_new_session=True, cwd=self.folder,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )
            )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class OwnRedis(OwnBroker):
    """It writes down each command before it answers."""

    server = "Redis"

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _run(self) -> None:
        where = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder))
        self._popen(_program("redis-server", self.server), *where, "--save", "", "--appendonly", "yes", "--appendfsync", "always")


class OwnRabbitMQ(OwnBroker):
    """A node with data, cookie and port mapper of its own."""

    server = "RabbitMQ"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mapper, self._distribution = _free_port(), _free_port()
        (folder / "plugins").write_text("[].")

    @property
    def address(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def _run(self) -> None:
        program = _program("rabbitmq-server", self.server)
        mapper = str(self._mapper)
        self._popen(_program("epmd", self.server), "-port", mapper, "-address", "127.0.0.1")  # else it would start one that stays
        folder = self.folder
        self._popen(
            program,
            HOME=str(folder),
            RABBITMQ_NODENAME="tenure@localhost",
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_DIST_PORT=str(self._distribution),
            RABBITMQ_MNESIA_BASE=str(folder / "data"),
            RABBITMQ_LOG_BASE=str(folder),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "plugins"),
            RABBITMQ_PID_FILE=str(folder / "pid"),
            RABBITMQ_CONFIG_FILE=str(folder / "none"),
            RABBITMQ_CONF_ENV_FILE=os.devnull,
            ERL_EPMD_PORT=mapper,
        )
