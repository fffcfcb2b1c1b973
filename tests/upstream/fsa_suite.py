"""Runs Flask-SQLAlchemy's own tests with each of their applications adopted, and without.

The tests come with the source distribution of the installed version. On SQLAlchemy 2.1 some fail by themselves, for its dataclass bases
do not work there: what counts is that no other fails when the applications are adopted.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from upstream import orm_suite
from upstream.orm_suite import Result


def run(listed: Container[str], *arguments: str) -> Result:
    """The result with all applications adopted, less the failures that are Flask-SQLAlchemy's own and not *listed*."""
    version = importlib.metadata.version("flask-sqlalchemy")
    home = orm_suite.unpacked("flask-sqlalchemy", version)
    print(f"== flask-sqlalchemy: the tests of Flask-SQLAlchemy {version}, without tenure and with it", flush=True)
    plain, adopted = (_run(home, arguments, adopts=adopts) for adopts in (False, True))
    print(f"== flask-sqlalchemy: without tenure {len(plain.passed)} passed, {len(plain.failed)} failed", flush=True)
    ours = {test: trace for test, trace in adopted.failed.items() if test in listed or test not in plain.failed}
    return replace(adopted, failed=ours)


def _run(home: Path, arguments: tuple[str, ...], *, adopts: bool) -> Result:
    with tempfile.TemporaryDirectory(prefix="tenure-upstream-") as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(orm_suite.TESTS), os.environ.get("PYTHONPATH")])),
            "TENURE_UPSTREAM_RESULTS": folder,
            "TENURE_UPSTREAM_ADOPTS": str(adopts),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "upstream.fsa_plugin",
            "-p",
            "no:cacheprovider",
            "--quiet",
            "--no-header",
        ]
        command += ["--no-summary", *arguments, *([] if any(one.startswith("tests/") for one in arguments) else ["tests"])]
        status = subprocess.run(command, cwd=home, env=environment, check=False).returncode
        if status not in (0, 1):  # neither passed nor failed: it did not come to an end
            raise SystemExit(f"pytest ended with status {status}")
        return orm_suite.read(Path(folder))
