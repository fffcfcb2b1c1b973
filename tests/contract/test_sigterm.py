"""SIGTERM while requests are under way, to real servers in processes of their own. For stuck ones see tests/examples/test_shutdown.py."""

import itertools
import os
import re
import signal
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
LONGEST = 6.0
"""Seconds that a server may take to end; each is given five or fewer for what is under way."""
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
# A connection of the moment of the signal is served no more, and below Python 3.12 closed only after this time.
web.run_app(app, sock=socket.socket(fileno=int(sys.argv[1])), print=None, shutdown_timeout=2.0)
"""

LITESTAR = f"""
import asyncio, os
from litestar import Litestar, post
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from tenure import AsyncDatabase
from tenure.web.litestar import TenurePlugin

db = AsyncDatabase(os.environ["SHOP"])

@post("/{{number:str}}")
async def shop(number: str, db_session: AsyncSession) -> None:
    name = f"/{{number}}"
    await db_session.execute({INSERT})
    await asyncio.sleep(0.02)

app = Litestar([shop], plugins=[TenurePlugin(db, close=5.0)])
"""

SANIC = f"""
import asyncio, os, socket, sys
import sanic
from sqlalchemy import text
from tenure import AsyncDatabase
from tenure.web.sanic import Tenure

app = sanic.Sanic("shop")
db = AsyncDatabase(os.environ["SHOP"])
Tenure(app, db, close=5.0)

@app.post("/<number>")
async def shop(request, number):
    name = request.path
    await db.session.execute({INSERT})
    await asyncio.sleep(0.02)
    return sanic.empty(201)

app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 5.0
app.run(sock=socket.socket(fileno=int(sys.argv[1])), single_process=True, motd=False, access_log=False)
"""


WEBPY = f"""
import os, time, web
from sqlalchemy import text
from tenure import Database
from tenure.web.webpy import processor

db = Database(os.environ["SHOP"])

class Shop:
    def POST(self, name, session):
        session.execute({INSERT})
        time.sleep(0.02)
        raise web.created()

app = web.application(("(/.*)", "Shop"), globals())
app.add_processor(processor(db))
"""

BY_RECIPE = {
    "cheroot": WSGI + """
from cheroot import wsgi
server = wsgi.Server(("127.0.0.1", 0), app, request_queue_size=256)
server.prepare()
print(server.bind_addr[1], flush=True)
serve(server.serve, server.stop, db)
""",
    "webpy": WEBPY + """
server = web.httpserver.WSGIServer(("127.0.0.1", 0), app.wsgifunc())
server.prepare()
print(server.bind_addr[1], flush=True)
serve(server.serve, server.stop, db)
""",
    "waitress": WSGI + """
import waitress
server = waitress.create_server(app, host="127.0.0.1", port=0, threads=8)
print(server.effective_port, flush=True)
serve(server.run, server.close, db)
""",
}  # fmt: skip


def on_the_page(language, has):
    """The block of the page on shutdown with *has* in it."""
    page = (ROOT / "docs" / "how-to" / "shutdown.md").read_text()
    block = next(block for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if has in block)
    return "import logging, os, signal, threading\n" + block


ON_LOOPS = {
    "uvicorn": (ASGI, ["-m", "uvicorn", "shop:app", "--fd", "{}", "--log-level", "warning"], -signal.SIGTERM),
    "hypercorn": (ASGI, ["-m", "hypercorn", "shop:app", "--bind", "fd://{}", "--graceful-timeout", "5"], 0),
    "litestar": (LITESTAR, ["-m", "litestar", "--app", "shop:app", "run", "--fd", "{}"], -signal.SIGTERM),  # which is uvicorn
    "aiohttp": (AIOHTTP, ["shop.py", "{}"], 0),
    "sanic": (SANIC, ["shop.py", "{}"], 0),
}


@pytest.mark.drivers("asyncpg")
@pytest.mark.parametrize("server", ON_LOOPS)
def test_sigterm_to_an_event_loop_under_load(url, driver, tmp_path, server):
    """R31: what was answered is stored, what was not is not there, and no backend is left on the server."""
    source, command, status = ON_LOOPS[server]
    (tmp_path / "shop.py").write_text(source)
    answered, stored, ended, said = _terminated(command, url, tmp_path)

    # hypercorn closes a connection whose request has just begun: it finds the connection still idle.
    assert len(stored - answered) <= (8 if server == "hypercorn" else 0), said
    assert answered <= stored, said
    assert ended == status, said


@pytest.mark.drivers("psycopg")
@pytest.mark.parametrize("server", BY_RECIPE)
def test_sigterm_to_threads_under_load(url, driver, tmp_path, server):
    """R31: with the documented recipe; a COMMIT whose answer does not get through any more may be among the last."""
    (tmp_path / "shop.py").write_text(on_the_page("python", "# serve.py") + BY_RECIPE[server])
    answered, stored, ended, said = _terminated(["shop.py"], url, tmp_path)

    assert answered <= stored, said
    assert (ended, len(stored - answered) <= 8) == (0, True), said


@pytest.mark.drivers("psycopg")
@pytest.mark.parametrize("server", ["gunicorn-gthread", "gunicorn-gevent"])
def test_sigterm_to_gunicorn_under_load(url, driver, tmp_path, server):
    """R31: with the documented hook; a COMMIT whose answer does not get through any more may be among the last."""
    (tmp_path / "shop.py").write_text(WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(on_the_page("text", "def post_worker_init"))
    command = ["-m", "gunicorn", "shop:app", "--bind", "fd://{}", "-k", server[9:], "--threads", "8", "--log-level", "warning"]
    answered, stored, ended, said = _terminated(command, url, tmp_path)

    assert answered <= stored, said
    assert (ended, len(stored - answered) <= 8) == (0, True), said


def _terminated(command, url, folder):
    """What 8 clients were told is stored, what is stored, and the server's status and words.

    A server that is not given the listening socket prints its port.
    """
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
    if command == ["shop.py"]:
        address = (address[0], int(process.stdout.readline()))

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
        took = time.monotonic() - began
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
    assert took < LONGEST, said
    return answered, stored, process.returncode, said
