"""`make cluster` as a user runs it, in processes of its own; and its account, which must be able to fail."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console

from examples.cluster import account, settings
from examples.cluster.account import Facts, Rows, Run
from examples.cluster.clients import Book
from examples.cluster.ledger import Ledger
from examples.cluster.models import Base, Customer, Order, Receipt
from examples.cluster.table import show
from tenure import Database

from support import brokers, servers
from support.workers import told_of

ROOT = Path(__file__).parents[2]


class Cluster:
    """``python -m examples.cluster`` and what it prints."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.cluster"],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(folder), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.said = ""

    def until(self, line: str, times: int = 1) -> None:
        """Read until *line* has come so often."""
        while self.said.count(line) < times:
            read = self.process.stdout.readline()
            assert read, self.said
            self.said += read

    def end(self) -> tuple[int, str]:
        rest, _ = self.process.communicate(timeout=100)
        return self.process.returncode, self.said + rest


@pytest.fixture
def cluster():
    """``cluster(SECONDS="2")`` starts one. When it has ended nothing is left of it: no process, and no file."""
    started = []
    with tempfile.TemporaryDirectory(prefix="c-") as folder:  # short: a unix socket's path must be
        Path(folder).chmod(0o755)  # PostgreSQL is not root

        def start(**environment):
            started.append(Cluster(Path(folder), **environment))
            return started[-1]

        yield start
        for one in started:
            one.process.terminate()
            one.process.terminate()
            one.process.communicate(timeout=30)
        files = [one for one in Path(folder).iterdir() if one.name != ".lockfile"]  # of the package that brings PostgreSQL
        assert (told_of(Path(folder)), files) == ([], [])


def _servers():
    """The address of RabbitMQ; PgBouncer is installed."""
    if shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        remedy = "Install it (Debian: apt-get install pgbouncer)."
        servers.give_up(servers.ServerMissingError("PgBouncer", "the program pgbouncer is not installed", remedy))
    return brokers.found("RabbitMQ")


def test_the_account_is_right_when_it_is_interrupted(cluster):
    """R27: with workers, relays, schedulers and web processes killed at random, until Ctrl-C: each order is mailed, once in effect."""
    running = cluster(SECONDS="0", SEED="7", AMQP=_servers())
    running.until(" s  killed: ", times=3)
    running.process.send_signal(signal.SIGINT)
    status, text = running.end()

    assert status == 0, text
    assert "nothing was lost, done twice or left out" in text
    assert text.startswith("seed 7: ")
    assert re.search(r"killed: .* \W \d", text)
    assert re.search(r"[1-9]\d* taken, [1-9]\d* refused", text)
    assert re.search(r"to PgBouncer, for the primary .* 20 │ +\d+ │", text)
    assert "Traceback" not in text


def test_it_is_ended_before_it_began(cluster):
    """SIGTERM while it starts: it says so, and leaves nothing."""
    running = cluster(AMQP=_servers())
    running.until("PgBouncer between")
    running.process.terminate()
    status, text = running.end()

    assert status == 2, text
    assert text.endswith("✗ interrupted before it began\n")


def test_a_wrong_setting_is_refused(cluster):
    """What it does not understand, or cannot reach, it says in one line, with status 2 and no password."""
    asked = {
        "SECONDS=soon: give a number of seconds": {"SECONDS": "soon"},
        "SEED=x: give a number": {"SEED": "x"},
        "KILL=web cat: give some of worker relay scheduler web": {"KILL": "web cat"},
        r"RabbitMQ does not answer at amqp://me:\*\*@127.0.0.1:1//": {"AMQP": "amqp://me:secret@127.0.0.1:1//"},
    }
    running = {line: cluster(**environment) for line, environment in asked.items()}
    ended = {line: one.end() for line, one in running.items()}

    assert [status for status, _ in ended.values()] == [2, 2, 2, 2], ended
    assert all(re.search(rf"^✗ {line}.*\n\Z", text, re.MULTILINE) for line, (_, text) in ended.items()), ended
    assert "secret" not in str(ended)


# ------------------------------------------------------------------------------------ the account can fail


def sound() -> Facts:
    """A run of two orders, one of which was mailed twice, and of four nights, one of which was begun twice. Nothing went wrong."""
    nights = [Run(100.0 + number * settings.EVERY, "north", "north scheduler 4") for number in range(4)]
    return Facts(
        book=Book(acknowledged={"a": 1, "b": 2}, refused={"c"}, reads=Counter(standby=1, primary=1), again=Counter({"no answer": 1})),
        rows=Rows(
            orders={"a": 1, "b": 2}, ordered=Counter({1: 2}), points=Counter({1: 2, 3: 0}), receipts={1, 2}, nights=nights
        ),
        mails=Counter({1: 1, 2: 2}),
        begun=[*nights, Run(nights[2].tick, "south", "south scheduler 3")],
        ends=[{"process": f"process {number}", "role": "web", "out": 0, "peak": 3} for number in range(10)],
        statuses={"north web": 0, "south web": 0},
        killed=Counter(scheduler=1),
        dead={"south scheduler 3"},
        most=Counter({"shop clients": 20, "standby clients": 8, "shop servers": 8, "standby servers": 4}),
        left=Counter({"shop clients": 0}),
        ended=nights[-1].tick + settings.EVERY,
        took=4.0,
    )  # fmt: skip


def shown(facts: Facts) -> tuple[int, str]:
    console = Console(file=StringIO(), width=150)
    return show(facts, console), console.file.getvalue()


def test_a_sound_account_passes():
    """Where nothing is wrong the status is 0, and the table of the nights shows who was killed in one."""
    status, text = shown(sound())

    assert status == 0, text
    assert "south✗ north" in text
    assert "3 mails for 2 orders, 1 of them again" in text
    assert "3 in one process" in text


def _run_twice(facts):
    facts.rows.nights.insert(1, facts.rows.nights[0]._replace(node="south", process="south scheduler 5"))


def _miss_a_night(facts):
    del facts.rows.nights[1]


def _miss_the_last(facts):
    facts.ended += 2 * settings.EVERY


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda facts: facts.book.open.add("d"), "every order was answered in the end: 1 were not"),
        (lambda facts: facts.book.acknowledged.clear(), "there are none"),
        (lambda facts: facts.rows.orders.pop("a"), "1 were taken and are not stored: a"),
        (lambda facts: facts.rows.orders.update(b=7), "1 were taken and are not stored: b"),
        (lambda facts: facts.rows.orders.update(c=3), "1 were refused and are stored: c"),
        (lambda facts: facts.rows.orders.update(x=4), "1 are stored that nobody sent: x"),
        (lambda facts: facts.book.unseen.append(2), "1 were not seen: 2"),
        (lambda facts: facts.book.reads.pop("standby"), "none was read on the standby"),
        (lambda facts: facts.mails.pop(2), "every order was mailed, at least once: 1 orders were not: 2"),
        (lambda facts: facts.mails.update([9]), "1 mails are about orders that are not stored: 9"),
        (lambda facts: facts.rows.receipts.remove(1), "exactly once in effect: 1 orders have no receipt: 1"),
        (lambda facts: facts.rows.receipts.add(9), "1 receipts are of no order: 9"),
        (lambda facts: facts.rows.points.update([1]), "1 customers have not one point for each order: 1"),
        (lambda facts: setattr(facts.rows, "pending", 2), "no message waits, and none was given up: 2 wait"),
        (lambda facts: setattr(facts, "queued", 3), "3 wait"),
        (lambda facts: setattr(facts.rows, "dead", 1), "1 were given up"),
        (_run_twice, "the nightly job ran once in each tick: 1 ran twice: 100.0"),
        (_miss_a_night, "none ran after 100.0"),
        (_miss_the_last, f"none ran after {100.0 + 3 * settings.EVERY}"),
        (lambda facts: facts.rows.nights.clear(), "it never ran"),
        (
            lambda facts: facts.most.update(["shop clients"]),
            "never more connections than were reckoned with: shop clients: 21 of 20",
        ),
        (lambda facts: facts.ends[3].update(out=1), "no connection is out: out at the end: process 3: 1"),
        (lambda facts: facts.left.update(["shop clients"]), "left when all had ended: shop clients: 1"),
        (lambda facts: facts.statuses.update({"south web": None}), "some had ended before: south web"),
        (lambda facts: facts.statuses.update({"south web": -9}), "some with another status than 0: south web: -9"),
        (lambda facts: facts.ends.pop(), "1 processes had no last word"),
    ],
)
def test_a_broken_promise_is_a_red_line_and_status_1(spoil, line):
    """Each thing that may go wrong, put into an account that is sound: the status is 1, and a line says what it was."""
    facts = sound()
    spoil(facts)
    status, text = shown(facts)

    assert status == 1
    assert line in text.partition("\n✗ ")[2]


def test_what_nobody_can_help_is_no_fault():
    """A tick in which the database was away is not missed, and one whose process died before it could say that it has run comes again."""
    away = sound()
    _miss_a_night(away)
    away.outages = [(100.5, 102.0)]
    died = sound()
    _run_twice(died)
    died.dead.add("north scheduler 4")

    assert [shown(facts)[0] for facts in (away, died)] == [0, 0]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path):
    """The ledger is read while others write: each line once, and none by halves."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    seen = []
    for part in ('{"what": "mail", "order": 1}\n{"what": "ma', 'il", "order": 2}', "\n"):
        with ledger.path.open("a") as file:
            file.write(part)
        seen.append([line["order"] for line in ledger.lines("mail")])

    assert seen == [[1], [1], [1, 2]]


@pytest.fixture
def db():
    """An empty database with the cluster's tables."""
    name = f"cluster_{os.getpid()}_{time.monotonic_ns()}"
    base = servers.found("postgresql").base
    admin = sa.create_engine(base, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        made = Database(base.set(database=name))
        Base.metadata.create_all(made.engine)
        yield made
        made.close()
        connection.exec_driver_sql(f"DROP DATABASE {name}")


def test_a_receipt_that_is_gone_is_noticed(db):
    """The account is taken of what is stored: a receipt that somebody deletes is a red line."""
    with db.unit() as session:
        session.add_all([Customer(id=1, points=2), Customer(id=2)])
        session.flush()
        session.add_all([Order(id=number, token=token, customer_id=1, item="tea") for token, number in (("a", 1), ("b", 2))])
        session.flush()
        session.add_all([Receipt(order_id=1), Receipt(order_id=2)])
    facts = sound()
    nights = facts.rows.nights

    def taken():
        facts.rows = account.read(db)
        facts.rows.nights = nights
        return shown(facts)

    before = taken()
    with db.unit() as session:
        session.execute(sa.delete(Receipt).where(Receipt.order_id == 2))
    after = taken()

    assert before[0] == 0, before[1]
    assert after[0] == 1
    assert "✗ and exactly once in effect: 1 orders have no receipt: 2" in after[1]
