"""The face itself: the same case means the same on both faces."""

import inspect
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from support.face import SessionFace
from support.models import Item, Order, Pledge, User


async def test_a_unit_stores_and_reads(face):
    """A case of a few lines works on every driver, the ORM's cascades and the tables included."""
    async with face.unit() as session:
        session.add(User(name="ada", orders=[Order(note="tea", items=[Item(name="cup")])]))
        await session.flush()
        assert face.out() == 1

    async with face.unit() as session:
        user = await session.scalar(sa.select(User))
        notes = await session.run_sync(lambda s: [order.note for order in s.get_one(User, user.id).orders])
        names = (await session.scalars(sa.select(Item.name))).all()

    assert user.id == 1
    assert notes == ["tea"]
    assert names == ["cup"]
    assert face.out() == 0


async def test_tables_are_empty_again(face):
    """A test sees nothing of the tests before it, and numbering begins anew."""
    async with face.unit() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(User)) == 0
        user = User(name="ada")
        session.add(user)

    assert user.id == 1


async def test_an_error_leaves_through_the_block(face):
    """An exception in the block reaches the unit and the caller."""
    with pytest.raises(ZeroDivisionError):
        async with face.unit() as session:
            session.add(User(name="ada"))
            await session.flush()
            raise ZeroDivisionError

    async with face.unit() as session:
        assert await session.scalar(sa.select(User)) is None


@pytest.mark.dialects("sqlite", "postgresql")
async def test_commit_can_fail(face):
    """A pledge of nobody is flushed and refused by COMMIT itself."""
    with pytest.raises(sa.exc.IntegrityError):
        async with face.unit() as session:
            session.add(Pledge(user_id=4711))
            await session.flush()


async def test_a_savepoint(face):
    """`begin_nested` undoes only what is inside it."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        with pytest.raises(sa.exc.IntegrityError):
            async with session.begin_nested():
                session.add(User(name="ada"))

    async with face.unit() as session:
        assert (await session.scalars(sa.select(User.name))).all() == ["ada"]


async def test_a_stream(face):
    """Rows are read one by one from a cursor that is open."""
    async with face.unit() as session:
        session.add_all([User(name=f"user {n}") for n in range(5)])

    async with face.unit() as session:
        rows = await session.stream(sa.select(User.name).order_by(User.id))
        names = [row.name async for row in rows]
        await rows.close()
        again = (await session.stream(sa.select(User.name).order_by(User.id))).scalars()
        first = await again.first()

    assert names == [f"user {n}" for n in range(5)]
    assert first == "user 0"


async def test_a_decorated_function(face):
    """A coroutine function becomes the plain function that a user of the synchronous face writes."""

    async def rename(session: SessionFace, name: str, *, times: int = 1) -> str:
        """Docstring."""
        assert isinstance(session, SessionFace)
        session.add(User(name=name * times))
        await session.flush()
        return name

    plain = face.plain(rename)
    call = face.decorated(rename)

    assert plain.__name__ == "rename"
    assert inspect.iscoroutinefunction(plain) is face.is_async
    assert inspect.signature(plain).parameters["session"].annotation is (AsyncSession if face.is_async else Session)
    assert inspect.signature(plain).parameters["times"].default == 1
    assert plain.__code__.co_filename == __file__
    assert await call(name="ada", times=2) == "ada"
    async with face.unit() as session:
        assert await session.scalar(sa.select(User.name)) == "adaada"


async def test_several_at_one_time(make_face):
    """`spawn` runs threads or tasks that meet at a barrier, and gives their results in order."""
    face = make_face(pool_size=3, max_overflow=0)
    barrier, gate = face.barrier(3), face.event()

    async def read(number):
        async with face.unit() as session:
            await session.scalar(sa.select(User))
            await barrier.wait()
            if number == 0:
                gate.set()
            await gate.wait()
            await face.sleep(0)
            return number, face.out()

    results = await face.spawn(lambda: read(0), lambda: read(1), lambda: read(2))

    assert [number for number, _ in results] == [0, 1, 2]
    assert face.out() == 0


async def test_errors_of_workers(face):
    """An error of a worker is raised when all are finished; several come as a group."""

    async def fail():
        raise KeyError

    async def work():
        return 1

    with pytest.raises(KeyError):
        await face.spawn(work, fail)
    with pytest.raises(ExceptionGroup):
        await face.spawn(fail, fail)
    assert await face.spawn(work, work) == [1, 1]
    one, error = await face.spawn(work, fail, return_exceptions=True)
    assert one == 1
    assert isinstance(error, KeyError)


@pytest.mark.drivers("sqlite")
async def test_workers_bear_the_name_of_their_function(face):
    """A message that names a thread names the function of the case."""

    async def fetch_a():
        return threading.current_thread().name

    assert await face.spawn(fetch_a) == ["fetch_a"]


@pytest.mark.drivers("sqlite")
def test_a_synchronous_case_may_not_wait(face):
    """A case that would need a loop on the synchronous face fails at once."""

    class Never:
        def __await__(self):
            yield

    async def case():
        await Never()

    with pytest.raises(RuntimeError, match="not finished at once"):
        face.run(case())


async def test_closing_twice(face):
    """A test may close the database itself."""
    async with face.unit() as session:
        await session.scalar(sa.select(User))
    await face.close()
    await face.close()


def test_a_plain_test_can_run_coroutines(face):
    """`face.run` is the way from a test that is no coroutine."""

    async def case():
        async with face.unit() as session:
            return await session.scalar(sa.select(sa.literal(1)))

    assert face.run(case()) == 1
    assert face.run(case()) == 1
