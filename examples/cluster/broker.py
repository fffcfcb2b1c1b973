"""RabbitMQ: the one that answers, one's own, or one that is started here."""

from __future__ import annotations

import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kombu

from examples.cluster import settings
from examples.cluster.process import Program
from examples.cluster.stop import ClusterError, until

OWN = "own"
_DEBIAN = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # its program on PATH runs as root or rabbitmq only
_REMEDY = (
    "Start one there, or give its address as AMQP=amqp://user:password@host/vhost, or install it and one is started here; on Debian:"
    " apt-get install rabbitmq-server."
)


class Broker:
    """A RabbitMQ.

    Attributes:
        url: Where it is.
        shown: The same without the password.
        program: What runs it; None if it is not ours to kill.

    """

    def __init__(self, url: str, program: Program | None = None) -> None:
        self.url = url
        self.shown = kombu.Connection(url).as_uri()
        self.program = program

    def trouble(self) -> str:
        """Why it does not answer; nothing if it does."""
        try:
            with kombu.Connection(self.url, connect_timeout=3) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
        except Exception as error:  # whatever a library says about what may not even be a RabbitMQ
            return f"{type(error).__name__}: {error}"
        return ""

    def waiting(self, queue: str) -> int:
        """How many messages are in *queue*."""
        with kombu.Connection(self.url, connect_timeout=3) as connection:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)

    def drop(self, queue: str) -> None:
        """Remove *queue*, and the exchange that Celery has made for it."""
        with kombu.Connection(self.url, connect_timeout=3) as connection:
            connection.default_channel.queue_delete(queue)
            connection.default_channel.exchange_delete(queue)


@contextmanager
def broker(choice: str, folder: Path) -> Iterator[Broker]:
    """The broker that *choice* means.

    Args:
        choice: Nothing for the one on 127.0.0.1:5672, and where none answers a new one; ``own`` for a new one; else a URL.
        folder: For the data of a new one.

    """
    if choice != OWN:
        found = Broker(choice or settings.BROKER)
        trouble = found.trouble()
        if not trouble:
            yield found
            return
        if choice or not installed():
            raise ClusterError(f"RabbitMQ does not answer at {found.shown} ({trouble}). {_REMEDY}")
    with _started(folder) as program:
        yield Broker(program.url, program)


class RabbitMQ(Program):
    """A node of its own, in *folder*, on free ports."""

    def __init__(self, folder: Path, epmd: int) -> None:
        program = installed()
        if program is None:
            raise ClusterError(f"RabbitMQ is not installed. {_REMEDY}")
        folder.mkdir()
        port = _free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
        names = {"CONF_ENV_FILE": "env", "CONFIG_FILE": "conf", "LOG_BASE": "log", "MNESIA_BASE": "data", "PID_FILE": "pid"}
        told = {f"RABBITMQ_{name}": str(folder / file) for name, file in names.items()}
        told |= {
            "HOME": str(folder),  # for the cookie
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_NODENAME": f"cluster-{uuid.uuid4().hex[:8]}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(_free_port()),
        }
        super().__init__("broker", [program], folder / "server.log", told)

    def start(self) -> None:
        """Start it and wait for it."""
        super().start()
        here = Broker(self.url)
        if not until(lambda: self.ended or not here.trouble()) or self.ended:
            raise ClusterError(f"RabbitMQ did not start: {self.last_words()}")


@contextmanager
def _started(folder: Path) -> Iterator[RabbitMQ]:
    port = _free_port()
    program = RabbitMQ(folder, port)
    epmd = Program("epmd", [shutil.which("epmd") or "epmd", "-port", str(port), "-address", "127.0.0.1"], folder / "epmd.log")
    try:
        epmd.start()  # else RabbitMQ starts one, which outlives it
        program.start()
        yield program
    finally:
        program.end()
        epmd.end()


def installed() -> str | None:
    """The program that starts a RabbitMQ, if there is one."""
    return _DEBIAN if Path(_DEBIAN).exists() else shutil.which("rabbitmq-server")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
