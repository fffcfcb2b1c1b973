"""gevent and eventlet, each in an interpreter of its own: their patches must not reach the tests' process."""

import http.client
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from support import servers
from support.http import fetch

HERE = Path(__file__).parent
LIBRARIES = pytest.mark.parametrize("library", ["gevent", "eventlet"])
BOTH = {"PSYCOPG_WAIT_FUNC": "wait_selector"}  # psycopg looks for gevent's patches by itself, for eventlet's it does not


@pytest.fixture
def begin(library, tmp_path):
    """``begin(program, driver)`` starts a program under *library*; the address of its empty database is ``begin.url``."""
    if importlib.util.find_spec(library) is None:  # not by importing it: eventlet then warns of every fork of this process
        (pytest.fail if servers.required() else pytest.skip)(f"{library} is not installed. Install the dependency group 'test'.")
    started = []

    def start(program, name, **environment):
        driver = "psycopg" if name == "psycopg2" else name  # no test but these runs on it
        try:
            start.url = servers.url(driver, tmp_path)
        except servers.ServerMissingError as error:
            servers.give_up(error)
        servers.clean(driver)
        url = start.url.set(drivername="postgresql+psycopg2") if name == "psycopg2" else start.url
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(program), library, url.render_as_string(hide_password=False)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process):
    out, err = process.communicate(timeout=60)
    assert out, err
    return json.loads(out), err


@LIBRARIES
@pytest.mark.drivers("psycopg", "pymysql")
def test_fifty_greenlets_on_a_pool_of_five(begin, library, driver):
    """R29: each greenlet has its own unit; those killed in a query, in the queue and in COMMIT, or timed out, store nothing, and their
    backends are not used again; waiting yields to others; 0 are out.
    """  # fmt: skip
    check_fifty(*said(begin(HERE / "units.py", driver, **BOTH)))


@LIBRARIES
def test_fifty_greenlets_on_psycopg2(begin, library):
    """R29: the same with psycopg2, which yields by a wait callback: psycogreen's for gevent, eventlet's own."""
    check_fifty(*said(begin(HERE / "units.py", "psycopg2")))


def check_fifty(found, err):
    assert found["foreign"] == []
    assert found["sessions"] == 50
    assert found["ticks"] > 10
    assert found["after kills"] == [0, 10, 0]
    assert found["stored"] == [40, []]
    assert found["timeout"] == ["rolled back", "tenure: the unit was rolled back when this was raised."]
    assert re.fullmatch(r"greenlet '.+'", found["holder"])
    assert found["line"].startswith("units.py:")
    assert found["late"] == 0
    assert found["end"] == [0, 0, 1, 5, 0, 0]
    assert found["no unit"].startswith("no unit of 'main' is open in thread 'MainThread' (units.py:")
    assert "greenlets-blocked" not in err
    assert err.count("[leaked-unit]") == 5


@LIBRARIES
def test_flask_and_webpy_on_the_librarys_own_server(begin, library):
    """R29, R22: 100 requests at once on a pool of 5: each its own session, the table of outcomes as on every server, nothing left."""
    process = begin(HERE / "served.py", "psycopg", **BOTH)
    ports = json.loads(process.stdout.readline() or process.communicate()[1])
    kinds = ["keep", "refuse", "raise", "redirect", "stream"]

    def ask(asked):
        port, kind, number = asked
        answer = fetch(("127.0.0.1", port), f"/{kind}/{number}")
        return kind, answer.status, answer.text

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(ask, [(port, kind, number) for port in ports for kind in kinds for number in range(20)]))
    with sa.create_engine(begin.url, poolclass=sa.NullPool).connect() as connection:
        names = connection.scalars(sa.text("SELECT name FROM users")).all()

    assert {(kind, status) for kind, status, _ in answers} == {
        ("keep", 200), ("refuse", 400), ("raise", 500), ("redirect", 303), ("stream", 200),
    }  # fmt: skip
    assert {text for kind, _, text in answers if kind == "stream"} == {"1\n1\n1\n"}
    stored = sorted(
        f"{app} {kind} {number}" for app in ("flask", "webpy") for kind in ("keep", "redirect") for number in range(20)
    )
    assert sorted(names) == stored
    for port in ports:
        _keep_alive(port)
        in_use, waiting, peak, acquired, found_open = json.loads(fetch(("127.0.0.1", port), "/status/x").text)
        assert (in_use, waiting, peak, found_open) == (0, 0, 5, [])
        assert acquired >= 80


@LIBRARIES
def test_the_contract_of_the_web_hosts(begin, library):
    """R29, R22: every probe of the contract, put to Flask and web.py on the library's own server, in an interpreter that it has patched."""
    process = begin(HERE / "probed.py", "psycopg", **BOTH)
    out, err = process.communicate(timeout=100)
    passed = re.search(r"^(\d+) passed, \d+ skipped", out, re.MULTILINE)

    assert process.returncode == 0, out + err
    assert passed, out
    assert int(passed[1]) >= 60


def _keep_alive(port):
    """Requests one after another on one connection, which pywsgi serves in one greenlet."""
    client = http.client.HTTPConnection("127.0.0.1", port)
    for number in range(3):
        client.request("GET", f"/keep/alive{number}")
        assert client.getresponse().read() == b"keep"
    client.close()


STOPPED = """
import sys
from gevent import monkey; monkey.patch_all()
import gevent
from sqlalchemy import text
from tenure import Database
from tenure.engines import pipeline

pipeline.pays = lambda driver: True  # on a unix socket, too
db = Database(sys.argv[2], pool_size=1, max_overflow=0)

@db.unit
def slow(session, name):
    session.execute(text("INSERT INTO users (name, balance) SELECT :name, 0 FROM pg_sleep(20)"), {"name": name})

try:
    with gevent.Timeout(0.2):
        slow("eve")
except gevent.Timeout as error:
    print(error.tenure_outcome.value)
with db.unit() as session:
    print(session.scalar(text("SELECT count(*) FROM users")), db.status().in_use)
db.close()
"""


@pytest.mark.parametrize("library", ["gevent"])
def test_a_timeout_in_the_first_statement_is_a_timeout(begin, library, tmp_path):
    """R29: gevent's Timeout while the answer to BEGIN and the first statement is awaited is raised as itself; the unit is rolled back."""
    program = tmp_path / "program.py"
    program.write_text(STOPPED)
    out, err = begin(program, "psycopg").communicate(timeout=60)

    assert out.split("\n")[:2] == ["rolled back", "0 1"], err


UNPATCHED = """
import logging, sys
logging.basicConfig()
library = __import__(sys.argv[1])
from sqlalchemy import text
from tenure import Database

if library.__name__ == "eventlet" and "sqlite" not in sys.argv[2]:
    library.monkey_patch()
db = Database(sys.argv[2], pool_size=2)

def work():
    with db.unit() as session:
        session.execute(text("DELETE FROM users"))

work()  # in the main greenlet nothing is said
for one in [library.spawn(work) for _ in range(3)]:
    (one.join if hasattr(one, "join") else one.wait)()
"""


ON_SQLITE = (
    "threading, socket and select not patched; pysqlite waits in C. Call gevent.monkey.patch_all() before anything else is imported."
    " Wait for nothing while a transaction is open, or use a server."
)
UNPATCHED_AND = "threading, socket and select not patched; {} Call gevent.monkey.patch_all() before anything else is imported. {}"
TOO_LATE = UNPATCHED_AND.format("psycopg waits in C.", "Patch before psycopg is imported.")
ON_PSYCOPG2 = UNPATCHED_AND.format("psycopg2 waits in C.", "Give it a wait callback (psycogreen), or use psycopg.")
ON_PSYCOPG = "psycopg waits in C. Set PSYCOPG_WAIT_FUNC=wait_selector in the environment."


@pytest.mark.parametrize(
    ("library", "server", "says"),
    [
        ("gevent", "sqlite", ON_SQLITE),
        ("gevent", "psycopg", TOO_LATE),
        ("gevent", "psycopg2", ON_PSYCOPG2),
        ("eventlet", "psycopg", ON_PSYCOPG),
    ],
    ids=["sqlite", "psycopg-gevent", "psycopg2", "psycopg-eventlet"],
)
def test_what_blocks_is_named_once(begin, library, server, says, tmp_path):
    """R29: what is not patched, and a driver that blocks, are named in one warning, with the remedy."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(UNPATCHED))
    process = begin(program, server)
    err = process.communicate(timeout=60)[1]

    assert process.returncode == 0, err
    (line,) = [line for line in err.splitlines() if "greenlets-blocked" in line]
    expected = rf"units of 'main' run in greenlets of {library} \(program\.py:\d+\), and one that waits stops all others: {re.escape(says)}"
    assert re.fullmatch(rf"WARNING:tenure:tenure: {expected} \[greenlets-blocked\]", line)
