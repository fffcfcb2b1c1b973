from contextlib import suppress

import pytest
import sqlalchemy as sa

from tenure.exceptions import ReadOnlyUnit

from support.models import Order, User
from support.probe import line, outside, stored

some = pytest.mark.drivers("sqlite", "psycopg", "pymysql", "aiosqlite", "asyncpg")
one = pytest.mark.drivers("sqlite", "aiosqlite")


@pytest.fixture
def ada(face):
    """A user that is there."""
    outside(face, sa.insert(User).values(name="ada", balance=1))


async def _add(session):
    session.add(User(name="bob"))
    await session.flush()


async def _change(session):
    (await session.get(User, 1)).balance = 2
    await session.flush()


async def _delete(session):
    await session.delete(await session.get(User, 1))
    await session.flush()


async def _autoflush(session):
    session.add(User(name="bob"))
    await session.scalar(sa.select(User))


async def _commit(session):
    session.add(User(name="bob"))
    await session.commit()


async def _merge(session):
    await session.merge(User(id=1, name="eve"))
    await session.flush()


async def _raw(session):
    connection = await session.connection()
    result = connection.exec_driver_sql("UPDATE users SET balance = 2")
    if session.is_async:
        await result


async def _savepoint(session):
    async with session.begin_nested():
        session.add(User(name="bob"))


def _execute(statement):
    async def write(session):
        await session.execute(statement)

    return write


def _sync(function):
    async def write(session):
        await session.run_sync(function)

    return write


async def _pending(session):
    session.add(User(name="bob"))


WRITES = {
    "add": _add,
    "change": _change,
    "delete": _delete,
    "autoflush": _autoflush,
    "commit": _commit,
    "merge": _merge,
    "savepoint": _savepoint,
    "insert": _execute(sa.insert(User).values(name="bob")),
    "update": _execute(sa.update(User).values(balance=2)),
    "delete statement": _execute(sa.delete(User)),
    "pending at the end": _pending,
    "text UPDATE": _execute(sa.text("UPDATE users SET balance = 2")),
    "text INSERT": _execute(sa.text("INSERT INTO users (name, balance) VALUES ('bob', 0)")),
    "text DDL": _execute(sa.text("DROP TABLE items")),
    "DDL": _execute(sa.DDL("DROP TABLE items")),
    "driver SQL": _raw,
    "query update": _sync(lambda session: session.query(User).update({"balance": 2})),
    "query delete": _sync(lambda session: session.query(User).delete()),
    "bulk_save_objects": _sync(lambda session: session.bulk_save_objects([User(name="bob")])),
    "bulk_insert_mappings": _sync(lambda session: session.bulk_insert_mappings(User, [{"name": "bob"}])),
    "bulk_update_mappings": _sync(lambda session: session.bulk_update_mappings(User, [{"id": 1, "balance": 2}])),
}


async def attempts(face, attempt):
    """Try each write; the names of those that raised something else than they should, or changed anything."""
    wrong = {}
    for name, write in WRITES.items():
        try:
            await attempt(write)
        except Exception as error:
            if not isinstance(error, ReadOnlyUnit) and name != "driver SQL":  # that goes past the session
                wrong[name] = repr(error)
        else:
            wrong[name] = "went through"
        if outside(face, sa.select(User.balance)) != [1]:
            wrong[name] = "changed the rows"
    outside(face, "SELECT count(*) FROM items")
    return wrong


@some
@pytest.mark.usefixtures("ada")
async def test_writes_in_a_read_only_unit(small):
    """R9: whatever writes raises ReadOnlyUnit, no row changes, and the connection writes again in the next unit."""
    face = small()

    async def attempt(write):
        async with face.unit(readonly=True) as session:
            await write(session)

    wrong = await attempts(face, attempt)
    async with face.unit() as session:
        session.add(User(name="eve"))

    assert wrong == {}
    assert stored(face) == ["ada", "eve"]


@some
@pytest.mark.usefixtures("ada")
async def test_reads_of_all_kinds_work(face):
    """R9: a read-only unit reads in every way: ORM, Core, raw SQL, and within a savepoint."""
    async with face.unit(readonly=True) as session:
        assert await session.scalar(sa.text("SELECT 1")) == 1
        assert (await session.get(User, 1)).name == "ada"
        assert (await session.scalars(sa.select(User.name))).all() == ["ada"]
        assert await session.run_sync(lambda raw: raw.query(User).count()) == 1
        async with session.begin_nested():
            assert await session.scalar(sa.select(sa.func.count()).select_from(User)) == 1
        async with face.unit(propagation="nested"):
            assert await session.scalar(sa.text("SELECT name FROM users")) == "ada"

    assert face.out() == 0


@some
@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize("write", ["add", "insert", "text UPDATE"])
async def test_a_refused_write_that_is_caught(face, write):
    """R9: after a write was refused and caught the unit can go on reading."""
    async with face.unit(readonly=True) as session:
        with suppress(ReadOnlyUnit):
            await WRITES[write](session)
        await session.run_sync(lambda raw: raw.expunge_all())
        assert await session.scalar(sa.text("SELECT balance FROM users")) == 1
        assert (await session.scalars(sa.select(User.name))).all() == ["ada"]

    assert stored(face) == ["ada"]


@one
async def test_what_a_refusal_says(face):
    """R9: the message names what was to be written, its line, the unit and its line, and the remedy."""
    opened = line(1)
    async with face.unit(readonly=True, name="GET /me") as session:
        session.add(User(name="bob"))
        with pytest.raises(ReadOnlyUnit) as flushed:
            await session.flush()
        flush = line(-1)
        session.expunge_all()
        with pytest.raises(ReadOnlyUnit) as inserted:
            await session.execute(sa.insert(User))
        insert = line(-1)
        with pytest.raises(ReadOnlyUnit) as said:
            await session.execute(sa.text("UPDATE users SET balance = 2"))
        text = line(-1)

    end = f"in read-only unit 'GET /me' ({opened}). Open it without readonly=True. [read-only-unit]"
    assert str(flushed.value) == f"flush of 1 User at {flush} {end}"
    assert str(inserted.value) == f"INSERT at {insert} {end}"
    assert str(said.value) == f"execute() at {text} {end}"
    assert isinstance(said.value.__cause__, sa.exc.OperationalError)


@one
async def test_the_line_of_a_flush_at_the_end(face):
    """R9: objects that wait to be written when a read-only unit ends are refused there."""
    with pytest.raises(ReadOnlyUnit, match="flush of 2 ") as caught:
        async with face.unit(readonly=True) as session:
            session.add_all([User(name="ada"), User(name="bob")])

    assert "test_readonly.py:" in str(caught.value)
    assert stored(face) == []


@some
@pytest.mark.usefixtures("ada")
async def test_a_read_only_part_of_a_writing_unit(small):
    """R5: a read-only unit that has joined one that writes refuses its own writes, whatever they are."""
    face = small()

    async def attempt(write):
        async with face.unit() as session:
            await session.scalar(sa.select(User))
            await face.decorated(write, readonly=True)()

    wrong = await attempts(face, attempt)

    assert wrong == {"commit": wrong.get("commit")}
    assert "NotOwner" in wrong["commit"]


@some
@pytest.mark.parametrize("propagation", ["required", "nested"])
async def test_what_the_writing_unit_had_pending_is_not_the_readers(face, propagation):
    """R5: what the outer unit has not written yet is written first, and is not held against its read-only part."""
    async with face.unit() as session:
        session.add(User(name="ada"))
        async with face.unit(readonly=True, propagation=propagation) as reading:
            assert (await reading.scalars(sa.select(User.name))).all() == ["ada"]
            assert await reading.scalar(sa.text("SELECT count(*) FROM users")) == 1
        session.add(User(name="bob"))

    assert stored(face) == ["ada", "bob"]


@some
@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_writing_part_of_a_read_only_unit(face, by_hand):
    """R5: a function that joins a read-only unit may read there and not write, also with the session passed by hand."""

    async def write(session):
        await session.scalar(sa.select(User))
        session.add(User(name="ada"))
        await session.flush()

    write = face.decorated(write)
    with pytest.raises(ReadOnlyUnit):
        async with face.unit(readonly=True) as session:
            await (write(session) if by_hand else write())

    assert stored(face) == []


@one
@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_writing_part_of_a_read_only_part(face, by_hand):
    """R5: read-only holds for all that is within it, also with the session of the writing unit passed by hand."""

    async def write(session):
        session.add(User(name="bob"))
        await session.flush()

    write = face.decorated(write)
    with pytest.raises(ReadOnlyUnit):
        async with face.unit() as session:
            session.add(User(name="ada"))
            async with face.unit(readonly=True):
                await (write(session) if by_hand else write())

    assert stored(face) == []


@pytest.mark.drivers("psycopg", "asyncpg")
@pytest.mark.usefixtures("ada")
async def test_a_lock_in_a_read_only_unit(face):
    """R9: what the server takes for a write, a row lock too, is refused by it, and said in tenure's words."""
    with pytest.raises(ReadOnlyUnit):
        async with face.unit(readonly=True) as session:
            await session.scalars(sa.select(User).with_for_update())


@pytest.mark.drivers("psycopg", "asyncpg")
@pytest.mark.usefixtures("ada")
async def test_a_function_that_writes(face):
    """R9: a SELECT of a function that writes is stopped by the server itself."""
    outside(face, "CREATE OR REPLACE FUNCTION pay() RETURNS int LANGUAGE sql AS 'UPDATE users SET balance = 2 RETURNING 1'")
    with pytest.raises(ReadOnlyUnit):
        async with face.unit(readonly=True) as session:
            await session.scalar(sa.select(sa.func.pay()))

    assert outside(face, sa.select(User.balance)) == [1]
    outside(face, "DROP FUNCTION pay")


@one
@pytest.mark.parametrize("mode", ["off", "warn"])
async def test_the_guard_can_be_switched(make_face, caplog, mode):
    """R49: with the guard off or warning, the database still refuses in a read-only unit, and a part of a writing one writes."""
    face = make_face(guards={"read-only-unit": mode})
    with pytest.raises((ReadOnlyUnit, sa.exc.DBAPIError)):
        async with face.unit(readonly=True) as session:
            await session.execute(sa.insert(User).values(name="ada"))
    async with face.unit() as session, face.unit(readonly=True):
        session.add(Order(user=User(name="bob")))
        await session.flush()

    assert stored(face) == ["bob"]
    assert ("[read-only-unit]" in caplog.text) == (mode == "warn")
