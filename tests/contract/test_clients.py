"""Clients that leave before their answer, that talk over a WebSocket, and that ask for what is mounted."""

import time

import pytest
from sqlalchemy import text

from contract.host import Answer, Gate
from tenure.exceptions import NoUnit

from support.models import User

pytestmark = pytest.mark.drivers("psycopg", "asyncpg")


@pytest.mark.parametrize("where", ["handler", "query"])
def test_a_client_that_leaves_before_its_answer(face, serve, stored, told, where):
    """R19: the work of a request whose client has left ends once, what it says became of it is true, and 0 connections are out."""
    gate = Gate(is_async=face.is_async)

    async def probe():
        face.session.add(User(name="ada"))
        await face.session.flush()
        if where == "query":
            gate._reached.release()
            await face.session.execute(text("SELECT pg_sleep(0.2)"))
        else:
            await gate.passed()
        return Answer()

    talk = serve(face, {"/": probe}).talk()
    gate.reached()
    talk.leave()
    gate.open()
    ((_, outcome, _),) = told.closed(1)

    assert stored() == {"committed": ["ada"], "rolled back": []}[outcome]
    ends = time.monotonic() + 1  # a statement that a thread executes goes on while its request is over
    while face.out():
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.mark.needs("sockets")
def test_each_exchange_of_a_websocket_has_its_own_unit(face, serve, stored, told):
    """R16: a WebSocket has no unit; each exchange opens its own, a failed one is undone alone, and none is left by a client that goes."""

    async def exchange(name):
        try:
            async with face.unit() as session:
                session.add(User(name=name))
                await session.flush()
                if name == "bad":
                    raise LookupError
        except LookupError:
            return "undone"
        try:
            return str(face.session)
        except NoUnit:
            return "stored"

    socket = serve(face, {}, exchange=exchange).socket()
    heard = []
    for name in ("ada", "bad", "grace"):
        heard.append((socket.ask(name), stored()))
        assert face.out() == 0
    socket.leave()

    assert heard == [("stored", ["ada"]), ("undone", ["ada"]), ("stored", ["ada", "grace"])]
    assert [outcome for _, outcome, _ in told.closed(3)] == ["committed", "rolled back", "committed"]


@pytest.mark.needs("mounts")
def test_an_application_within_an_application(face, serve, stored, told):
    """R22: a request for what is mounted is one unit as any other, and the status of its answer decides."""

    def probe(where, status):
        async def write():
            face.session.add(User(name=f"{where} {status}"))
            return Answer(status)

        return write

    inner = {f"/{status}": probe("inside", status) for status in (201, 404)}
    site = serve(face, {"/200": probe("outside", 200)}, inner=inner)

    assert [site.get(path).status for path in ("/200", "/inner/201", "/inner/404")] == [200, 201, 404]
    assert stored() == ["inside 201", "outside 200"]
    assert [(name, outcome) for name, outcome, _ in told.closed(3)] == [
        ("GET /200", "committed"), ("GET /inner/201", "committed"), ("GET /inner/404", "rolled back"),
    ]  # fmt: skip
