"""R18, R35-R40: whatever breaks at whatever moment, what was acknowledged is stored and what was refused is not."""

import gc
import os
import random

import pytest

from torture.round import SETTINGS, play, postgresql

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
