"""When a unit holds its connection, and what its reads and writes come to."""

import contextlib
import sqlite3
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import joinedload, selectinload, with_loader_criteria

import tenure
from tenure.core.streams import streams
from tenure.exceptions import ReadOnlyUnit, ReleaseRefused

from support import servers
from support.models import Order, User
from support.stranger import Stranger

AUTO = {"isolation": "READ COMMITTED"}  # for MySQL, whose own default is stronger
FEW = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
BY_ID = select(User).order_by(User.id)


@pytest.fixture
def auto(make_face, driver):
    """``auto(**options)``: a face whose units read in autocommit, on every driver."""

    def make(**options):
        return make_face(**{**(AUTO if "my" in driver else {}), **options})

    return make


@pytest.fixture
def few(auto):
    """The same with one connection."""
    return auto(**FEW)


@pytest.fixture
def stranger(url):
    with Stranger(url) as one:
        yield one


def at(face):
    """Somebody else at the database of *face*."""
    return Stranger(face.sync_engine.url)


async def fill(face, count=50, orders=0):
    """Store users ``u0`` … with keys from 1, each with some orders."""
    async with face.unit() as session:
        for n in range(count):
            session.add(User(name=f"u{n}", orders=[Order(note=f"{n}.{k}") for k in range(orders)]))
    assert face.out() == 0


def taken(face):
    """Counts how often a connection is taken out of the pool from now on."""
    counts = []
    event.listen(face.pool, "checkout", lambda *args: counts.append(1))
    return counts


# --------------------------------------------------------------------------------------------- held while it is needed


async def test_a_unit_without_sql_takes_nothing(auto):
    """R32: a unit that opens, adds nothing and asks nothing takes no connection."""
    face = auto()
    counts = taken(face)
    async with face.unit() as session:
        assert session.get_bind() is face.sync_engine
        assert not session.in_transaction()
        await session.commit()
        await session.rollback()

    assert counts == []


READS = {
    "execute": lambda s: s.execute(BY_ID).scalars().first().name,
    "scalar": lambda s: s.scalar(select(func.min(User.name))),
    "scalars": lambda s: s.scalars(BY_ID).first().name,
    "get": lambda s: s.get(User, 1).name,
    "get_one": lambda s: s.get_one(User, 1).name,
    "query": lambda s: s.query(User).order_by(User.id).limit(1).one().name,
    "query count": lambda s: f"u{s.query(User).count() - 3}",
    "refresh": lambda s: (s.refresh(one := s.get(User, 1)), one.name)[1],
    "merge": lambda s: s.merge(User(id=1, name="u0"), load=True).name,
    "lazy": lambda s: s.get(Order, 1).user.name,
    "lazy collection": lambda s: s.get(User, 1).orders[0].user.name,
    "selectin": lambda s: s.scalars(BY_ID.options(selectinload(User.orders).selectinload(Order.items))).first().name,
    "joined": lambda s: s.scalars(BY_ID.options(joinedload(User.orders))).unique().first().name,
    "expired": lambda s: (s.expire(one := s.get(User, 1)), one.name)[1],
    "union": lambda s: s.scalar(sa.union(select(User.name), select(Order.note)).order_by("name").limit(1).offset(2)),
    "identity map": lambda s: (s.get(User, 1), s.get(User, 1).name)[1],
}


async def test_a_read_gives_back_at_once(few):
    """R32: however a row is read, its connection is back in the pool before the call returns."""
    await fill(few, 2, orders=1)
    for name, read in READS.items():
        async with few.unit() as session:
            for _ in range(1 if name == "merge" else 2):  # the second merge() flushes what the first one has touched
                got = await session.run_sync(read)
                assert (name, few.out()) == (name, 0)
                assert got == ("u-1" if name == "query count" else "u0"), name
            assert not session.in_transaction()


WRITES = {
    "flush": lambda s: (s.add(User(name="x")), s.flush()),
    "autoflush": lambda s: (s.add(User(name="x")), s.scalar(select(User.id))),
    "insert": lambda s: s.execute(sa.insert(User).values(name="x", balance=0)),
    "update": lambda s: s.execute(sa.update(User).values(balance=1)),
    "delete": lambda s: s.execute(sa.delete(User).where(User.name == "x")),
    "text": lambda s: s.execute(sa.text("UPDATE users SET balance = 2")),
    "for update": lambda s: s.scalars(select(User).with_for_update()).all(),
    "nested for update": lambda s: s.scalars(select(select(User).with_for_update().subquery().c.id)).all(),
    "get for update": lambda s: s.get(User, 1, with_for_update=True),
    "refresh for update": lambda s: s.refresh(s.get(User, 1), with_for_update=True),
    "bulk save": lambda s: s.bulk_save_objects([User(name="x")]),
    "bulk insert": lambda s: s.bulk_insert_mappings(User, [{"name": "x"}]),
    "bulk update": lambda s: s.bulk_update_mappings(User, [{"id": 1, "balance": 4}]),
    "connection": lambda s: s.connection().execute(select(User.id)).all(),
    "savepoint": lambda s: s.begin_nested(),
    "explicit": lambda s: (s.begin(), s.scalar(select(User.id))),
    "unknown function": lambda s: s.scalar(select(getattr(func, FUNCTION[s.info["dialect"]])())),
}
FUNCTION = {"sqlite": "changes", "postgresql": "pg_backend_pid", "mysql": "connection_id"}


async def test_a_write_pins_until_its_commit(few):
    """R32: the first statement that is not a plain read holds one connection until the commit."""
    await fill(few, 2)
    for name, write in WRITES.items():
        async with few.unit() as session:
            await session.scalar(select(User.id))
            session.info["dialect"] = few.dialect
            await session.run_sync(write)
            assert (name, few.out()) == (name, 1)
            await session.scalar(select(User.name))
            assert (name, few.out()) == (name, 1)
            await session.commit()
            assert (name, few.out()) == (name, 0)
            await session.scalar(select(User.name))
            assert (name, few.out()) == (name, 0)
            await session.execute(sa.delete(User).where(User.name == "x"))


async def test_a_flush_of_nothing_pins_nothing(few):
    """R32: flush() and commit() of a session that has only read take no connection."""
    await fill(few, 1)
    async with few.unit() as session:
        await session.get(User, 1)
        counts = taken(few)
        await session.flush()
        await session.commit()

    assert counts == []


async def test_twenty_units_share_two_connections(auto):
    """R32: units that read, wait for each other and read again need no more connections than read at one time."""
    face = auto(pool_size=2, max_overflow=0, pool_timeout=10)
    await fill(face, 3)
    met, out, idle, lock = face.barrier(20), [], [], threading.Lock()

    async def work():
        async with face.unit() as session:
            first = await session.scalar(select(func.count(User.id)))
            await met.wait()  # all have read, and none has ended
            with lock:
                out.append(face.out())
                idle.append(other.idle_in_transaction() if face.dialect == "postgresql" else 0)
            await met.wait()
            return first, (await session.get(User, 2)).name

    with at(face) as other:
        assert await face.spawn(*[work] * 20) == [(3, "u1")] * 20
    assert set(out) == set(idle) == {0}
    assert face.db.status().peak <= 2
    assert face.out() == 0


@pytest.mark.dialects("postgresql")
async def test_the_server_never_sees_an_idle_transaction(few, stranger):
    """R32: after each read the server finds nothing begun; after a write it does, until the commit."""
    await fill(few, 3, orders=1)
    async with few.unit() as session:
        for name, read in READS.items():
            if name == "merge":  # whose copy the next read would flush
                continue
            await session.run_sync(read)
            assert stranger.idle_in_transaction() == 0
        await session.execute(sa.update(User).values(balance=1))
        assert stranger.idle_in_transaction() == 1
        await session.commit()
        assert stranger.idle_in_transaction() == 0


# ------------------------------------------------------------------------------------------------------------ right rows

FETCHES = {
    "all": lambda result: result.all(),
    "iterate": list,
    "fetchone": lambda result: list(iter(result.fetchone, None)),
    "fetchmany": lambda result: [row for part in iter(lambda: result.fetchmany(7), []) for row in part],
    "partitions": lambda result: [row for part in result.partitions(9) for row in part],
    "scalars": lambda result: result.scalars().all(),
    "mappings": lambda result: result.mappings().all(),
    "unique": lambda result: result.unique().all(),
    "yield_per after": lambda result: list(result.yield_per(5)),
    "first and rest": lambda result: [result.fetchone(), *result.fetchmany(3), *result.fetchall()],
    "freeze": lambda result: result.freeze()().all(),
}
SOURCES = (select(User), select(User.id, User.name), select(User.__table__))


async def test_fifty_rows(few):
    """R33: a result that is read after another unit deleted its rows on the same connection still has all 50."""
    await fill(few)
    async with few.unit() as session:
        results = [(name, await session.execute(source)) for name in FETCHES for source in SOURCES]
        async with few.unit(propagation="new") as other:
            await other.execute(sa.delete(User).where(User.id > 10))
        assert [(name, len(FETCHES[name](result))) for name, result in results if name] == [(name, 50) for name, _ in results]
        assert await session.scalar(select(func.count(User.id))) == 10


async def test_loads_of_a_statement_see_rows_in_memory(few):
    """R33: eager and lazy loads come right though other units wrote on the same connection in between."""
    await fill(few, 5, orders=3)
    async with few.unit() as session:
        users = (await session.scalars(BY_ID.options(selectinload(User.orders)))).all()
        async with few.unit(propagation="new") as other:
            await other.execute(sa.delete(Order))
        assert [len(user.orders) for user in users] == [3] * 5
        assert await session.run_sync(lambda s: (s.expire(users[0]), len(users[0].orders))[1]) == 0


async def test_what_a_unit_reads_is_what_is_committed(auto):
    """R33: each read sees what others have committed by then, as at READ COMMITTED, and never what they have not."""
    face = auto()
    await fill(face, 1)
    async with face.unit() as session, face.unit(propagation="new") as other:
        assert await session.scalar(select(User.balance)) == 0
        await other.execute(sa.update(User).values(balance=7))
        assert await session.scalar(select(User.balance)) == 0
        await other.commit()
        assert await session.scalar(select(User.balance)) == 7


@pytest.mark.dialects("mysql")
async def test_mysqls_default_isolation(make_face):
    """R33: at MySQL's REPEATABLE READ two reads of a unit agree, and the next unit sees the new row."""
    face = make_face()
    await fill(face, 1)
    counts = []
    async with face.unit() as session:
        counts.append(await session.scalar(select(func.count(User.id))))
        assert face.out() == 1
        async with face.unit(propagation="new") as other:
            other.add(User(name="new"))
        counts.append(await session.scalar(select(func.count(User.id))))
    async with face.unit() as session:
        counts.append(await session.scalar(select(func.count(User.id))))

    assert counts == [1, 1, 2]


@pytest.mark.parametrize("where", ["unit", "database", "engine"])
async def test_a_stronger_isolation_is_a_transaction(make_face, driver, where):
    """R33: above READ COMMITTED a unit is a transaction from its first statement on, wherever that was asked for."""
    level = "SERIALIZABLE" if "sqlite" in driver else "REPEATABLE READ"
    if "sqlite" in driver and where == "engine":
        pytest.skip("the engine's isolation is SQLite's own, and no wish")
    face = make_face(**{"unit": {}, "database": {"isolation": level}, "engine": {"isolation_level": level}}[where])
    async with face.unit(**({"isolation": level} if where == "unit" else {})) as session:
        first = await session.scalar(select(func.count(User.id)))
        assert face.out() == 1
        if face.dialect != "sqlite":  # there nobody else can write meanwhile
            async with face.unit(propagation="new") as other:
                other.add(User(name="new"))
        assert await session.scalar(select(func.count(User.id))) == first

    assert face.out() == 0


@pytest.mark.parametrize("where", ["unit", "database"])
async def test_hold_transaction(auto, where):
    """R33: hold="transaction" is SQLAlchemy's classic rule: one connection from the first statement to the end."""
    face = auto(**({"hold": "transaction"} if where == "database" else {}))
    counts = taken(face)
    async with face.unit(**({"hold": "transaction"} if where == "unit" else {})) as session:
        assert face.out() == 0
        for _ in range(3):
            await session.scalar(select(User.id))
            assert face.out() == 1
        await session.commit()
        assert face.out() == 0
        await session.scalar(select(User.id))
        assert face.out() == 1

    assert (len(counts), face.out()) == (2, 0)


# --------------------------------------------------------------------------------------------------------------- streams

STREAMS = {
    "statement yield_per": lambda s: s.scalars(BY_ID.execution_options(yield_per=7)),
    "call yield_per": lambda s: s.scalars(BY_ID, execution_options={"yield_per": 7}),
    "stream_results": lambda s: s.execute(BY_ID, execution_options={"stream_results": True}).scalars(),
    "core": lambda s: s.execute(select(User.__table__.c.id).execution_options(stream_results=True, max_row_buffer=5)).scalars(),
    "selectin": lambda s: s.scalars(BY_ID.options(selectinload(User.orders)).execution_options(yield_per=25)),
}
BUFFERED = ("aiosqlite",)  # SQLAlchemy's face of it may read on in a stream in synchronous code


@pytest.mark.faces("sync")
@pytest.mark.parametrize("stream", STREAMS)
def test_streams(auto, stream):
    """R33: the rows of a stream come from the server while they are read, in the transaction that began with it."""
    face = auto()
    face.run(fill(face, 50, orders=1 if stream == "selectin" else 0))
    if stream == "selectin" and face.dialect == "mysql":
        pytest.skip("a MySQL connection runs no second statement while one streams")

    with face.db.unit() as session:
        rows = STREAMS[stream](session)
        got = [next(rows)]
        assert face.out() == 1
        got += list(rows)
        assert face.out() == 1
        session.commit()
        assert face.out() == 0

    assert len(got) == 50


@pytest.mark.faces("sync")
def test_query_yield_per(auto):
    """R33: Query.yield_per() is a stream too. This test fails when SQLAlchemy keeps the number somewhere else."""
    face = auto()
    face.run(fill(face))
    with face.db.unit() as session:
        rows = iter(session.query(User).order_by(User.id).yield_per(7))
        got = [next(rows)]
        assert face.out() == 1
        got += list(rows)

    assert [user.id for user in got] == list(range(1, 51))


def test_which_statements_stream():
    """R33: a number of rows at a time, or a cursor on the server, asked for on the statement or the call, is a stream."""
    assert not streams(select(User), None)
    assert not streams(select(User), {"yield_per": None, "populate_existing": True})
    assert streams(select(User), {"yield_per": 5})
    assert streams(select(User).execution_options(stream_results=True), None)
    assert not streams(select(User).execution_options(stream_results=True), {"stream_results": False})
    assert streams(sa.text("SELECT 1").execution_options(yield_per=3), {})


async def test_a_stream_through_the_session(auto):
    """R33: `session.stream()` reads to its end, also while others write, and gives its connection back at the commit."""
    face = auto()
    await fill(face)
    async with face.unit() as session:
        rows = await session.stream(BY_ID)
        names = [row[0].name async for row in rows]
        await rows.close()
        assert len(names) == 50
        await session.commit()
        assert face.out() == 0


@pytest.mark.dialects("postgresql", "mysql")
async def test_a_stream_while_others_write(auto):
    """R33: a stream goes on with the rows that were there when it began."""
    face = auto()
    await fill(face, 300)
    async with face.unit() as session:
        rows = await session.stream(BY_ID, execution_options={"yield_per": 10})
        names = []
        async for row in rows:
            if not names:
                async with face.unit(propagation="new") as other:
                    await other.execute(sa.delete(User).where(User.id > 200).execution_options(synchronize_session=False))
            names.append(row[0].name)

    assert len(names) == 300


async def test_closed_streams_give_their_connection_back(few):
    """R33, R34: when every stream is closed, the connection goes home with the next call; an open or a written one keeps it."""
    await fill(few, 20)
    late = few.driver == "sqlite"  # where other rows of the same transaction may still be to come
    stream = BY_ID.execution_options(yield_per=5)
    async with few.unit() as session:
        for closes in (True, True, False):
            rows = await session.stream(stream)
            assert (await rows.fetchone())[0].name == "u0"
            assert few.out() == 1
            if closes:
                await rows.close()
                assert await session.scalar(select(func.count(User.id))) == 20
                assert few.out() == late
        if few.dialect != "mysql":  # whose drivers know one statement at a time
            assert await session.scalar(select(func.count(User.id))) == 20
            assert few.out() == 1
        await rows.close()

    async with few.unit() as session:
        session.add(User(name="ada"))
        rows = await session.stream(stream)
        await rows.close()
        assert await session.scalar(select(func.count(User.id))) == 21
        assert few.out() == 1

    async with few.unit(hold="transaction") as session:
        await (await session.stream(stream)).close()
        assert await session.scalar(select(func.count(User.id))) == 21
        assert few.out() == 1


READERS = {
    "rows": lambda session, stream: session.stream(stream),
    "scalars": lambda session, stream: session.scalars(stream),
    "columns": lambda session, stream: session.stream(select(User.id).order_by(User.id).execution_options(yield_per=5)),
}


@pytest.mark.parametrize("reader", READERS)
async def test_streams_read_to_their_end_give_their_connection_back(few, reader):
    """R33, R34: a stream that was read to its end and not closed is over as well; one of which a row is missing is not."""
    await fill(few, 20)
    late = few.driver == "sqlite"
    stream = BY_ID.execution_options(yield_per=5)
    if few.is_async and reader == "scalars":
        pytest.skip("AsyncSession.scalars() takes no streams")
    async with few.unit() as session:
        rows = await READERS[reader](session, stream)
        if reader == "scalars":
            for _ in range(20):
                next(rows)
            assert next(rows, None) is None
        else:
            for _ in range(20):
                assert await rows.fetchone() is not None
            assert few.out() == 1
            assert await rows.fetchone() is None
        assert not getattr(rows, "raw", rows).closed
        assert await session.scalar(select(func.count(User.id))) == 20
        assert few.out() == late


ALWAYS = {
    "engine": {"execution_options": {"stream_results": True}},
    "session": {"session_options": {"execution_options": {"yield_per": 5}}},
}


@pytest.mark.parametrize("where", ALWAYS)
async def test_streaming_by_default(auto, where):
    """R33: an engine or a session that streams everything is held by SQLAlchemy's rule."""
    if where == "session" and sa.__version__ < "2.1":
        pytest.skip("Session(execution_options=…) came with SQLAlchemy 2.1")
    plain, face = auto(), auto(**ALWAYS[where])
    await fill(plain, 20)
    if plain.dialect == "sqlite":
        pytest.skip("each face has a file of its own, and there a stream is nothing special")
    async with face.unit() as session:
        names = await session.run_sync(lambda s: [user.name for user in s.scalars(BY_ID)])
        assert names == [f"u{n}" for n in range(20)]


# -------------------------------------------------------------------------------------------------------------- rollback


async def change(session, *, delete=2, modify=1, add="new"):
    one = await session.get(User, modify)
    two = await session.get(User, delete)
    one.name = "changed"
    await session.delete(two)
    session.add(new := User(name=add))
    return one, two, new


@pytest.mark.parametrize("flushes", [False, True])
async def test_rollback_after_a_read(few, flushes):
    """R33: rollback() undoes what is pending, deleted and modified, whether or not a read came in between."""
    await fill(few, 3)
    async with few.unit() as session:
        with session.no_autoflush if not flushes else contextlib.nullcontext():
            one, two, new = await change(session)
            await session.scalar(select(func.count(User.id)))
            await session.scalars(select(Order))
        assert few.out() == int(flushes)
        await session.rollback()
        assert not session.new
        assert not session.deleted
        assert not session.dirty
        assert new not in session.raw
        assert two in session.raw
        assert await session.run_sync(lambda s: (one.name, two.name)) == ("u0", "u1")
        await session.commit()

    with at(few) as other:
        assert other.column("SELECT name FROM users ORDER BY id") == ["u0", "u1", "u2"]


async def test_add_read_rollback(few):
    """R33: what autoflush wrote for a read is undone by the unit's end, and nobody saw it."""
    with pytest.raises(KeyError), at(few) as other:
        async with few.unit() as session:
            session.add(User(name="ada"))
            assert await session.scalar(select(func.count(User.id))) == 1
            assert other.column("SELECT name FROM users") == []
            raise KeyError

    with at(few) as other:
        assert other.column("SELECT name FROM users") == []


async def test_no_autoflush(few):
    """R33: under no_autoflush a read neither sees nor writes what is pending; the commit writes it."""
    async with few.unit() as session:
        session.add(User(name="ada"))
        with session.no_autoflush, at(few) as other:
            assert await session.scalar(select(func.count(User.id))) == 0
            assert few.out() == 0
            assert other.column("SELECT name FROM users") == []
        assert len(session.new) == 1

    with at(few) as other:
        assert other.column("SELECT name FROM users") == ["ada"]


async def test_expire_on_commit(auto):
    """R33: with expire_on_commit=True a commit after reads alone expires too, and the next access reads anew."""
    face = auto(**FEW, session_options={"expire_on_commit": True})
    await fill(face, 1)
    async with face.unit() as session:
        user = await session.get(User, 1)
        async with face.unit(propagation="new") as other:
            await other.execute(sa.update(User).values(name="new"))
        assert user.name == "u0"
        await session.commit()
        assert await session.run_sync(lambda s: user.name) == "new"
        assert face.out() == 0


async def test_objects_stay_the_same(few):
    """R33: the identity map goes on over reads, so one row is one object and changes are not overwritten."""
    await fill(few, 2)
    async with few.unit() as session:
        one = await session.get(User, 1)
        with session.no_autoflush:
            one.balance = 5
            again = (await session.scalars(BY_ID)).first()
        assert again is one
        assert again.balance == 5
        await session.refresh(one, ["name"])

    with at(few) as other:
        assert other.column("SELECT balance FROM users ORDER BY id") == [5, 0]


# -------------------------------------------------------------------------------------------- transactions of the caller


async def test_an_explicit_transaction(few):
    """R33: after session.begin() all statements, reads too, are in one transaction until it ends."""
    await fill(few, 1)
    async with few.unit() as session:
        block = session.raw.begin()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(block) if few.is_async else stack.enter_context(block)
            await session.scalar(select(User.id))
            assert few.out() == 1
            await session.execute(sa.update(User).values(balance=3))
        assert few.out() == 0
        assert await session.scalar(select(User.balance)) == 3
        assert few.out() == 0


async def test_savepoints(few):
    """R33: a savepoint begins a transaction; a failed one undoes itself alone; reads after it stay in the transaction."""
    await fill(few, 1)
    async with few.unit() as session:
        await session.get(User, 1)
        async with session.begin_nested():
            assert few.out() == 1
            session.add(User(name="kept"))
        with pytest.raises(sa.exc.IntegrityError):
            async with session.begin_nested():
                assert await session.scalar(select(func.count(User.id))) == 2
                session.add(User(name="kept"))
        assert few.out() == 1
        assert await session.scalar(select(func.count(User.id))) == 2

    with at(few) as other:
        assert other.column("SELECT name FROM users ORDER BY id") == ["u0", "kept"]


async def test_the_connection(few):
    """R33: session.connection() is that of the unit's transaction: it sees and shares what the session wrote."""
    async with few.unit() as session:
        session.add(User(name="ada"))
        await session.flush()
        connection = await session.connection()
        rows = connection.execute(select(User.name))
        assert (await rows if few.is_async else rows).scalars().all() == ["ada"]
        rows = connection.execute(sa.update(User).values(balance=9))
        if few.is_async:
            await rows
        assert await session.scalar(select(User.balance)) == 9
        await session.rollback()
        assert await session.scalar(select(func.count(User.id))) == 0


async def test_asking_for_the_bind(few):
    """R33: get_bind() tells the engine, takes no connection, and changes nothing for the reads that follow."""
    async with few.unit() as session:
        sync = getattr(session.raw, "sync_session", session.raw)
        assert sync.get_bind() is few.sync_engine
        assert sync.get_bind(User) is few.sync_engine
        assert sync.get_bind(bind=few.sync_engine) is few.sync_engine
        await session.scalar(select(User.id))
        assert few.out() == 0


async def test_bulk_operations(few):
    """R33: bulk operations are written in the unit's transaction, seen by its reads, and undone with it."""
    await fill(few, 2)
    async with few.unit() as session:
        await session.scalar(select(User.id))
        await session.execute(sa.insert(User), [{"name": f"b{n}", "balance": n} for n in range(5)])
        await session.run_sync(lambda s: s.bulk_insert_mappings(User, [{"name": "mapped"}]))
        await session.run_sync(lambda s: s.bulk_save_objects([User(name="saved")]))
        assert await session.scalar(select(func.count(User.id))) == 9
        await session.rollback()
        assert await session.scalar(select(func.count(User.id))) == 2


async def test_merge(few):
    """R33: merge() reads, keeps its changes to itself until the flush, and stores them with the unit."""
    await fill(few, 1)
    async with few.unit() as session:
        merged = await session.merge(User(id=1, name="merged", balance=4))
        assert few.out() == 0
        await session.merge(User(id=2, name="added", balance=5))
        assert merged.name == "merged"

    with at(few) as other:
        assert other.rows("SELECT name, balance FROM users ORDER BY id") == [("merged", 4), ("added", 5)]


async def test_release(few):
    """R34: release() gives the connection of a classic unit back, and refuses while something would be lost."""
    await fill(few, 1)
    async with few.unit(hold="transaction") as session:
        user = await session.get(User, 1)
        assert few.out() == 1
        await release(few)
        assert few.out() == 0
        user.balance = 1
        with pytest.raises(ReleaseRefused):
            await release(few)
        await session.flush()
        with pytest.raises(ReleaseRefused):
            await release(few)
        await session.commit()
        await release(few)
        nested = session.raw.begin_nested()
        if few.is_async:
            await nested
        with pytest.raises(ReleaseRefused):
            await release(few)
        await session.rollback()
        assert await session.scalar(select(User.balance)) == 1


async def release(face):
    done = face.current.release()
    if face.is_async:
        await done


# --------------------------------------------------------------------------------------------------- statements that fail

BROKEN = {
    "no such table": (sa.exc.SQLAlchemyError, lambda: select(sa.table("nowhere", sa.column("x")))),
    "no such column": (sa.exc.SQLAlchemyError, lambda: select(User.id, sa.column("nowhere"))),
    "wrong type": (Exception, lambda: select(User).where(User.id == sa.bindparam("n", "x", sa.Integer))),
    "out of range": (Exception, lambda: select(User).where(User.id == sa.bindparam("n", 1 << 70, sa.Integer))),
    "not adaptable": (Exception, lambda: select(User).where(User.name == sa.bindparam("n", object(), sa.String))),
    "no parameter": (sa.exc.StatementError, lambda: select(User).where(User.id == sa.bindparam("missing"))),
}
ASKED = {"mysql": ("wrong type", "out of range", "not adaptable"), "sqlite": ("wrong type",)}  # answered without an error


async def test_a_failing_read_leaves_nothing_open(few):
    """R33: after a read that failed, in the server or before it, nothing is held or open, and the session goes on."""
    for name, (kind, make) in BROKEN.items():
        await fill(few, 1)
        async with few.unit() as session:
            answered = name in ASKED.get(few.dialect, ())
            with contextlib.nullcontext() if answered else pytest.raises(kind):
                (await session.execute(make())).all()
            assert (name, few.out()) == (name, 0)
            with at(few) as other:
                if few.dialect == "postgresql":
                    assert (name, other.working()) == (name, 0)
                    other.run("TRUNCATE orders, users CASCADE")
                other.run("DELETE FROM users")
            assert await session.scalar(select(func.count(User.id))) == 0


async def test_a_miss_costs_no_connection(few):
    """R33: get_one() that finds nothing and refresh() of a row that is gone are answers, and their connection is sound."""
    await fill(few, 1)
    made = []
    event.listen(few.pool, "connect", lambda *args: made.append(1))
    async with few.unit() as session:
        user = await session.get(User, 1)
        with at(few) as other:
            other.run("DELETE FROM users")
        with pytest.raises(sa.exc.NoResultFound):
            await session.get_one(User, 4711)
        with pytest.raises(sa.exc.InvalidRequestError):
            await session.refresh(user)
        assert await session.scalar(select(func.count(User.id))) == 0

    assert made == []


@pytest.mark.dialects("sqlite")
async def test_a_begin_that_fails_holds_nothing(auto):
    """R33: when BEGIN IMMEDIATE fails the unit holds no connection; it can read, and write once the lock is gone."""
    face = auto(**FEW)
    event.listen(face.sync_engine, "connect", _impatient)
    await fill(face, 1)
    lock = sqlite3.connect(face.sync_engine.url.database, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    async with face.unit() as session:
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            await session.execute(sa.update(User).values(balance=1))
        assert face.out() == 0
        assert await session.scalar(select(User.balance)) == 0
        lock.execute("ROLLBACK")
        await session.execute(sa.update(User).values(balance=1))
    lock.close()

    with at(face) as other:
        assert other.column("SELECT balance FROM users") == [1]


def _impatient(connection, record):
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 50")
    cursor.close()


# ---------------------------------------------------------------------------------------- statements within statements


async def test_a_load_while_an_outer_statement_reads_its_parameters(few):
    """R33: a statement whose parameter must be loaded first works, and both give their connections back."""
    await fill(few, 2, orders=2)
    async with few.unit() as session:
        user = await session.get(User, 1)

        def ask(s):
            s.expire(user)
            return s.scalars(select(Order).where(Order.user == user)).all()

        assert len(await session.run_sync(ask)) == 2
        assert few.out() == 0


@pytest.mark.parametrize("inner", ["reads", "pins"])
async def test_a_listener_that_asks_while_a_parameter_is_loaded(auto, inner):
    """R33: an inner statement that pins, while an outer one reads its parameters, does not take the outer one's connection."""
    face = auto(pool_size=2, max_overflow=0, pool_timeout=5)
    await fill(face, 2, orders=2)
    statement = select(func.count(Order.id))
    async with face.unit() as session:
        user = await session.get(User, 1)

        def on_refresh(target, context, attributes):
            context.session.execute(statement if inner == "reads" else select(Order).with_for_update())

        def ask(s):
            s.expire(user)
            event.listen(User, "refresh", on_refresh)
            try:
                return s.scalars(select(Order).where(Order.user == user)).all()
            finally:
                event.remove(User, "refresh", on_refresh)

        assert len(await session.run_sync(ask)) == 2
        assert face.out() == int(inner == "pins")
        await session.commit()
        assert face.out() == 0


async def test_autoflush_within_a_parameter(few):
    """R33: an outer read whose parameter makes the session flush runs in the transaction that this began."""
    await fill(few, 2, orders=1)
    async with few.unit() as session:
        user = await session.get(User, 1)
        session.add(Order(user_id=1, note="new"))
        notes = await session.run_sync(
            lambda s: [o.note for o in s.scalars(select(Order).where(Order.user == user).order_by(Order.id))]
        )
        assert notes == ["0.0", "new"]
        assert few.out() == 1


async def test_listeners_that_read(few):
    """R33: a listener that reads during a flush or a commit reads in the unit's transaction."""
    await fill(few, 1)
    seen = []

    def listener(session, *args):
        with session.no_autoflush:
            seen.append((session.scalar(select(func.count(User.id))), few.out()))

    async with few.unit() as session:
        sync = getattr(session.raw, "sync_session", session.raw)
        for name in ("before_flush", "after_flush", "before_commit", "after_flush_postexec"):
            event.listen(sync, name, listener)
        session.add(User(name="ada"))
        await session.flush()
        await session.commit()

    assert [count for count, _ in seen][:4] == [1, 2, 2, 2]
    assert {out for _, out in seen} == {1}
    assert few.out() == 0


async def test_a_listener_that_reads_before_a_commit_of_nothing(few):
    """R33: a listener that reads in the commit of a unit that wrote nothing gets its rows, and nothing is held afterwards."""
    await fill(few, 1)
    seen = []
    async with few.unit() as session:
        sync = getattr(session.raw, "sync_session", session.raw)
        event.listen(sync, "before_commit", lambda s: seen.append(s.scalar(select(func.count(User.id)))))
        await session.get(User, 1)
        await session.commit()
        assert few.out() == 0

    assert seen[0] == 1


async def test_a_listener_that_changes_statements(few):
    """R33: what a do_orm_execute listener makes of a statement decides, for ORM and Core statements."""
    await fill(few, 3)
    async with few.unit() as session:
        sync = getattr(session.raw, "sync_session", session.raw)
        locking = [False]

        def listener(state):
            if locking[0]:
                state.statement = state.statement.with_for_update()
            elif state.is_orm_statement:
                state.statement = state.statement.options(with_loader_criteria(User, User.id > 1))

        event.listen(sync, "do_orm_execute", listener)
        assert len((await session.scalars(BY_ID)).all()) == 2
        assert len((await session.execute(select(User.__table__))).all()) == 3
        assert few.out() == 0
        locking[0] = True
        for statement in (select(User.__table__), BY_ID):
            await session.execute(statement)
            assert few.out() == 1
            await session.commit()


@pytest.mark.faces("sync")
def test_a_listener_that_makes_streams(auto):
    """R33: a do_orm_execute listener that makes every statement a stream gets streams."""
    face = auto()
    face.run(fill(face, 30))
    with face.db.unit() as session:
        event.listen(session, "do_orm_execute", lambda state: state.update_execution_options(yield_per=4))
        rows = session.scalars(BY_ID)
        assert next(rows).id == 1
        assert face.out() == 1
        assert len(list(rows)) == 29


async def test_a_listener_that_answers_from_a_cache(few):
    """R33: a do_orm_execute listener that runs the statement itself, or answers in its place, works as it does elsewhere."""
    await fill(few, 2)
    async with few.unit() as session:
        sync = getattr(session.raw, "sync_session", session.raw)
        frozen = []

        def listener(state):
            if not frozen:
                frozen.append(state.invoke_statement().freeze())
            return frozen[0]()

        event.listen(sync, "do_orm_execute", listener)
        names = [[row.name for row in (await session.execute(select(User.name))).all()] for _ in range(2)]
        assert names == [["u0", "u1"]] * 2
        assert few.out() == 0


# ----------------------------------------------------------------------------------- listeners that begin transactions

WHO = (
    select(sa.column("setting"))
    .select_from(sa.table("pg_settings", sa.column("name")))
    .where(sa.column("name") == "application_name")
)


def _tenant(connection):
    connection.execute(sa.text("SET LOCAL application_name = 'tenant-a'"))


def _checkout(driver_connection, record, proxy):
    cursor = driver_connection.cursor()
    cursor.execute("SET application_name = 'tenant-a'")
    cursor.close()


BEGINNINGS = {
    "begin": lambda face, session: event.listen(face.sync_engine, "begin", _tenant),
    "engine_connect": lambda face, session: event.listen(face.sync_engine, "engine_connect", _tenant),
    "checkout": lambda face, session: event.listen(face.sync_engine, "checkout", _checkout),
    "after_begin": lambda face, session: event.listen(session, "after_begin", lambda s, t, c: _tenant(c)),
}


@pytest.mark.dialects("postgresql")
@pytest.mark.parametrize("where", BEGINNINGS)
async def test_settings_made_as_a_transaction_begins(few, stranger, where):
    """R33: what a listener sets as a transaction or a lease begins (a tenant, a role) holds for every read, and no longer."""
    async with few.unit() as session:
        sync = getattr(session.raw, "sync_session", session.raw)
        BEGINNINGS[where](few, sync)
        for _ in range(2):
            assert await session.scalar(WHO) == "tenant-a"
            assert few.out() == 0
            assert stranger.idle_in_transaction() == 0
        session.add(User(name="ada"))
        await session.flush()  # SQLAlchemy 2.0 does so by itself for statements of the ORM only
        assert await session.scalar(WHO) == "tenant-a"
        assert few.out() == 1

    assert stranger.column("SELECT name FROM users") == ["ada"]


@pytest.mark.dialects("postgresql")
async def test_settings_of_the_unit(auto, stranger):
    """R60: settings= hold in each transaction of the unit, after a checkpoint too, and never for anybody else."""
    face = auto(**FEW)
    mine = {"application_name": "tenant-a", "app.tenant": "7"}
    tenant = select(func.current_setting("app.tenant", True))
    async with face.unit(settings=mine) as session:
        for ending in (session.commit, session.rollback, session.commit):
            assert await session.scalar(WHO) == "tenant-a"
            assert await session.scalar(tenant) == "7"
            assert face.out() == 1
            await ending()
            assert face.out() == 0
    async with face.unit() as session:
        assert await session.scalar(WHO) != "tenant-a"
        assert await session.scalar(tenant) in (None, "")
    with pytest.raises(sa.exc.ProgrammingError):
        async with face.unit(settings={"app.tenant": "8"}) as session:
            await session.execute(sa.text("SELECT nonsense"))
    async with face.unit(settings={"statement_timeout": 4711}) as session:
        assert await session.scalar(select(func.current_setting("statement_timeout"))) == "4711ms"
    async with face.unit() as session:
        assert await session.scalar(tenant) in (None, "")
        assert await session.scalar(select(func.current_setting("statement_timeout"))) == "0"


# ------------------------------------------------------------------------------------------------------- other engines


@pytest.fixture
def elsewhere(driver, tmp_path):
    """Another database of the same driver's kind, with its tables: an engine, and how to look into it."""
    address = servers.url("aiosqlite" if servers.DRIVERS[driver].is_async else "sqlite", tmp_path)
    engine = create_async_engine(address) if servers.DRIVERS[driver].is_async else sa.create_engine(address)
    sync = getattr(engine, "sync_engine", engine)
    yield sync
    if servers.DRIVERS[driver].is_async:
        sync.pool = sync.pool.recreate()
    else:
        sync.dispose()


@pytest.mark.faces("sync")
@pytest.mark.parametrize("way", ["statement", "connection"])
def test_another_engine(auto, elsewhere, way):
    """R33: work on an engine of the caller's own is kept over reads, refused by release(), and committed with the unit."""
    face = auto(**FEW)
    face.run(fill(face, 1))
    add, there = sa.insert(User).values(name="there", balance=0), {"bind": elsewhere}
    with face.db.unit() as session:
        session.scalar(select(User.id))
        assert face.out() == 0
        if way == "statement":
            session.execute(add, bind_arguments=there)
        else:
            session.connection(bind_arguments=there).execute(add)
        assert session.scalar(select(User.name)) == "u0"
        assert session.scalar(select(User.name), bind_arguments=there) == "there"
        with pytest.raises(ReleaseRefused):
            face.current.release()
    with pytest.raises(ReadOnlyUnit), face.db.unit(readonly=True) as session:
        session.execute(sa.delete(User), bind_arguments=there)

    with Stranger(elsewhere.url) as other:
        assert other.column("SELECT name FROM users") == ["there"]


@pytest.mark.faces("sync")
def test_another_engine_is_rolled_back(auto, elsewhere):
    """R33: work on an engine of the caller's own is undone with the unit."""
    face = auto(**FEW)
    with pytest.raises(KeyError), face.db.unit() as session:
        session.execute(sa.insert(User).values(name="there", balance=0), bind_arguments={"bind": elsewhere})
        session.scalar(select(User.id))
        raise KeyError

    with Stranger(elsewhere.url) as other:
        assert other.column("SELECT name FROM users") == []


async def test_its_own_engine_as_a_bind(few):
    """R33: naming the database's own engine as the bind changes nothing."""
    await fill(few, 1)
    mine = {"bind": few.sync_engine}
    async with few.unit() as session:
        assert await session.scalar(select(User.name), bind_arguments=mine) == "u0"
        assert few.out() == 0
        await session.execute(sa.update(User).values(balance=1), bind_arguments=mine)
        assert await session.scalar(select(User.balance)) == 1
        assert few.out() == 1


# --------------------------------------------------------------------------------------------------------------- SQLite


@pytest.mark.dialects("sqlite")
async def test_sqlite_begins_immediate_at_the_first_write(auto):
    """R33: a writing unit waits for its turn before it reads what it will write, so no increment is lost."""
    face = auto(pool_size=8)
    await fill(face, 1)

    async def increment():
        for _ in range(10):
            async with face.unit() as session:
                user = await session.get(User, 1, with_for_update=True)
                user.balance += 1

    await face.spawn(*[increment] * 6)

    with at(face) as other:
        assert other.column("SELECT balance FROM users") == [60]


@pytest.mark.dialects("sqlite")
async def test_sqlite_reads_take_no_lock(auto):
    """R43: a unit that has only read, raw SQL too, keeps nobody from writing, not even a unit within it."""
    face = auto()
    await fill(face, 1)
    async with face.unit() as session:
        for statement in (select(User), sa.text("SELECT * FROM users"), select(User).where(User.name < func.now())):
            await session.execute(statement)
            with at(face) as other:
                assert other.locked("users") is False
            async with face.unit(propagation="new") as inner:
                await inner.execute(sa.update(User).values(balance=User.balance + 1))
        assert await session.scalar(select(User.balance)) == 3
        session.add(User(name="ada"))
        await session.flush()
        with at(face) as other:
            assert other.locked("users") is True


# -------------------------------------------------------------------------------------------------------------- psycopg2


def test_psycopg2(watch):
    """R33: psycopg2 is held by the same rule: rows in memory, reads given back, streams and writes pinned."""
    servers.clean("psycopg")
    face = watch(tenure.Database(servers.url("psycopg").set(drivername="postgresql+psycopg2"), **FEW))
    face.run(fill(face))
    with face.db.unit() as session:
        result = session.execute(select(User))
        assert face.out() == 0
        with face.db.unit(propagation="new") as other:
            other.execute(sa.delete(User).where(User.id > 10))
        assert len(result.all()) == 50
        with pytest.raises(sa.exc.ProgrammingError):
            session.execute(select(sa.column("nowhere")))
        assert face.out() == 0
        rows = session.scalars(BY_ID.execution_options(yield_per=3))
        assert next(rows).id == 1
        assert face.out() == 1
        assert len(list(rows)) == 9
        session.commit()
        with Stranger(face.sync_engine.url) as stranger:
            assert stranger.idle_in_transaction() == 0
        session.add(User(name="ada"))
        session.rollback()
        assert session.scalar(select(func.count(User.id))) == 10


def test_psycopg2_with_server_side_cursors(watch):
    """R33: an engine of psycopg2 whose every cursor is the server's is held by SQLAlchemy's rule."""
    servers.clean("psycopg")
    address = servers.url("psycopg").set(drivername="postgresql+psycopg2")
    face = watch(tenure.Database(address))
    face.run(fill(face))
    streaming = watch(tenure.Database(address, execution_options={"stream_results": True}))
    with streaming.db.unit() as session:
        assert len(session.scalars(BY_ID).all()) == 50
        assert streaming.out() == 1
