"""SIGTERM while a request is stuck in its handler, in processes of their own: the market, and the recipe of the documentation."""

import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from urllib.request import urlopen

import pytest
import sqlalchemy as sa

from examples.load.process import ROOT

from support import servers

MARKET = """
import threading
from sqlalchemy import text
from examples.webpy import app as market

class Stuck:
    def GET(self, session):
        session.execute(text("UPDATE shop_account SET balance = 0"))
        print("stuck", flush=True)
        threading.Event().wait()

market.site.add_mapping("/stuck", Stuck)
market.main()
"""

RECIPE = """
import logging, sys, threading
from cheroot import wsgi
from sqlalchemy import text
from tenure import Database
from tenure.web.wsgi import UnitMiddleware

logging.basicConfig()
db = Database(sys.argv[1])

def app(environ, start_response):
    if environ["PATH_INFO"] == "/stuck":
        db.session.execute(text("UPDATE shop_account SET balance = 0"))
        print("stuck", flush=True)
        threading.Event().wait()
    start_response("200 OK", [])
    return [b"here"]

server = wsgi.Server(("127.0.0.1", 0), UnitMiddleware(app, db))
server.prepare()
with db.unit() as session:
    session.execute(text("CREATE TABLE shop_account (balance INT)"))
    session.execute(text("INSERT INTO shop_account VALUES (7)"))
print("http://{}:{}/".format(*server.bind_addr), flush=True)
serve(server.serve, server.stop, db, 2.0)
"""
TOTAL = "SELECT sum(balance) FROM shop_account"
BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure-shutdown'"  # the server may have other clients


def recipe():
    """The block ``serve.py`` of the page on shutdown, and a server that follows it."""
    page = (ROOT / "docs" / "how-to" / "shutdown.md").read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "# serve.py" in block)
    return "import threading\n" + block + textwrap.dedent(RECIPE)


@pytest.fixture(params=["sqlite", "psycopg"])
def url(request, tmp_path):
    try:
        made = servers.url(request.param, tmp_path)
    except servers.ServerMissingError as error:
        servers.give_up(error)
    yield made
    _ask(made, *(f"DROP TABLE IF EXISTS shop_{name}" for name in ("order", "job_run", "payment", "account")))


def _ask(url, *statements):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        results = [connection.execute(sa.text(one)) for one in statements]
        return [result.scalars().all() if result.returns_rows else [] for result in results][-1]


@pytest.mark.parametrize("program", [lambda: MARKET, recipe], ids=["market", "recipe"])
def test_sigterm_with_a_request_stuck_in_its_handler(url, program, tmp_path):
    """R31: it ends within its grace time, the stuck request is named with its line and rolled back, no backend is left."""
    file = tmp_path / "program.py"
    file.write_text(program())
    marked = url.update_query_dict({"application_name": "tenure-shutdown"}) if url.get_backend_name() == "postgresql" else url
    process = subprocess.Popen(
        [sys.executable, str(file), marked.render_as_string(hide_password=False)],
        env={**os.environ, "MARKET_GRACE": "2", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = process.stdout.readline().strip()
        assert address, process.stderr.read()
        before = _ask(url, TOTAL)
        request = threading.Thread(target=_ask_in_vain, args=(f"{address}stuck",))
        request.start()
        assert process.stdout.readline() == "stuck\n"
        assert marked is url or _ask(url, BACKENDS) != [0]
        process.terminate()
        began = time.monotonic()
        out, err = process.communicate(timeout=30)
        took = time.monotonic() - began
        request.join()
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0, err
    assert took < 6
    assert re.search(r"'GET /stuck' \(program\.py:\d+\) on 'main' was open .* at program\.py:\d+, .* \[drained-unit\]", err)
    assert _ask(url, TOTAL) == before
    if url.get_backend_name() == "postgresql":
        ends = time.monotonic() + 5  # the server takes a moment to notice
        while _ask(url, BACKENDS) != [0]:
            assert time.monotonic() < ends, out
            time.sleep(0.05)


def _ask_in_vain(address):
    with pytest.raises(OSError):
        urlopen(address, timeout=30).read()
