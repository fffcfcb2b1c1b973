"""The proxy of the tests: it counts, delays, stands still and breaks as asked."""

import socket
import threading
import time

import pytest
import sqlalchemy as sa

from support.proxy import Proxy

POSTGRESQL = ("psycopg", "asyncpg", "psycopg_async")


@pytest.fixture
def echo(nothing_left):
    """The address of a server that sends back what it gets, and a semaphore that counts what it has got."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked = threading.Semaphore(0)

    def answer(link):
        with link:
            while data := _or_nothing(link):
                asked.release()
                link.sendall(data)

    def serve():
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(link,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname(), asked
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.drivers("psycopg", "asyncpg", "psycopg_async", "pymysql", "aiomysql", "asyncmy")
async def test_it_passes_everything_on(make_face, proxy):
    """A database works by way of the proxy, with answers larger than any buffer."""
    face = make_face(through=proxy)

    async with face.unit() as session:
        long = await session.scalar(sa.text("SELECT repeat('x', 3000000)"))
        await session.execute(sa.text("SELECT length(:long)"), {"long": "y" * 2_000_000})

    assert len(long) == 3_000_000
    assert proxy.links() == 1


@pytest.mark.drivers(*POSTGRESQL)
async def test_it_counts_round_trips(make_face, proxy):
    """A warm read is one round trip; a write is BEGIN, statement and COMMIT."""
    face = make_face(through=proxy)
    for _ in range(2):
        async with face.unit() as session:
            await session.execute(sa.select(sa.literal(1)))

    with proxy.count() as read:
        async with face.unit() as session:
            await session.execute(sa.select(sa.literal(1)))
    with proxy.count() as none:
        async with face.unit():
            pass

    assert read.number == 1
    assert none.number == 0


def test_pipelined_messages_are_one_round_trip(echo):
    """Messages that are sent without waiting for the answer to the first count once, however early that one came."""
    server, asked = echo
    with Proxy(server) as proxy, _client(proxy) as client:
        with proxy.count() as trips:
            client.sendall(b"1")
            assert asked.acquire(timeout=5)  # the server has it, and answers at once
            client.sendall(b"2")
            assert _receive(client, 2) == b"12"
            assert trips.number == 1
            client.sendall(b"3")
            assert _receive(client, 1) == b"3"

        assert trips.number == 2


def test_it_delays_each_way(echo):
    """Pieces that follow one another are late by the delay, not by one delay after another."""
    server, _ = echo
    with Proxy(server) as proxy, _client(proxy) as client:
        proxy.delay(0.05)
        begun = time.monotonic()
        for piece in (b"1", b"2", b"3"):
            client.sendall(piece)
            time.sleep(0.005)
        assert _receive(client, 3) == b"123"
        took = time.monotonic() - begun

        assert 0.1 <= took < 0.2


def test_it_stands_still_and_goes_on(echo):
    """Frozen, nothing arrives and nothing breaks; what was sent meanwhile arrives afterwards."""
    server, asked = echo
    with Proxy(server) as proxy, _client(proxy) as client:
        proxy.freeze()
        client.sendall(b"1")
        assert not asked.acquire(timeout=0.05)
        proxy.thaw()

        assert _receive(client, 1) == b"1"


def test_it_breaks_all_links(echo):
    """A cut link ends at once; with down so does every new one, until up."""
    server, _ = echo
    with Proxy(server) as proxy:
        with _client(proxy) as client:
            client.sendall(b"1")
            assert _receive(client, 1) == b"1"
            proxy.cut(down=True)
            assert _receive(client, 1) == b""
        with _client(proxy) as client:
            assert _receive(client, 1) == b""
        proxy.up()
        with _client(proxy) as client:
            client.sendall(b"2")
            assert _receive(client, 1) == b"2"


@pytest.mark.parametrize(("after", "arrives"), [(False, False), (True, True)])
def test_it_breaks_at_a_message(echo, after, arrives):
    """Before: the server never sees the message. After: the server has answered, and the client never sees that."""
    server, asked = echo
    with Proxy(server) as proxy:
        (proxy.cut_after if after else proxy.cut_before)(b"COMMIT")
        with _client(proxy) as client:
            client.sendall(b"BEGIN")
            assert _receive(client, 5) == b"BEGIN"
            assert asked.acquire(timeout=5)
            client.sendall(b"COMMIT")
            assert _receive(client, 1) == b""
        assert asked.acquire(timeout=0.05) is arrives
        with _client(proxy) as client:  # once only
            client.sendall(b"COMMIT")
            assert _receive(client, 6) == b"COMMIT"


@pytest.mark.drivers(*POSTGRESQL)
async def test_a_commit_that_the_server_never_got(make_face, proxy):
    """The drivers see a broken connection, and no row is there; afterwards they connect anew."""
    face = make_face(through=proxy)
    proxy.cut_before(b"COMMIT")

    with pytest.raises(Exception, match=r"."):
        async with face.unit() as session:
            await session.execute(sa.text("INSERT INTO users (name, balance) VALUES ('ada', 1)"))

    async with face.unit() as session:
        assert await session.scalar(sa.text("SELECT count(*) FROM users")) == 0


@pytest.mark.drivers(*POSTGRESQL)
async def test_a_commit_whose_answer_is_dropped(make_face, proxy):
    """The drivers see a broken connection, and the row is there."""
    face = make_face(through=proxy)
    proxy.cut_after(b"COMMIT")

    with pytest.raises(Exception, match=r"."):
        async with face.unit() as session:
            await session.execute(sa.text("INSERT INTO users (name, balance) VALUES ('ada', 1)"))

    async with face.unit() as session:
        assert await session.scalar(sa.text("SELECT count(*) FROM users")) == 1


def _client(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), 5)


def _receive(client, size):
    """So many bytes, or fewer if the link ends before."""
    data = b""
    while len(data) < size and (more := _or_nothing(client)):
        data += more
    return data


def _or_nothing(link):
    try:
        return link.recv(4096)
    except ConnectionError:
        return b""
