"""Every probe runs on every host in ``hosts/``, on each driver that the host can use."""

import contextlib
import importlib
from pathlib import Path

import pytest
import sqlalchemy as sa

from contract.host import Gate, Host

from support import http
from support.models import Order, Pledge, User
from support.servers import DRIVERS
from support.telling import listening


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
    if call is None or not {"host", "driver"} <= call.params.keys():
        return False
    return DRIVERS[call.params["driver"]].face not in call.params["host"].faces


@pytest.fixture
def told():
    """What tenure tells its readers during the test."""
    with listening() as told:
        yield told


@pytest.fixture
def gate(face):
    return Gate(is_async=face.is_async)


@pytest.fixture
def stored(face):
    """``stored(User)`` gives the names or ids in the database, seen on a connection that no host knows."""
    blocking = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
    engine = sa.create_engine(face.db.engine.url.set(drivername=blocking[face.dialect]), poolclass=sa.NullPool)
    shown = {User: User.name, Order: Order.note, Pledge: Pledge.id}

    def stored(model=User):
        with engine.connect() as connection:
            return sorted(connection.scalars(sa.select(shown[model])))

    return stored


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
    """``serve(face, {"/": probe})`` serves an application of probes until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(face, probes, threads=4, **boundary):
            return Site(stack.enter_context(host.serve(host.application(face, probes, **boundary), threads)))

        yield start
