"""Every probe runs on every host in ``hosts/``, on each driver that the host can use."""

import contextlib
import functools
import importlib
from pathlib import Path

import pytest

from contract import table
from contract.host import Gate, Host

from support import http, probe
from support.servers import DRIVERS
from support.telling import Told, stored  # noqa: F401 - a fixture


def _hosts() -> dict[str, Host]:
    names = ["flask", "webpy"] if http.GREEN else sorted(file.stem for file in (Path(__file__).parent / "hosts").glob("*.py"))
    return {host.name: host for name in names for host in importlib.import_module(f"contract.hosts.{name}").HOSTS}


HOSTS = _hosts()
# With libraries that only the table needs.
PEERS = importlib.import_module("contract.peers").PEERS if table.wanted() else {}
CELLS = {}


def pytest_generate_tests(metafunc):
    if "host" in metafunc.fixturenames:
        asked = HOSTS | (PEERS if metafunc.function.__name__ in table.OF_ANYBODY else {})
        metafunc.parametrize("host", asked.values(), ids=asked.keys())


def pytest_collection_modifyitems(items):
    """A host that blocks has nothing to do with a driver for asyncio, nor the other way round.

    Probes marked ``own_face`` are for what a host does by itself: on an event loop with an `AsyncDatabase`. Those marked ``needs`` are for
    hosts that have it.
    """
    items[:] = [item for item in items if not _at_odds(getattr(item, "callspec", None)) and not _left_out(item)]
    for item in items:
        if table.wanted() and (column := _column(getattr(getattr(item, "callspec", None), "params", {}))) is not None:
            item.user_properties.append(("cell", (item.function.__name__, column)))


def pytest_runtest_logreport(report):
    cell = dict(report.user_properties).get("cell")
    if cell is not None and (report.when == "call" or report.failed) and not report.skipped and report.when != "teardown":
        CELLS.setdefault(tuple(cell), set()).add(report.passed)


def pytest_sessionfinish(session):
    if table.wanted() and CELLS:
        table.write(HOSTS, PEERS, CELLS)


def _column(params):
    host = params.get("host")
    return host.name if isinstance(host, Host) else params.get("server")


def _at_odds(call):
    if call is None or "driver" not in call.params or not isinstance(call.params.get("host"), Host):
        return False  # the items of all folders come by here
    return DRIVERS[call.params["driver"]].face not in call.params["host"].faces


def _left_out(item):
    host = getattr(item, "callspec", None) and item.callspec.params.get("host")
    if not isinstance(host, Host):
        return False
    lacks = any(not getattr(host, name) for mark in item.iter_markers("needs") for name in mark.args)
    waits = item.get_closest_marker("own_face") is not None and "async" in host.faces
    return lacks or (waits and DRIVERS[item.callspec.params["driver"]].face == "sync")


@pytest.fixture
def make_face(request, make_face):
    """For a peer, its own engine and sessions."""
    host = request.getfixturevalue("host") if "host" in request.fixturenames else None
    if host not in PEERS.values():
        return make_face
    driver = request.getfixturevalue("driver")
    return functools.partial(host.make_face, request.getfixturevalue("url"), driver)


@pytest.fixture
def told(host):
    """What tenure tells its readers during the test. Of a peer it is not asked."""
    if host in PEERS.values():
        yield importlib.import_module("contract.peers").Untold()
    else:
        with probe.reading(Told()) as told:
            yield told


@pytest.fixture
def gate(face):
    return Gate(is_async=face.is_async)


class Site:
    """An application that is being served."""

    def __init__(self, address):
        self.address = address

    def get(self, path="/", method="GET", body=b"", **headers):
        return http.fetch(self.address, path, method, body, **headers)

    def talk(self, path="/", method="GET", body=b"", **more):
        return http.Talk(self.address, path, method, body, **more)

    def socket(self):
        return http.WebSocket(self.address, "/ws")


@pytest.fixture
def serve(host, make_face):
    """``serve(face, {"/": probe})`` serves an application of probes until the test ends.

    *second* is one more database for it, *inner* the probes of an application in it, *exchange* what answers its WebSocket.
    """
    with contextlib.ExitStack() as stack:

        def start(face, probes, threads=4, *, second=None, inner=None, exchange=None, **boundary):
            start.closes_bodies = ("async" if face.is_async else "sync") in host.closes_bodies
            start.ends_bodies = host.ends_bodies
            app = host.application(face, probes, **boundary) if inner is None else host.within(face, probes, inner)
            if exchange is not None:
                host.exchanging(app, face, exchange)
            if second is not None:
                app = host.beside(app, second)
            return Site(stack.enter_context(host.serve(app, threads)))

        start.host = host
        yield start
