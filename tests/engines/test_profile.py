import gc
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select, text, update
from sqlalchemy.pool import NullPool

from tenure.engines.profile import Profile, profile_of, refused_write
from tenure.exceptions import RollbackOnly, sqlstate

from support.face import PATIENCE
from support.models import User
from support.probe import Told, outside, reading


@pytest.fixture
def told():
    """The events of the test."""
    with reading(Told()) as events:
        yield events


# What the tests elsewhere rely on, at a glance: reads alone, a failure spoils, undone by a deadlock, settings, isolation.
ABILITIES = {
    "sqlite": (True, False, False, False, "SERIALIZABLE"),
    "aiosqlite": (True, False, False, False, "SERIALIZABLE"),
    "psycopg": (True, True, False, True, None),
    "psycopg_async": (True, True, False, True, None),
    "asyncpg": (True, True, False, True, None),
    "pymysql": (True, False, True, False, None),
    "aiomysql": (True, False, True, False, None),
    "asyncmy": (True, False, True, False, None),
}


def test_abilities(face, driver):
    """R32: what a driver can do is known by its name."""
    found = face.db.supply.profile

    assert ABILITIES[driver] == (
        found.reads_alone,
        found.failure_spoils,
        "1213" in found.undone_by,
        found.takes_settings,
        found.isolation,
    )


@pytest.mark.drivers("psycopg", "pymysql")
@pytest.mark.parametrize("options", [{"stream_results": True}, {"yield_per": 10}])
def test_an_engine_that_streams_always(face, options):
    """R32: where each statement has a cursor on the server, its rows are not in memory, and no read is done alone."""
    found = profile_of(face.db.engine.execution_options(**options))

    assert not found.reads_alone
    assert found.failure_spoils is face.db.supply.profile.failure_spoils
    assert found.undone_by == face.db.supply.profile.undone_by


@pytest.mark.parametrize("name", ["mssql", "oracle", "duckdb"])
def test_a_database_that_is_not_known(name):
    """R32: of an unknown driver nothing is taken for granted: SQLAlchemy's rule holds."""
    engine = SimpleNamespace(dialect=SimpleNamespace(name=name, driver="any"), get_execution_options=dict)

    assert profile_of(engine) == Profile()
    assert not Profile().reads_alone


def test_sqlite_made_elsewhere(tmp_path):
    """R32: an SQLite engine that was made elsewhere does not have its rows in memory, and is held by SQLAlchemy's rule."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db")

    assert not profile_of(engine).reads_alone
    engine.dispose()


@pytest.mark.parametrize(("state", "refused"), [("25006", True), (1792, True), ("23505", False), (1213, False), (None, False)])
def test_which_errors_say_that_a_write_was_refused(state, refused):
    """R9: the databases' own words for a write in a read-only transaction are known, and nothing else is taken for one."""
    origin = Exception(state) if isinstance(state, int) else Exception()
    if isinstance(state, str):
        origin.sqlstate = state

    assert refused_write(sa.exc.DBAPIError("", {}, origin)) is refused


# --------------------------------------------------------------------------------------- autocommit, on and back


class Taken:
    """Whether connections are in autocommit when a statement is sent on them, and when somebody else takes them."""

    def __init__(self, face):
        self.seen = []
        event.listen(face.sync_engine, "before_cursor_execute", self)

    def __call__(self, connection, *more):
        self.seen.append(bool(connection.connection.dbapi_connection.autocommit))


async def plain_read(face):
    async with face.unit() as session:
        await session.scalar(select(User.id))


async def read_that_fails(face):
    with pytest.raises(sa.exc.DBAPIError):
        async with face.unit() as session:
            await session.scalar(select(1 / sa.cast(sa.func.length(""), sa.Integer)))


async def unit_that_is_dropped(face):
    block = face.unit()
    session = await block.__aenter__()
    await session.scalar(select(User.id))
    del block, session
    gc.collect()  # an AsyncSession and the session in it know each other


async def write(face):
    async with face.unit() as session:
        session.add(User(name="ada"))


@pytest.mark.drivers("psycopg", "asyncpg", "psycopg_async")
@pytest.mark.parametrize("use", [plain_read, read_that_fails, unit_that_is_dropped])
@pytest.mark.leaves("units")
async def test_autocommit_is_switched_on_and_back(make_face, use):
    """R32: a plain read runs in autocommit; whoever takes the connection next is in a transaction, whatever became of the read."""
    face = make_face(pool_size=1, max_overflow=0)
    taken = Taken(face)
    await use(face)
    assert set(taken.seen) == {True}
    taken.seen.clear()
    await write(face)

    assert set(taken.seen) == {False}
    assert outside(face, "SELECT name FROM users") == ["ada"]
    taken.seen.clear()
    await plain_read(face)
    assert taken.seen == [True]


@pytest.mark.drivers("psycopg")
def test_a_switch_back_touches_only_what_was_switched(face):
    """R32: a connection that somebody else has put into autocommit stays as it is, and one that is gone is no matter."""
    with face.db.engine.connect() as connection:
        pooled = connection.connection
        pooled.dbapi_connection.autocommit = True
        face.db.supply.profile.switch_back(pooled.dbapi_connection, pooled)
        face.db.supply.profile.switch_back(None, pooled)

        assert pooled.dbapi_connection.autocommit
        pooled.dbapi_connection.autocommit = False


# --------------------------------------------------------------------------------------------- deadlocks on MySQL


@pytest.fixture
def rival(face):
    """A connection that tenure knows nothing of, with more rows changed than the unit, so that the unit is a deadlock's victim."""
    engine = sa.create_engine(face.sync_engine.url.set(drivername="mysql+pymysql"), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(sa.insert(User), [{"id": number, "name": f"user {number}"} for number in range(1, 41)])
    with engine.connect() as connection:
        connection.execute(update(User).where(User.id > 1).values(balance=5))
        yield connection
    engine.dispose()


def add_one(number):
    return update(User).where(User.id == number).values(balance=User.balance + 1)


@contextmanager
def waiting(face, rival):
    """The rival waits for the row of user 1, in a thread, until the unit lets go of it; what the unit does meanwhile."""
    (own,) = rival.execute(text("SELECT CONNECTION_ID()")).one()
    asked = f"SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {own} AND trx_state = 'LOCK WAIT'"
    thread = threading.Thread(target=rival.execute, args=(add_one(1),))
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not outside(face, asked):
        assert time.monotonic() < deadline
        time.sleep(0.15)  # InnoDB shows what it showed last to whoever asks again within 0.1 s
    yield
    thread.join()
    rival.rollback()


@pytest.mark.dialects("mysql")
@pytest.mark.parametrize("afterwards", [False, True])
async def test_a_deadlock_that_is_swallowed(face, rival, told, afterwards):
    """R7: a deadlock undoes the whole transaction on MySQL; who swallows it commits neither the rest nor what comes afterwards."""
    caught = []
    with pytest.raises(RollbackOnly, match="OperationalError") as refused:
        async with face.unit() as session:
            await session.execute(add_one(1))
            with waiting(face, rival):
                try:
                    await session.execute(add_one(2))
                except sa.exc.OperationalError as error:
                    caught.append(sqlstate(error))
            if afterwards:
                session.add(User(id=99, name="afterwards"))
                await session.flush()

    assert caught == ["1213"]
    assert sqlstate(refused.value.__cause__) == "1213"
    assert told.outcomes() == ["rolled back"]
    assert set(outside(face, "SELECT balance FROM users")) == {0}
    assert len(outside(face, "SELECT id FROM users")) == 40


@pytest.mark.dialects("mysql")
async def test_a_lock_wait_timeout_that_is_swallowed(face, rival, told):
    """R7: a lock wait timeout undoes one statement on MySQL; the rest is kept, and code that catches it may commit that."""
    caught = []
    async with face.unit() as session:
        await session.execute(text("SET SESSION innodb_lock_wait_timeout = 0"))
        await session.execute(add_one(1))
        try:
            await session.execute(add_one(2))
        except sa.exc.OperationalError as error:
            caught.append(sqlstate(error))
    rival.rollback()

    assert caught == ["1205"]
    assert told.outcomes() == ["committed"]
    assert outside(face, "SELECT balance FROM users WHERE id < 3 ORDER BY id") == [1, 0]
