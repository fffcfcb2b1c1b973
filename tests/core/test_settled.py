"""What a unit may do once its outcome is settled, while the body of an answer is sent."""

import contextlib

import pytest
from sqlalchemy import func, select, text

from support.face import settle
from support.models import User

FEW = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
BY_NAME = select(User.name).order_by(User.name)
READS = [BY_NAME, text("SELECT name FROM users"), select(func.now()), select(func.max(User.name), func.current_user())]


@contextlib.asynccontextmanager
async def body(face, **options):
    """The session of a unit that has stored ada and bob, as the body of an answer finds it."""
    async with face.unit(**options) as session:
        session.add_all([User(name="ada"), User(name="bob")])
        await settle(face.db.settle(face.current, None))
        yield session


@pytest.mark.parametrize("options", [{}, {"hold": "transaction"}], ids=["auto", "transaction"])
@pytest.mark.parametrize("read", READS, ids=["plain", "text", "now", "functions"])
@pytest.mark.dialects("postgresql", "mysql")
async def test_reads_in_the_body_hold_nothing_afterwards(make_face, read, options):
    """R16: whatever is read while the body is sent, its connection goes home with the outermost call."""
    face = make_face(**FEW)
    async with body(face, **options) as session:
        for _ in range(2):
            assert (await session.execute(read)).all()
            assert face.out() == 0
        async with face.unit(propagation="new") as other:
            assert await other.scalar(BY_NAME) == "ada"


async def test_objects_are_kept_by_reads_in_the_body(make_face):
    """R16, R11: the end of such a read expires nothing and forgets nothing."""
    face = make_face(**FEW)
    async with body(face, hold="transaction") as session:
        ada = await session.scalar(select(User).where(User.name == "ada"))
        await session.execute(BY_NAME)
        assert (face.out(), ada in session.raw, ada.name) == (0, True, "ada")


async def test_rows_read_in_the_body_are_in_memory(make_face):
    """R33: a result of the body is whole, whoever has used its connection since."""
    face = make_face(**FEW)
    async with face.unit() as session:
        session.add_all([User(name=f"u{n}") for n in range(50)])
    async with face.unit(hold="transaction") as session:
        await settle(face.db.settle(face.current, None))
        rows = await session.execute(BY_NAME)
        assert face.out() == 0
        async with face.unit(propagation="new") as other:
            await other.execute(text("DELETE FROM users"))
        assert len(rows.all()) == 50


@pytest.mark.dialects("postgresql", "mysql")
async def test_a_failed_read_in_the_body_spoils_nothing(make_face):
    """R16: the next read begins anew."""
    face = make_face(**FEW)
    async with body(face) as session:
        with pytest.raises(Exception, match="nowhere"):
            await session.execute(text("SELECT 1 FROM nowhere"))
        assert face.out() == 0
        assert await session.scalar(text("SELECT name FROM users ORDER BY name")) == "ada"


async def test_a_stream_in_the_body_keeps_its_connection(make_face):
    """R16, R33: the rows of a stream are still to come."""
    face = make_face(**FEW)
    async with body(face) as session:
        rows = await session.stream(BY_NAME, execution_options={"yield_per": 1})
        assert face.out() == 1
        if face.dialect != "mysql":  # whose drivers know one statement at a time
            assert await session.scalar(select(func.count()).select_from(User)) == 2
        assert [name async for (name,) in rows] == ["ada", "bob"]
        await rows.close()
        assert await session.scalar(text("SELECT 1")) == 1
        assert face.out() == (face.driver == "sqlite")  # where rows of the same transaction may still be to come


async def test_a_connection_that_was_asked_for_is_kept(make_face):
    """R16: `session.connection()`, `begin()` and `begin_nested()` ask for a transaction, and get one until it is ended."""
    face = make_face(**FEW)
    async with body(face) as session:
        connection = await session.connection()
        await session.execute(BY_NAME)
        assert not connection.closed
        await session.rollback()
        assert face.out() == 0

        async with session.begin_nested():
            await session.execute(text("SELECT 1"))
            assert face.out() == 1
        await session.execute(text("SELECT 1"))
        assert face.out() == 0
