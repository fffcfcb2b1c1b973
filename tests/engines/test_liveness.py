"""R38: what rests in the pool may have died there."""

import time

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

import tenure
from tenure.exceptions import BadOption

from support import servers
from support.models import User

SERVERS = ("psycopg", "asyncpg", "psycopg_async", "pymysql", "aiomysql", "asyncmy")
POSTGRESQL = ("psycopg", "asyncpg", "psycopg_async")
IDENTITY = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}


@pytest.fixture
def server(driver):
    """A connection of its own to the server, for what an administrator does."""
    engine = sa.create_engine(
        servers.server(servers.DRIVERS[driver].dialect).base, poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        yield Admin(connection)


class Admin:
    def __init__(self, connection):
        self.connection = connection

    def kill(self, backend):
        """End a backend, and wait until the server has forgotten it: its socket is closed then."""
        name = self.connection.dialect.name
        end, seek = {
            "postgresql": ("SELECT pg_terminate_backend({})", "SELECT 1 FROM pg_stat_activity WHERE pid = {}"),
            "mysql": ("KILL {}", "SELECT 1 FROM information_schema.processlist WHERE id = {}"),
        }["postgresql" if name == "postgresql" else "mysql"]
        self.connection.exec_driver_sql(end.format(backend))
        while self.connection.exec_driver_sql(seek.format(backend)).scalar():
            time.sleep(0.005)

    def count(self):
        return self.connection.exec_driver_sql("SELECT count(*) FROM users").scalar()


async def _backend(face):
    async with face.unit(hold="transaction") as session:
        return await session.scalar(sa.text(IDENTITY[face.dialect]))


@pytest.mark.drivers(*SERVERS)
async def test_a_connection_that_died_in_the_pool_is_replaced(make_face, server):
    """R38: given a server that ends idle connections, when the next unit runs, then it succeeds on a new backend."""
    face = make_face()
    first = await _backend(face)
    server.kill(first)  # no turn of the loop in between: it has had no chance to hear of it

    second = await _backend(face)
    again = await _backend(face)

    assert second != first
    assert again == second


@pytest.mark.drivers(*SERVERS)
async def test_all_that_died_are_replaced_one_by_one(make_face, proxy):
    """R38: a pool full of dead connections is not met by an error once for each."""
    face = make_face(through=proxy, pool_size=4)
    barrier = face.barrier(4)

    async def work():
        async with face.unit(hold="transaction") as session:
            await session.execute(sa.select(User.id))
            await barrier.wait()

    await face.spawn(work, work, work, work)
    assert proxy.links() == 4
    proxy.cut()

    await face.spawn(work, work, work, work)

    assert proxy.links() == 4


def _reading(face):
    """Options with which plain reads are in autocommit, so that their connection is kept."""
    return {"isolation_level": "READ COMMITTED"} if face in ("pymysql", "aiomysql", "asyncmy") else {}


@pytest.mark.drivers(*SERVERS)
async def test_one_that_died_while_its_unit_kept_it_is_replaced(make_face, proxy, driver):
    """R32, R38: given a unit that has read, when the connection it keeps is lost, then its next read has another, unseen."""
    face = make_face(through=proxy, **_reading(driver))
    async with face.unit() as session:
        session.add(User(name="ada"))
    async with face.unit() as session:
        first = await session.scalar(sa.select(User.name))
        kept = [one.takeable for one in face.db.holders()]
        proxy.cut()
        second = await session.scalar(sa.select(User.name))

    assert kept == [True]
    assert (first, second) == ("ada", "ada")
    assert (face.db.status().discarded, proxy.links()) == (1, 1)
    assert (face.out(), face.db.supply.gate.queue.used, len(face.db.supply.ledger)) == (0, 0, 0)


@pytest.mark.drivers(*SERVERS)
async def test_one_that_was_kept_for_long_is_asked(make_face, proxy, driver, monkeypatch):
    """R32, R38: what a unit has kept for longer than `liveness` seconds is asked before its next read, and replaced in silence."""
    from tenure.engines import liveness

    face = make_face(through=proxy, liveness=30, **_reading(driver))
    real = time.monotonic
    async with face.unit() as session:
        await session.scalar(sa.select(User.id))
        monkeypatch.setattr(liveness, "_poll", lambda _descriptor: 0)  # a route that was lost shows nothing
        monkeypatch.setattr(liveness.time, "monotonic", lambda: real() + 31)
        proxy.cut()
        await session.scalar(sa.select(User.id))

    assert (face.db.status().discarded, proxy.links()) == (1, 1)


@pytest.mark.drivers(*SERVERS)
async def test_a_warm_connection_costs_no_round_trip(make_face, proxy):
    """R38: looking at a connection asks the server nothing; with liveness=0 it is asked each time."""
    looks, asks = make_face(through=proxy), make_face(through=proxy, liveness=0)
    never = make_face(through=proxy, liveness=None)
    numbers = []
    for face in (never, looks, asks):
        for _ in range(3):
            async with face.unit() as session:
                await session.execute(sa.select(User.id))
        with proxy.count() as trips:
            async with face.unit() as session:
                await session.execute(sa.select(User.id))
        numbers.append(trips.number)

    assert numbers[1] == numbers[0]
    assert numbers[2] > numbers[0]
    if face.dialect == "postgresql":
        assert numbers[0] == 1


@pytest.mark.drivers(*SERVERS)
async def test_one_that_rested_long_is_asked(make_face, server, monkeypatch):
    """R38: what died in silence is found by asking, after `liveness` seconds of rest; the others of the pool are not trusted either."""
    from tenure.engines import liveness

    face = make_face(liveness=30)
    first = await _backend(face)
    monkeypatch.setattr(liveness, "_poll", lambda _descriptor: 0)  # a route that was lost shows nothing
    server.kill(first)
    real = time.monotonic
    monkeypatch.setattr(liveness.time, "monotonic", lambda: real() + 31)

    second = await _backend(face)

    assert second != first


@pytest.mark.drivers(*POSTGRESQL)
async def test_one_that_was_given_back_dirty_is_replaced(make_face):
    """R38: a connection that came back in an open transaction is not handed out again."""
    face = make_face(pool_reset_on_return=None)
    first = await _backend(face)
    await _leave_dirty(face)

    second = await _backend(face)

    assert second != first


async def _leave_dirty(face):
    """Begin a transaction behind SQLAlchemy's back, as a library with its own cursor does."""
    from support.face import settle

    if face.is_async:
        async with face.db.engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            await raw.execute("BEGIN")
    else:
        raw = face.db.engine.raw_connection()
        raw.cursor().execute("SELECT 1")
        raw.close()
    await settle(None)


@pytest.mark.drivers(*SERVERS)
async def test_one_that_dies_within_a_unit(make_face, proxy, server):
    """R38: when one dies within a unit, then the error says "rolled back" and whether a retry is safe."""
    face = make_face(through=proxy)

    with pytest.raises(sa.exc.DBAPIError) as caught:
        async with face.unit(name="pay") as session:
            await session.execute(sa.insert(User).values(name="ada", balance=1))
            proxy.cut()
            await session.execute(sa.insert(User).values(name="bob", balance=1))

    assert caught.value.connection_invalidated
    (note,) = [one for one in caught.value.__notes__ if "was lost" in one]
    assert "'pay'" in note
    assert "rolled back" in note
    assert "safe to run it again" in note
    assert server.count() == 0


@pytest.mark.drivers(*SERVERS)
async def test_one_that_dies_after_a_checkpoint(make_face, proxy, server):
    """R38: what a checkpoint has stored makes another run unsafe, and the note says so."""
    face = make_face(through=proxy)

    with pytest.raises(sa.exc.DBAPIError) as caught:
        async with face.unit() as session:
            await session.execute(sa.insert(User).values(name="ada", balance=1))
            await session.commit()
            await session.execute(sa.insert(User).values(name="bob", balance=1))
            proxy.cut()
            await session.execute(sa.insert(User).values(name="eve", balance=1))

    assert "do not simply run it again" in "".join(caught.value.__notes__)
    assert server.count() == 1


@pytest.mark.drivers(*POSTGRESQL)
async def test_a_primary_that_became_read_only_postgresql(make_face):
    """R38: a write refused with 25006 empties the pool: the next unit gets a new backend."""
    face = make_face(pool_size=2)
    first = await _backend(face)

    with pytest.raises(sa.exc.DBAPIError) as caught:
        async with face.unit() as session:
            await session.execute(sa.text("SET TRANSACTION READ ONLY"))
            await session.execute(sa.insert(User).values(name="ada", balance=1))

    assert "no longer the primary" in "".join(caught.value.__notes__)
    assert await _backend(face) != first


@pytest.mark.drivers(*POSTGRESQL)
async def test_a_read_only_unit_does_not_empty_the_pool(make_face):
    """R38: a write that a read-only unit tries by raw SQL says nothing about the server."""
    face = make_face()
    first = await _backend(face)

    with pytest.raises(Exception, match="read-only"):
        async with face.unit(readonly=True) as session:
            await session.execute(sa.text("INSERT INTO users (name, balance) VALUES ('ada', 1)"))

    assert await _backend(face) == first


@pytest.mark.drivers("pymysql", "aiomysql", "asyncmy")
async def test_a_primary_that_became_read_only_mysql(make_face):
    """R38: the same for MySQL's 1290 and 1836; 1290 for another option leaves the pool alone."""
    face = make_face()
    first = await _backend(face)

    for number, text, same in (
        (1290, "The MySQL server is running with the --secure-file-priv option so it cannot execute this statement", True),
        (1290, "The MariaDB server is running with the --read-only option so it cannot execute this statement", False),
        (1836, "Running in read-only mode", False),
    ):
        with pytest.raises(sa.exc.DBAPIError):
            async with face.unit() as session:
                await session.execute(sa.insert(User).values(name="ada", balance=1))
                await session.execute(sa.text(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{text}'"))
        now = await _backend(face)
        assert (now == first) is same
        first = now


@pytest.mark.parametrize("value", [-1, True, "soon"])
def test_bad_values(value):
    """R38: liveness takes seconds or None."""
    with pytest.raises(BadOption, match="liveness="):
        tenure.Database("sqlite://", liveness=value)


@pytest.mark.drivers("psycopg")
async def test_the_look_is_no_listener_of_the_users(make_face):
    """R38: tenure's own listeners do not make reads begin a transaction, and are gone when the database is closed."""
    face = make_face()
    async with face.unit() as session:
        await session.execute(sa.select(User.id))
        assert face.out() == 0
    sa.event.listen(face.sync_engine, "checkout", lambda *_: None)
    assert face.db.supply._is_listened_to()


@pytest.mark.drivers("psycopg")
def test_an_engine_of_the_users_is_left_as_it_was(url, watch):
    """R38: closing the database takes its listeners off an engine that it did not make, also after dispose()."""
    engine = sa.create_engine(url)
    face = watch(tenure.Database(engine))
    engine.dispose()
    assert engine.pool.dispatch.checkout
    face.db.close()

    assert not engine.pool.dispatch.checkout
    assert not engine.pool.dispatch.checkin or face.db.supply.profile.switch_back is not None
    engine.dispose()


@pytest.mark.drivers(*SERVERS)
async def test_one_that_was_out_when_the_pool_was_disposed_of(make_face, proxy):
    """R36, R38: a connection that a unit holds while `dispose()` puts another pool in place is closed when it comes home, for the old pool
    keeps nothing.
    """
    from support.face import settle

    face = make_face(through=proxy)
    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.flush()
        await settle(face.db.engine.dispose())
        before = proxy.links()
    await face.until(lambda: proxy.links() == 0)

    assert before == 1
    assert (face.out(), face.db.supply.gate.queue.used, face.db.status().discarded) == (0, 0, 1)
