"""Fixtures of all tests: a database on every driver, and a check that nothing is left behind."""

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import tenure
from tenure import callsite

from support import face as face_module
from support import leaks, servers
from support.face import AsyncFace, Face, SyncFace
from support.proxy import Proxy
from support.servers import DIALECTS, DRIVERS, ServerMissingError

# A message names the line of the case, not the line in the helper that carried it out.
callsite._LIBRARY += (str(face_module.__file__),)


# ------------------------------------------------------------------- which drivers a test runs on


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--drivers", default="", help=f"run on these drivers only, of: {', '.join(DRIVERS)}")


def pytest_configure(config: pytest.Config) -> None:
    _known("--drivers", _chosen(config), DRIVERS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a face, directly or not, on every driver that its markers leave."""
    if "driver" not in metafunc.fixturenames:
        return
    drivers = set(DRIVERS)
    for mark in metafunc.definition.iter_markers("drivers"):
        _known("drivers", mark.args, DRIVERS)
        drivers &= set(mark.args)
    for mark in metafunc.definition.iter_markers("dialects"):
        _known("dialects", mark.args, DIALECTS)
        drivers &= {name for name, driver in DRIVERS.items() if driver.dialect in mark.args}
    for mark in metafunc.definition.iter_markers("faces"):
        _known("faces", mark.args, ("sync", "async"))
        drivers &= {name for name, driver in DRIVERS.items() if driver.face in mark.args}
    chosen = _chosen(metafunc.config)
    parameters = [
        name if not chosen or name in chosen else pytest.param(name, marks=pytest.mark.skip("not among --drivers"))
        for name in DRIVERS
        if name in drivers
    ]
    metafunc.parametrize("driver", parameters, indirect=True)


def _chosen(config: pytest.Config) -> list[str]:
    return [name for name in config.getoption("--drivers").split(",") if name]


def _known(what: str, given: Any, allowed: Any) -> None:
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise pytest.UsageError(f"{what}: {', '.join(map(str, unknown))} is none of: {', '.join(allowed)}")


# ---------------------------------------------------------------------------- faces and databases


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """The name of the driver that this test runs on."""
    return request.param


@pytest.fixture
def url(driver: str, tmp_path: Path) -> sa.URL:
    """The address of a database with empty tables, for a test that makes its engine itself."""
    return _database(driver, tmp_path)


@pytest.fixture
def make_face(driver: str, tmp_path: Path, nothing_left: "Watch", monkeypatch: pytest.MonkeyPatch) -> Callable[..., Face]:
    """``make_face(**options)`` gives a face of a new `Database(url, **options)`, on a database with empty tables.

    Called again it gives one more on the same database; *through* is a `Proxy` to reach it by. All are checked and closed when
    the test ends.
    """
    address = _database(driver, tmp_path)
    if (
        driver == "psycopg"
    ):  # the tests' server is on a unix socket, where BEGIN is not sent in a pipeline: psycopg_async has it so
        monkeypatch.setattr("tenure.engines.pipeline.pays", lambda _driver: True)

    def make(*, through: Proxy | None = None, **options: Any) -> Face:
        database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
        return nothing_left(database(address if through is None else through.url(driver), **options), driver)

    return make


@pytest.fixture
def face(make_face: Callable[..., Face]) -> Face:
    """A database with its default options, on each driver in turn."""
    return make_face()


@pytest.fixture
def proxy(driver: str, tmp_path: Path, nothing_left: "Watch") -> Proxy:
    """A network in front of the test's server, to count round trips on, to delay and to break. Not for SQLite."""
    _database(driver, tmp_path)
    nothing_left.proxies.append(Proxy.before(driver))
    return nothing_left.proxies[-1]


@pytest.fixture
def watch(nothing_left: "Watch") -> "Watch":
    """``watch(db)`` gives the face of a database that the test made itself; it is checked and closed like the rest."""
    return nothing_left


def _database(driver: str, folder: Path) -> sa.URL:
    try:
        address = servers.url(driver, folder)
    except ServerMissingError as error:
        servers.give_up(error)
    servers.clean(driver)
    return address


# ------------------------------------------------------------------------------- nothing is left


class Watch:
    """The databases of one test, the context it runs in, and the event loop that its asynchronous faces share."""

    def __init__(self) -> None:
        self.faces: list[Face] = []
        self.proxies: list[Proxy] = []
        self.context = contextvars.copy_context()
        self._runner: asyncio.Runner | None = None
        self._threads = threading.enumerate()

    def __call__(self, db: Any, driver: str = "") -> Face:
        dialect = db.engine.dialect.name
        if isinstance(db, tenure.AsyncDatabase):
            made: Face = AsyncFace(db, driver, dialect, runner=self.runner)
        else:
            made = SyncFace(db, driver, dialect)
        if dialect == "sqlite":
            sa.event.listen(made.sync_engine, "connect", _foreign_keys)
        self.faces.append(made)
        return made

    @property
    def runner(self) -> asyncio.Runner:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner

    def run(self, case: Coroutine[Any, Any, Any], *, is_async: bool) -> None:
        """Run the test's own coroutine."""
        if is_async:
            self.runner.run(case, context=self.context)
        else:
            self.context.run(face_module.drive, case)

    def end(self) -> dict[str, list[str]]:
        """Close everything and give what was left, by kind."""
        for proxy in self.proxies:
            proxy.thaw()
        open_faces = [face for face in self.faces if not face.closed]
        left = {
            "units": self.context.run(leaks.units_left, open_faces),
            "connections": leaks.connections_left(open_faces),
        }
        try:
            for made in open_faces:
                made.run(made.close())
            left["tasks"] = leaks.tasks_left(self._runner)
        finally:
            if self._runner is not None:
                self._runner.close()
            for proxy in self.proxies:
                proxy.close()
        left["threads"] = leaks.threads_left(self._threads)
        return left


def _foreign_keys(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[Watch]:
    """After every test: no unit open, no connection out, no task and no thread left."""
    watched = Watch()
    yield watched
    left = watched.end()
    allowed = [kind for mark in request.node.iter_markers("leaves") for kind in mark.args]
    found = [text for kind, texts in left.items() if kind not in allowed for text in texts]
    if found:
        pytest.fail("the test left something behind:\n  " + "\n  ".join(found), pytrace=False)


# ----------------------------------------------------------------------------- running the cases


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test in a context of its own; an ``async def`` one in the manner of its face, with or without a loop."""
    if "driver" not in pyfuncitem.fixturenames:
        return None
    watched: Watch = pyfuncitem.funcargs["nothing_left"]
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        watched.run(pyfuncitem.obj(**arguments), is_async=DRIVERS[pyfuncitem.callspec.params["driver"]].is_async)
    else:
        watched.context.run(pyfuncitem.obj, **arguments)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for server, count in servers.skipped().items():
        terminalreporter.write_line(
            f"!! {server} IS NOT THERE: {count} tests were skipped for want of it. Their reasons say how to run it; "
            "TENURE_REQUIRE_SERVICES=1 makes this a failure.",
            red=True,
            bold=True,
        )


def pytest_unconfigure() -> None:
    servers.stop_all()
