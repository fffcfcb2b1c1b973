"""R18, R35-R40: whatever breaks at whatever moment, what was acknowledged is stored and what was refused is not."""

import gc
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from torture import models
from torture.book import read
from torture.round import SETTINGS, Round, play, postgresql

from support.cluster import Cluster

SECONDS = 5.0


@pytest.fixture(scope="module")
def cluster():
    with Cluster(SETTINGS) as made:
        yield made


@pytest.fixture
def seed():
    """Of TENURE_TORTURE_SEED, else a new one; a failure shows it."""
    chosen = os.environ.get("TENURE_TORTURE_SEED") or str(random.randrange(10**6))
    print(f"TENURE_TORTURE_SEED={chosen}")
    return chosen


# dispose() leaves what is out, and was taken around tenure, to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["psycopg", "asyncpg", "psycopg_async"])
def test_transfers_while_everything_breaks(cluster, seed, name, request):
    """R40: kills, restarts, cut and frozen links, cancellations, owners that die: each transfer is stored as was told, and whole."""
    book = play(cluster, *postgresql(cluster, name, seed, SECONDS))

    gc.collect()  # within the test, whose filter is for what comes up here

    assert book.wrong == [], f"seed {seed}: {len(book.wrong)} finds, the first of them:\n{book.wrong[0]}"
    assert book.counts["stored"] > 0


def test_threads_on_a_sqlite_file(tmp_path, seed):
    """R18, R35: the same work in threads on one SQLite file, with owners that die: each transfer is as was told, and whole."""
    url = sa.URL.create("sqlite", database=str(tmp_path / "torture.db"))
    models.create(url)
    made = Round("sqlite", seed, 3.0, url=url)
    book = made.run()
    book.settle(read(url))

    assert book.wrong == [], f"seed {seed}: {len(book.wrong)} finds, the first of them:\n{book.wrong[0]}"
    assert book.counts["stored"] > 0


def test_a_process_that_is_killed(tmp_path, seed):
    """R18: SIGKILL in the middle of all that, three times: what the process had told of is stored, the rest is whole or not there."""
    dice = random.Random(seed)
    url = sa.URL.create("sqlite", database=str(tmp_path / "torture.db"))
    models.create(url)
    told: dict[str, str] = {}
    for life in range(3):
        program = [sys.executable, str(Path(__file__).with_name("child.py")), str(tmp_path / "torture.db"), f"{seed}-{life}"]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as child:
            first = child.stdout.readline()
            time.sleep(dice.uniform(0.1, 0.8))
            child.kill()
            lines = [first, *child.stdout]
        told |= {key: what for what, key in (line.rstrip("\n").split("\t") for line in lines)}
        rows = read(url)

        assert rows.crooked == []
        assert {key for key, what in told.items() if what == "stored"} - rows.keys == set()
        assert {key for key, what in told.items() if what == "not stored"} & rows.keys == set()
        assert rows.keys - told.keys() == set()
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert "stored" in told.values()
