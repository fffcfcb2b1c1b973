"""MySQL: a connection that has read in autocommit rests so, and nobody who begins a transaction on it notices."""

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select

from support.models import User
from support.probe import stored

pytestmark = pytest.mark.drivers("pymysql", "aiomysql", "asyncmy")
MODE = sa.text("SELECT @@autocommit")


@pytest.fixture
def one(make_face):
    """A face with one connection, whose plain reads run in autocommit."""
    return make_face(pool_size=1, max_overflow=0, pool_timeout=5, isolation_level="READ COMMITTED")


async def read(face):
    async with face.unit() as session:
        await session.scalars(select(User))


async def test_what_is_rolled_back_after_a_read_is_not_there(one):
    """R1: a read in autocommit leaves nothing to the transaction after it: its rollback leaves no row, whoever begins it."""

    def elsewhere(session):
        with session.get_bind().connect() as connection:
            assert connection.scalar(MODE) == 0
            connection.execute(sa.insert(User.__table__).values(name="by hand", balance=0))
            connection.rollback()
        raw = session.get_bind().raw_connection()
        raw.cursor().execute("INSERT INTO users (name, balance) VALUES ('raw', 0)")
        raw.close()

    for _ in range(2):
        await read(one)
        async with one.unit() as session:
            await session.run_sync(elsewhere)
        await read(one)
        async with one.unit() as session:
            session.add(User(name="eve"))
            await session.flush()
            assert await session.scalar(MODE) == 0
            await session.rollback()
        with pytest.raises(ZeroDivisionError):
            async with one.unit() as session:
                await session.scalars(select(User))
                session.add(User(name="eve"))
                await session.flush()
                raise ZeroDivisionError
        async with one.unit(isolation="SERIALIZABLE") as session:
            session.add(User(name="eve"))
            await session.flush()
            await session.rollback()

    assert stored(one) == []


async def test_a_listener_gets_a_transaction(one):
    """R33: where a listener has a say in how transactions begin, its reads run in one after reads in autocommit, too."""
    await read(one)
    modes = []

    def begun(session, transaction, connection):
        modes.append(connection.scalar(MODE))

    async with one.unit() as session:
        event.listen(getattr(session.raw, "sync_session", session.raw), "after_begin", begun)
        await session.scalars(select(User))

    assert modes == [0]


async def test_an_engine_made_elsewhere(one, watch):
    """R43: after a Database on an engine has been closed, its connections begin transactions as ever."""
    await read(one)
    engine = one.db.engine
    again = type(one.db)(engine)
    face = watch(again, one.driver)
    await read(one)
    async with face.unit() as session:
        session.add(User(name="eve"))
        await session.flush()
        await session.rollback()
    await read(face)
    again.supply.close()

    def mode(session):
        with session.get_bind().connect() as connection:
            return connection.scalar(MODE)

    async with one.unit() as session:
        assert await session.run_sync(mode) == 0
    assert stored(one) == []
