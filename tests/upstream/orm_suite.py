"""Runs SQLAlchemy's own ORM tests against the SQLAlchemy that is installed, with tenure's sessions in place of its own.

The tests come with the source distribution of that version, which pip downloads once into a cache folder.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy

TESTS = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tenure-upstream"

# SQLAlchemy names a test class that runs on one database only after that database, its driver and its version.
_BACKEND = re.compile(r"_(?:sqlite|postgresql)\+\w+(?=::)")


@dataclass(frozen=True)
class Result:
    """What one run came to. Tests are named without the version of the database.

    Attributes:
        passed: The tests that passed.
        failed: The tests that failed, or whose setup or teardown did, each with its traceback.
        skipped: How many were skipped.
        swapped: How many sessions were a unit's.
        left: How many were left to SQLAlchemy.

    """

    passed: frozenset[str]
    failed: dict[str, str]
    skipped: int
    swapped: int
    left: int


def source() -> Path:
    """The folder of the unpacked source distribution of the installed SQLAlchemy."""
    return unpacked("sqlalchemy", sqlalchemy.__version__)


def unpacked(package: str, version: str) -> Path:
    """The folder of the unpacked source distribution of *package*, downloaded once."""
    home = CACHE / f"{package}-{version}"
    if not home.is_dir():
        print(f"== downloading the source of {package} {version} into {CACHE} (once)", flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        # pip asks the package for its metadata, which else compiles SQLAlchemy's extensions
        environment = {**os.environ, "DISABLE_SQLALCHEMY_CEXT": "1"}
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command += ["--no-binary", package, "--dest", folder, f"{package}=={version}"]
            subprocess.run(command, env=environment, check=True)
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            (found,) = (path for path in Path(folder).iterdir() if path.is_dir())
            found.rename(home)
    return home


def run(url: str, *arguments: str, workers: int = 0) -> Result:
    """Run the tests on the database at *url*, in so many processes; 0 is one without pytest-xdist.

    Args:
        url: Where the tests make and drop their tables.
        arguments: For pytest; without a path among them, all of test/orm is run.
        workers: How many processes share the tests.

    """
    with tempfile.TemporaryDirectory(prefix="tenure-upstream-") as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),
            "PYTHONNOUSERSITE": "1",  # test/conftest.py then takes the installed SQLAlchemy, not the one beside the tests
            "TENURE_UPSTREAM_RESULTS": folder,
        }
        command = [sys.executable, "-m", "pytest", "-p", "upstream.plugin", "-p", "no:cacheprovider"]
        command += ["--quiet", "--no-header", "--no-summary", "--maxfail=1000000", f"--dburi={url}"]
        command += [f"-n{workers}"] * bool(workers)
        command += [*arguments, *([] if any(one.startswith("test/") for one in arguments) else ["test/orm"])]
        status = subprocess.run(command, cwd=source(), env=environment, check=False).returncode
        if status not in (0, 1):  # neither passed nor failed: it did not come to an end
            raise SystemExit(f"pytest ended with status {status}")
        return read(Path(folder))


def read(folder: Path) -> Result:
    """What the plugin has written into *folder*."""
    outcomes = json.loads((folder / "outcomes.json").read_text())
    counts = [json.loads(path.read_text()) for path in folder.glob("*.count")]
    failed = {name(test): trace for test, trace in outcomes["failed"].items()}
    return Result(
        frozenset(map(name, outcomes["passed"])) - failed.keys(),
        failed,
        len(outcomes["skipped"]),
        sum(count["swapped"] for count in counts),
        sum(count["left"] for count in counts),
    )


def name(test: str) -> str:
    """The name of a test, the same on every version of a database."""
    return _BACKEND.sub("", test)
