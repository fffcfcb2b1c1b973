"""Executors: threads and processes whose functions have a unit each."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from sqlalchemy import text
from tenure import Database

db = Database(sys.argv[1], pool_size=2, max_overflow=0)

@db.unit
def keep(session, number):
    session.execute(text("INSERT INTO users (name, balance) VALUES (:name, 0)"), {"name": f"user {number}"})
    if number % 2:
        raise LookupError(number)
    return db.current.name

if __name__ == "__main__":
    with db.unit() as session:  # the parent has used its pool before the processes are made
        session.execute(text("SELECT 1"))
    with ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[2])) as pool:
        done = [pool.submit(keep, number) for number in range(10)]
    with db.unit() as session:
        rows = session.scalar(text("SELECT count(*) FROM users"))
    print(sorted({repr(one.exception()) if one.exception() else one.result() for one in done}), rows)
    db.close()
"""


@pytest.mark.drivers("sqlite", "psycopg", "pymysql")
def test_a_process_pool(driver, url, tmp_path):
    """R23, R30: decorated functions go to forked processes by their names; each call is a unit, and half of them fail."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, str(file), url.render_as_string(hide_password=False), "fork"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (ran.stdout, ran.stderr) == (
        "['LookupError(1)', 'LookupError(3)', 'LookupError(5)', 'LookupError(7)', 'LookupError(9)', 'keep'] 5\n",
        "",
    )
