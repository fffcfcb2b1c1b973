"""A database that is sent to another process: what goes with it, and what does not go at all."""

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import sqlalchemy as sa

from tenure import Admission, AsyncDatabase, Database
from tenure.exceptions import NotPicklable

PROGRAM = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from sqlalchemy import text
from tenure import Database

def work(db, name):
    with db.unit(name="work") as session:
        session.execute(text("INSERT INTO users VALUES (:name)"), {"name": name})
        return os.getpid(), db.name, db.status().capacity, id(db)

if __name__ == "__main__":
    db = Database(sys.argv[1], name="shop", pool_size=2, max_overflow=1)
    with db.unit() as session:
        session.execute(text("CREATE TABLE users (name TEXT)"))
    with ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[2])) as pool:
        found = {pool.submit(work, db, name).result() for name in ("ada", "bob", "cy")}
    with db.unit() as session:
        names = session.scalars(text("SELECT name FROM users ORDER BY name")).all()
    print(len(found), [one[1:3] for one in found], found.pop()[0] == os.getpid(), names)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_database_goes_to_other_processes(tmp_path, method):
    """R30: a process that was not forked gets the database by its settings, and all calls in it share one."""
    if sys.platform == "win32" and method == "forkserver":
        pytest.skip("Windows has no forkserver")
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))
    ran = subprocess.run(
        [sys.executable, str(file), f"sqlite:///{tmp_path}/shop.db", method],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ran.stdout == "1 [('shop', 3)] False ['ada', 'bob', 'cy']\n", ran.stderr


def test_what_arrives_is_as_what_was_sent(tmp_path):
    """R30: every argument goes along; in the process that has the original, that is what arrives."""
    url = f"sqlite:///{tmp_path}/app.db"
    db = Database(url, name="shop", admission=Admission(max_waiting=3), replicas=[f"sqlite:///{tmp_path}/copy.db"])
    try:
        assert pickle.loads(pickle.dumps(db)) is db
        make, (_, *settings) = db.__reduce__()
        copy = make("of another process", *settings)
        try:
            assert type(copy) is Database
            assert repr(copy) == repr(db)
            assert copy.supply.gate.queue.admission == Admission(max_waiting=3)
            assert len(copy.supplies) == 2
            assert pickle.loads(pickle.dumps(copy)) is copy
        finally:
            copy.close()
        again = make("of another process", *settings)  # the one that was there is closed
        assert again is not copy
        again.close()
    finally:
        db.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Database(sa.create_engine("sqlite:///app.db")), "made from an engine"),
        (lambda: Database("sqlite:///app.db", replicas=[sa.create_engine("sqlite:///copy.db")]), "made from an engine"),
        (lambda: Database(url_or_engine=sa.create_engine("sqlite:///app.db")), "made from an engine"),
        (lambda: Database("sqlite://"), "in the memory of one process"),
    ],
    ids=["engine", "replica", "by name", "memory"],
)
def test_what_another_process_could_not_open(make, says):
    """R30: a database made from an engine, or in memory, is refused with the remedy."""
    db = make()
    try:
        with pytest.raises(NotPicklable, match=rf"{says}.* \[not-picklable\]") as caught:
            pickle.dumps(db)
    finally:
        db.close()

    assert isinstance(caught.value, TypeError)


def test_the_password_is_in_the_pickle_and_nowhere_else(tmp_path):
    """R30, R58: another process needs the password, so it goes along; no text shows it."""
    db = Database("postgresql+psycopg://app:s3cret@127.0.0.1:1/shop")
    try:
        sent = pickle.dumps(db)
        assert b"s3cret" in sent
        assert "s3cret" not in repr(pickle.loads(sent))
    finally:
        db.close()


def test_the_asynchronous_face(tmp_path):
    """R30: `AsyncDatabase` goes by the same rules."""
    db = AsyncDatabase(f"sqlite+aiosqlite:///{tmp_path}/app.db", name="shop", finish_within=3.0)
    _, (_, kind, args, options) = db.__reduce__()

    assert pickle.loads(pickle.dumps(db)) is db
    assert kind is AsyncDatabase
    assert args == (f"sqlite+aiosqlite:///{tmp_path}/app.db",)
    assert options == {"name": "shop", "finish_within": 3.0}
