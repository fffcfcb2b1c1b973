"""The shop on every host, as `make demo HOST=...` runs it, and the table of them all, which must be able to fail."""

import os
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console

from examples.hosts import DEFAULT, HOSTS
from examples.load.account import Facts, Rows, broken
from examples.load.clients import ACTS, LEFT, Book, Ground
from examples.load.compare import compare
from examples.load.process import ROOT
from examples.load.run import Load

EXAMPLES = Path(ROOT) / "examples"


def started(folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "examples.load"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(folder), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(running, folder):
    text, _ = running.communicate(timeout=60)
    return running.returncode, text + "".join(log.read_text() for log in folder.glob("demo-*.log"))


def test_every_shop_is_a_host():
    """R22: whoever adds a host under examples/ adds it to the table as well."""
    shops = {app.parent.name for app in EXAMPLES.glob("*/app.py") if "examples.shop" in app.read_text()}

    assert shops == HOSTS.keys()


@pytest.mark.parametrize("host", [host for host in HOSTS if host != DEFAULT])  # test_demo.py is about that one
def test_nothing_is_lost(host, tmp_path):
    """R22: on each host the same acts have the same answers and outcomes, and the account of them is right."""
    url, log = sa.URL.create("sqlite", database=str(tmp_path / "market.db")), tmp_path / "server.log"
    with Load(("examples.watched", host), url, log) as load:
        load.start()
        while load.server.runs and not load.is_enough(0.5):
            time.sleep(0.05)
        facts = load.end()

    assert broken(facts) == [], log.read_text()


def test_one_that_is_named(tmp_path):
    """`HOST=` says on which host: the lines and the table are those of any other run, and name it."""
    status, text = end(started(tmp_path, HOST="fastapi", SECONDS="0.5"), tmp_path)

    assert status == 0, text
    assert " on FastAPI, SQLite: 24 clients, for 0.5 s" in text
    assert "24 clients on FastAPI, SQLite: " in text
    assert "nothing was lost, mixed up or left out" in text
    assert all(act.name in text for act in ACTS)


def test_ctrl_c_ends_all(tmp_path):
    """Ctrl-C while one host after another is asked: the table shows those that were, and the status is 0."""
    running = started(tmp_path, HOST="all", SECONDS="0")
    running.stdout.readline()
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    status, text = end(running, tmp_path)

    assert status == 0, text
    assert re.search(r"✓ web\.py +cheroot", text)
    assert "nothing was lost, mixed up or left out on one host" in text
    assert "Flask" not in text


def test_a_host_that_is_not_there_is_refused(tmp_path):
    """A name that it does not know is answered with those that it does, in one line, with status 2."""
    status, text = end(started(tmp_path, HOST="django"), tmp_path)

    assert status == 2
    assert text == f"✗ HOST=django: give {', '.join(HOSTS)}, or all.\n"


# -------------------------------------------------------------------------------------------- the table


def sound():
    """A run in which every act occurred once, and nothing went wrong."""
    book, rows, outcomes = Book(), Rows(accounts=2, opening=20, total=20, job_runs={"j": "report"}), {}
    for number, act in enumerate(ACTS):
        token, answer = f"run-{number}", act.answers[0]
        book.note(act, LEFT if act.leaves else str(answer), None if act.leaves else 0.01, token if act.writes else None)
        if act.writes and answer < 400:
            rows.tokens[token] = "transfer" if act.name == "transfers" else "order"
        outcomes[act.name] = {"rolled back" if answer >= 400 else "committed" if act.writes else "read only": 1}
    report = {
        "status": {"capacity": 5, "in_use": 0, "peak": 4},
        "holders": [], "outcomes": outcomes, "troubles": {}, "returned": {"report": ["j"]}, "raised": {},
    }  # fmt: skip
    return Facts(book, Ground(2, 20), Rows(), rows, report, took=2.0)


def shown(found):
    console = Console(file=StringIO(), width=80)
    return compare(found, console, "a run"), console.file.getvalue()


def test_the_table_shows_every_host():
    """A line for each host: requests, outcomes, what was acknowledged and stored, balances, connections, times."""
    status, text = shown({"webpy": sound(), "flask": sound()})
    lines = [line.split() for line in text.splitlines() if line.startswith("✓ ")]

    assert status == 0, text
    assert lines[0][1:] == ["web.py", "cheroot", "14", "7", "3", "6", "5", "2", "2", "4", "0", "20", "4", "0", "10.0", "10.0"]
    assert lines[1][1] == "Flask"
    assert "✓ nothing was lost, mixed up or left out on any of 2 hosts" in text


def test_a_broken_promise_on_one_host_is_a_red_line_and_status_1():
    """What one host lost is named with it, and so is one that did not start; the others stand as they are."""
    lost = sound()
    del lost.rows.tokens[min(lost.book.acknowledged)]
    status, text = shown({"webpy": sound(), "flask": lost, "quart": "the server did not start"})

    assert status == 1
    assert re.search(r"^✓ web\.py .*^✗ Flask .*^✗ Quart ", text, re.DOTALL | re.MULTILINE)
    assert "✗ Flask: lost: 1 acknowledged but not stored: run-" in text
    assert "✗ Quart: the server did not start" in text
