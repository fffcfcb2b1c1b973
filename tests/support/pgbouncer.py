"""PgBouncer in transaction mode, in front of the run's PostgreSQL: on a unix socket in a folder of its own."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from support.servers import Server, ServerMissingError, server

# Fewer connections to the server than the tests have at one time, or nobody would ever get another's.
CONNECTIONS = 4
_REMEDY = "Install it (Debian: apt-get install pgbouncer)."
_CONFIGURATION = """
[databases]
postgres = host={socket} dbname=postgres user=postgres
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 200
logfile = {folder}/log
pidfile = {folder}/pid
"""


def start() -> Server:
    """Start it; it runs as the user to whom the server's socket belongs, for it refuses to be root."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise ServerMissingError("PgBouncer", "the program pgbouncer is not installed", _REMEDY)
    postgresql = server("postgresql")
    socket = Path(str(postgresql.base.query["host"]))
    folder = Path(tempfile.mkdtemp(prefix="tenure-pgbouncer-"))
    (folder / "ini").write_text(_CONFIGURATION.format(socket=socket, folder=folder, connections=CONNECTIONS))
    owner = socket.stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.getuid() == 0 else {}
    if as_owner:
        for path in (folder, folder / "ini"):
            os.chown(path, owner.st_uid, owner.st_gid)
    process = subprocess.Popen([program, "-q", str(folder / "ini")], stderr=subprocess.DEVNULL, **as_owner)  # type: ignore[call-overload]

    def stop() -> None:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)

    deadline = time.monotonic() + 10
    while not (folder / ".s.PGSQL.6432").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = (folder / "log").read_text() if (folder / "log").exists() else "nothing"
            stop()
            raise ServerMissingError("PgBouncer", f"it did not start; it said {said}", _REMEDY)
        time.sleep(0.01)
    base = sa.URL.create(
        "postgresql+psycopg", username="postgres", database="postgres", query={"host": str(folder), "port": "6432"}
    )
    return Server(base, stop, postgresql.evict, postgresql.kill, postgresql.impatience, postgresql.wipe)
