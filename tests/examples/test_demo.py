"""`make demo` as a user runs it, in processes of its own; and its account, which must be able to fail."""

import dataclasses
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from urllib.request import urlopen

import pytest
import sqlalchemy as sa
from rich.console import Console

from examples.load.account import Facts, Rows, broken
from examples.load.clients import ACTS, LEFT, Book, Ground
from examples.load.process import ROOT
from examples.load.run import Load
from examples.load.table import show

from support import servers

BANK = "ConnectionError: the bank has hung up"  # what every third run of a job says, however soon that is
MARKET = ("examples.watched", "webpy")


# --------------------------------------------------------------------------------------- as a user runs it


class Demo:
    """``python -m examples.load`` and what it prints."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.load"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def line(self) -> str:
        self.lines.append(self.process.stdout.readline())
        return self.lines[-1]

    def end(self) -> tuple[int, str]:
        rest, _ = self.process.communicate(timeout=60)
        logs = "".join(log.read_text() for log in self.folder.glob("demo-*.log"))  # kept by a run that went wrong
        return self.process.returncode, "".join(self.lines) + rest + logs


@pytest.fixture
def demo():
    """``demo(SECONDS="2")`` starts one. Its temporary files are in a folder that must be empty when it has ended."""
    started = []
    with tempfile.TemporaryDirectory(prefix="d-") as folder:  # short: a unix socket's path must be

        def start(**environment):
            started.append(Demo(Path(folder), **environment))
            return started[-1]

        yield start
        for one in started:
            one.process.kill()
            one.process.communicate()
        assert list(Path(folder).glob("tenure-*")) == []


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_nothing_is_lost_under_load(demo, database):
    """24 clients, some of whose requests fail in every way there is, and jobs: the account is right, and the status is 0."""
    status, text = demo(SECONDS="2", DB=database).end()

    assert status == 0, text
    assert re.match(r"http://127\.0\.0\.1:\d+/ on .*: 24 clients, for 2 s\n", text)
    assert "nothing was lost, mixed up or left out" in text
    assert all(act.name in text for act in ACTS)
    assert re.search(r"most connections out .* out now 0", text)
    assert re.search(
        r"waits for a connection *│ *(?:0 |[1-9][\d,]* *│ longest [\d.]+ ms)", text
    )  # five connections may be enough
    assert "Traceback" not in text


def test_it_is_ended_cleanly(demo):
    """Ctrl-C or SIGTERM at any time: no server is left, the table shows what happened so far, and the status is 0."""
    running = {number: demo(SECONDS="0") for number in (signal.SIGINT, signal.SIGTERM)}
    ports = []
    for number, one in running.items():
        ports.append(re.search(r":(\d+)/ on SQLite: 24 clients, until Ctrl-C", one.line()).group(1))
        one.line()
        one.process.send_signal(number)
    ended = [one.end() for one in running.values()]

    for (status, text), port in zip(ended, ports, strict=True):
        assert status == 0, text
        assert "nothing was lost, mixed up or left out" in text
        assert "Traceback" not in text
        with pytest.raises(OSError, match="refused"):
            urlopen(f"http://127.0.0.1:{port}/status", timeout=5)


def test_the_application_is_ended_cleanly(tmp_path):
    """The market by itself: it prints its address, serves, and ends on SIGTERM with status 0. Its one word is of the bank's."""
    started = subprocess.Popen(
        [sys.executable, "-m", "examples.webpy.app", f"sqlite:///{tmp_path / 'market.db'}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with urlopen(started.stdout.readline().strip(), timeout=10) as answer:
        page = answer.read().decode()
    started.terminate()
    out, err = started.communicate(timeout=30)

    assert started.returncode == 0, err
    assert "The market" in page
    assert out == ""
    assert {line for line in err.splitlines() if not line.startswith((" ", "Job ", "Traceback "))} <= {BANK}


def test_a_tampered_sum_is_noticed(demo, tmp_path):
    """The account is taken of the database, by a connection of its own: a coin that somebody adds is a red line and status 1."""
    file = tmp_path / "market.db"
    running = demo(SECONDS="1", DB=f"sqlite:///{file}")
    running.line()
    with sqlite3.connect(file, timeout=20) as connection:
        connection.execute("UPDATE shop_account SET balance = balance + 1 WHERE id = 7")
    connection.close()
    status, text = running.end()

    assert status == 1
    assert "Traceback" in text.partition("what the server wrote meanwhile")[2]
    assert "✗ the sum of all balances was 600,000 and is 600,001" in text
    assert "✗ half done: 1 accounts do not hold what their payments come to: 7" in text


def test_a_wrong_setting_is_refused(demo):
    """What it does not understand it says in one line, with status 2."""
    settings = {
        "SECONDS=soon": ("soon", ""),
        "DB: give": ("1", "nonsense"),
        "DB: a database in memory": ("1", "sqlite://"),
        "DB: sqlite\\+aiosqlite is a driver for asyncio": ("1", "sqlite+aiosqlite:///market.db"),
    }
    running = {line: demo(SECONDS=seconds, DB=database) for line, (seconds, database) in settings.items()}
    ended = {line: one.end() for line, one in running.items()}

    assert [status for status, _ in ended.values()] == [2, 2, 2, 2], ended
    assert all(re.fullmatch(rf"✗ {line}.*\n", text) for line, (_, text) in ended.items()), ended


# ---------------------------------------------------------------------------------------- killed in the middle


def test_a_killed_server_leaves_right_sums(tmp_path):
    """SIGKILL in mid-load: all that was acknowledged is stored, nothing of what was refused, no half of anything."""
    facts = _killed(sa.URL.create("sqlite", database=str(tmp_path / "market.db")), tmp_path)

    assert broken(facts) == []


def test_the_next_run_goes_on_where_one_was_killed(tmp_path, demo):
    """The same on PostgreSQL, which is one's own: ``DB=<URL>`` runs on it again, ships what was left, and keeps its rows."""
    url = _postgresql()
    try:
        facts = _killed(url, tmp_path)
        status, text = demo(SECONDS="1", DB=url.render_as_string(hide_password=False)).end()
    finally:
        _drop(url)

    assert broken(facts) == []
    assert status == 0, text


def _killed(url: sa.URL, folder: Path) -> Facts:
    with Load(MARKET, url, folder / "server.log") as load:
        load.start()
        _until(lambda: len(load.book.acknowledged) > 100)
        facts = load.end(whole=False, kill=True)
    assert facts.status == -signal.SIGKILL
    assert len(facts.rows.tokens) > 100
    return facts


def _until(true, patience=30.0):
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _postgresql() -> sa.URL:
    try:
        return servers.url("psycopg")
    except servers.ServerMissingError as error:
        servers.give_up(error)


def _drop(url):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for table in ("shop_order", "shop_job_run", "shop_payment", "shop_account"):
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))


# ------------------------------------------------------------------------------------ the account can fail


def sound() -> Facts:
    """A run in which every act occurred twice, once by a client that left where that is the act, and nothing went wrong."""
    book, rows, outcomes = Book(), Rows(accounts=2, opening=20, total=20), {}
    for number, act in enumerate(ACTS):
        answer = LEFT if act.leaves else str(act.answers[0])
        for token in (f"run-{number}-1", f"run-{number}-2"):
            book.note(act, answer, None if act.leaves else 0.01, token if act.writes else None)
            if act.writes and act.answers[0] < 400:
                rows.tokens[token] = "transfer" if act.name == "transfers" else "order"
        outcome = "rolled back" if act.answers[0] >= 400 else "committed" if act.writes else "read only"
        outcomes[act.name] = {outcome: 2}
    rows.job_runs = {"earlier": "report", "j1": "report"}
    report = {
        "status": {"name": "main", "capacity": 5, "in_use": 0, "idle": 5, "peak": 5, "waited": 3, "longest_wait": 0.1},
        "holders": [], "outcomes": outcomes, "troubles": {}, "returned": {"report": ["j1"]}, "raised": {},
    }  # fmt: skip
    return Facts(book, Ground(2, 20), Rows(job_runs={"earlier": "report"}), rows, report)


def shown(facts: Facts) -> tuple[int, str]:
    console = Console(file=StringIO(), width=130)
    return show(facts, console, "a run"), console.file.getvalue()


def test_a_sound_account_passes():
    """Where nothing is wrong the status is 0."""
    status, text = shown(sound())

    assert status == 0, text
    assert "✗" not in text


def _lose(facts):
    facts.rows.tokens.popitem()


def _leave_out_a_connection(facts):
    facts.report["status"]["in_use"] = 1
    facts.report["holders"] = [{"unit": "GET /accounts"}]


def _keep_a_failed_one(facts):
    facts.rows.tokens[min(facts.book.refused)] = "order"


def _turn_an_outcome(facts):
    facts.report["outcomes"]["orders"] = {"rolled back": 2}


def _lose_a_unit(facts):
    facts.report["outcomes"]["opens an account"] = {"read only": 1}


def _open_a_unit_too_many(facts):
    facts.report["outcomes"]["opens an account"] = {"read only": 3}


def _forget_an_act(facts):
    facts.book.answers["transfers"] = Counter()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (_lose, "lost: 1 acknowledged but not stored"),
        (lambda facts: facts.book.acknowledged.update(ghost="order"), "lost: 1 acknowledged but not stored: ghost"),
        (_keep_a_failed_one, "half done: 1 refused but stored"),
        (lambda facts: facts.rows.tokens.update(ghost="order"), "mixed up: 1 stored that nobody asked for: ghost"),
        (lambda facts: facts.rows.doubled.append("run-6-1"), "mixed up: 1 stored more than once: run-6-1"),
        (lambda facts: setattr(facts.rows, "total", 19), "the sum of all balances was 20 and is 19"),
        (lambda facts: facts.rows.crooked.append(2), "half done: 1 accounts do not hold what their payments come to: 2"),
        (lambda facts: setattr(facts.rows, "half_orders", 1), "half done: 1 paid orders are not there"),
        (lambda facts: setattr(facts.rows, "unshipped", 1), "left out: 1 orders were not shipped"),
        (lambda facts: facts.book.wrong(ACTS[0], "a sum of 19"), "mixed up: 1 answers, such as reads all balances: a sum of 19"),
        (
            lambda facts: facts.book.note(ACTS[0], "500", 0.01),
            "1 answers are not what was to be expected: reads all balances: 500",
        ),
        (lambda facts: facts.book.note(ACTS[0], "no answer"), "left out: 1 requests were not answered"),
        (_forget_an_act, "left out: nobody transfers"),
        (_leave_out_a_connection, "1 connections are still out: GET /accounts"),
        (_turn_an_outcome, "left out or mixed up: orders:"),
        (_lose_a_unit, "left out or mixed up: opens an account:"),
        (_open_a_unit_too_many, "left out or mixed up: opens an account:"),
        (lambda facts: facts.report["outcomes"]["orders"].update(unknown=1), "1 units have an outcome that nobody knows"),
        (lambda facts: facts.report["troubles"].update(UnitLeaked=1), "tenure told of UnitLeaked 1 times"),
        (lambda facts: facts.rows.job_runs.pop("j1"), "lost: 1 runs of jobs returned, but their rows are not stored"),
        (
            lambda facts: facts.rows.job_runs.update(j2="rates"),
            "half done: 1 runs of jobs did not return, but their rows are stored",
        ),
        (lambda facts: setattr(facts, "status", -9), "the server ended with status -9"),
        (lambda facts: setattr(facts, "report", None), "without a last word"),
        (lambda facts: setattr(facts, "gone", True), "the server ended by itself"),
    ],
)
def test_a_broken_promise_is_a_red_line_and_status_1(spoil, line):
    """Each thing that may go wrong, put into an account that is sound: the status is 1, and a line says what it was."""
    facts = sound()
    spoil(facts)
    status, text = shown(facts)

    assert status == 1
    assert f"✗ {line}" in text or line in text.partition("✗")[2]


def test_an_interrupted_run_need_not_be_whole():
    """Ctrl-C early, and to the server as well: an act that did not occur and a request without an answer are no fault then."""
    facts = dataclasses.replace(sound(), whole=False, interrupted=True, gone=True)
    _forget_an_act(facts)
    facts.report["outcomes"].pop("transfers")
    facts.book.note(ACTS[0], "no answer")

    assert broken(facts) == []
