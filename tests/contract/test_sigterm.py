"""SIGTERM while requests are under way, to real servers in processes of their own. For cheroot see tests/examples/test_shutdown.py."""

import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from support import http
from support.face import PATIENCE

ROOT = Path(__file__).parents[2]
MARK = "tenure-sigterm"
INSERT = 'text("INSERT INTO users (name, balance) VALUES (:name, 0)"), {"name": name}'

ASGI = f"""
import asyncio, os
from sqlalchemy import text
from tenure import AsyncDatabase
from tenure.web.asgi import UnitMiddleware

db = AsyncDatabase(os.environ["SHOP"])

async def shop(scope, receive, send):
    assert scope["type"] == "http"
    name = scope["path"]
    await db.session.execute({INSERT})
    await asyncio.sleep(0.02)
    await send({{"type": "http.response.start", "status": 201, "headers": []}})
    await send({{"type": "http.response.body", "body": b""}})

app = UnitMiddleware(shop, db, close=5.0)
"""

WSGI = f"""
import os, time
from sqlalchemy import text
from tenure import Database
from tenure.web.wsgi import UnitMiddleware

db = Database(os.environ["SHOP"])

def shop(environ, start_response):
    name = environ["PATH_INFO"]
    db.session.execute({INSERT})
    time.sleep(0.02)
    start_response("201 Created", [])
    return [b""]

app = UnitMiddleware(shop, db)
"""

AIOHTTP = f"""
import asyncio, os, socket, sys
from aiohttp import web
from sqlalchemy import text
from tenure import AsyncDatabase
from tenure.web.aiohttp import middleware

async def shop(request):
    name = request.path
    await db.session.execute({INSERT})
    await asyncio.sleep(0.02)
    return web.Response(status=201)

db = AsyncDatabase(os.environ["SHOP"])
units = middleware(db)
app = web.Application(middlewares=[units])
app.cleanup_ctx.append(units.closing)
app.router.add_route("*", "/{{name}}", shop)
web.run_app(app, sock=socket.socket(fileno=int(sys.argv[1])), print=None)
"""


def gunicorn_conf():
    """The block of the page on shutdown."""
    page = (ROOT / "docs" / "how-to" / "shutdown.md").read_text()
    block = next(block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "def post_worker_init" in block)
    return "import logging, os, signal, threading\n" + block


@pytest.mark.drivers("asyncpg")
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "aiohttp"])
def test_sigterm_to_an_event_loop_under_load(url, driver, tmp_path, server):
    """R31: what was answered is stored, what was not is not there, and no backend is left on the server."""
    (tmp_path / "shop.py").write_text(AIOHTTP if server == "aiohttp" else ASGI)
    commands = {
        "uvicorn": ["-m", "uvicorn", "shop:app", "--fd", "{}", "--log-level", "warning"],
        "hypercorn": ["-m", "hypercorn", "shop:app", "--bind", "fd://{}", "--graceful-timeout", "5"],
        "aiohttp": ["shop.py", "{}"],
    }
    answered, stored, said = _terminated(commands[server], url, tmp_path)

    assert answered == stored, said


@pytest.mark.drivers("psycopg")
def test_sigterm_to_gunicorn_under_load(url, driver, tmp_path):
    """R31: with the documented hook; a COMMIT whose answer does not get through any more may be among the last."""
    (tmp_path / "shop.py").write_text(WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(gunicorn_conf())
    command = ["-m", "gunicorn", "shop:app", "--bind", "fd://{}", "--threads", "8", "--log-level", "warning"]
    answered, stored, said = _terminated(command, url, tmp_path)

    assert answered <= stored, said
    assert len(stored - answered) <= 8


def _terminated(command, url, folder):
    """What 8 clients were told is stored, what is stored, and what the server has said."""
    plain = url.set(drivername="postgresql+psycopg")
    marked = url.update_query_dict({"application_name": MARK}) if "psycopg" in url.drivername else url
    answered, numbers = set(), itertools.count()
    enough, over = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        process = subprocess.Popen(
            [sys.executable, *(one.format(listening.fileno()) for one in command)],
            env={**os.environ, "SHOP": marked.render_as_string(hide_password=False), "PGAPPNAME": MARK,
                 "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=[listening.fileno()],
        )  # fmt: skip
        address = listening.getsockname()

    def ask():
        while not over.is_set():
            name = f"/{next(numbers)}"
            try:
                if http.fetch(address, name, "POST").status == 201:
                    answered.add(name)
            except (OSError, IndexError):  # nobody there any more, or gone without an answer
                return
            if len(answered) >= 40:
                enough.set()

    clients = [threading.Thread(target=ask) for _ in range(8)]
    try:
        for client in clients:
            client.start()
        assert enough.wait(3 * PATIENCE), process.poll()
        began = time.monotonic()
        process.terminate()
        said, _ = process.communicate(timeout=3 * PATIENCE)
        assert time.monotonic() - began < 1.5 * PATIENCE, said
    finally:
        over.set()
        process.kill()
        process.wait()
        for client in clients:
            client.join()
    engine = sa.create_engine(plain, poolclass=sa.NullPool)
    with engine.connect() as connection:
        ends = time.monotonic() + PATIENCE  # the server takes a moment to notice
        while connection.scalar(sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{MARK}'")):
            assert time.monotonic() < ends, said
            time.sleep(0.02)
            connection.rollback()
        stored = set(connection.scalars(sa.text("SELECT name FROM users")))
    return answered, stored, said
