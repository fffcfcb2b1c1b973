"""Every probe runs on every host in ``hosts/``, on each driver that the host can use."""

import contextlib
import importlib
from pathlib import Path

import pytest

from contract.host import Gate, Host

from support import http
from support.servers import DRIVERS
from support.telling import stored, told  # noqa: F401 - fixtures


def _hosts() -> dict[str, Host]:
    files = sorted((Path(__file__).parent / "hosts").glob("*.py"))
    return {host.name: host for file in files for host in importlib.import_module(f"contract.hosts.{file.stem}").HOSTS}


HOSTS = _hosts()


def pytest_generate_tests(metafunc):
    if "host" in metafunc.fixturenames:
        metafunc.parametrize("host", HOSTS.values(), ids=HOSTS.keys())


def pytest_collection_modifyitems(items):
    """A host that blocks has nothing to do with a driver for asyncio, nor the other way round."""
    items[:] = [item for item in items if not _at_odds(getattr(item, "callspec", None))]


def _at_odds(call):
    if call is None or "driver" not in call.params or not isinstance(call.params.get("host"), Host):
        return False  # the items of all folders come by here
    return DRIVERS[call.params["driver"]].face not in call.params["host"].faces


@pytest.fixture
def gate(face):
    return Gate(is_async=face.is_async)


class Site:
    """An application that is being served."""

    def __init__(self, address):
        self.address = address

    def get(self, path="/", method="GET"):
        return http.fetch(self.address, path, method)

    def talk(self, path="/", method="GET"):
        return http.Talk(self.address, path, method)


@pytest.fixture
def serve(host, make_face):
    """``serve(face, {"/": probe})`` serves an application of probes until the test ends; *second* is one more database for it."""
    with contextlib.ExitStack() as stack:

        def start(face, probes, threads=4, second=None, **boundary):
            start.closes_bodies = ("async" if face.is_async else "sync") in host.closes_bodies
            start.ends_bodies = host.ends_bodies
            app = host.application(face, probes, **boundary)
            if second is not None:
                app = host.beside(app, second)
            return Site(stack.enter_context(host.serve(app, threads)))

        yield start
