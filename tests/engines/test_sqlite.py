"""SQLite under many threads."""

import gc
import re
import sqlite3
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import event, func, select, text

from tenure import AsyncDatabase, Database
from tenure.engines.sqlite import BufferingConnection, is_prepared

from support.models import Base, User


def _run(threads: int, work) -> list[BaseException]:
    errors: list[BaseException] = []
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    return errors


@pytest.mark.parametrize("where", ["file", "memory"])
def test_short_units_wait_for_each_other(where, tmp_path, watch) -> None:
    """R43: 8 threads with 100 short writing units each on a file: no lock error, every row stored. In memory half as many, for

    there a COMMIT waits for a moment in which nobody reads.
    """
    threads = 8 if where == "file" else 4
    db = Database(f"sqlite:///{tmp_path}/app.db" if where == "file" else "sqlite://")
    watch(db, "sqlite")
    Base.metadata.create_all(db.engine)

    def work(number: int) -> None:
        for i in range(100):
            with db.unit() as session:
                session.scalar(select(func.count()).select_from(User))
                session.add(User(name=f"{number}-{i}"))

    errors = _run(threads, work)
    with db.unit() as session:
        count = session.scalar(select(func.count()).select_from(User))

    assert errors == []
    assert count == 100 * threads


def test_many_threads_open_a_new_file_at_once(tmp_path, watch) -> None:
    """R43: 16 threads whose first connections meet on a new file: the change to WAL is waited for."""
    for attempt in range(5):
        db = Database(f"sqlite:///{tmp_path}/{attempt}.db", pool_size=16)
        watch(db, "sqlite")

        def work(number: int, db: Database = db) -> None:
            with db.unit() as session:
                session.execute(text("CREATE TABLE IF NOT EXISTS t (i)"))
                session.execute(text("INSERT INTO t VALUES (:n)"), {"n": number})

        errors = _run(16, work)
        with db.unit(readonly=True) as session:
            count = session.scalar(text("SELECT count(*) FROM t"))

        assert errors == []
        assert count == 16


def test_a_read_and_a_write_do_not_wait_for_each_other(tmp_path, watch) -> None:
    """R43: while one unit writes, others read what was committed, at once."""
    db = Database(f"sqlite:///{tmp_path}/app.db")
    watch(db, "sqlite")
    Base.metadata.create_all(db.engine)
    with db.unit() as writer:
        writer.add(User(name="ada"))
        writer.flush()
        with db.unit(propagation="new") as reader:
            seen = reader.scalars(select(User.name)).all()

    assert seen == []


def test_settings_of_a_connection(tmp_path, watch) -> None:
    """R43: foreign keys are enforced, files are in WAL mode, and a statement waits for a lock."""
    db = Database(f"sqlite:///{tmp_path}/app.db")
    watch(db, "sqlite")
    with db.unit() as session:
        found = [
            session.scalar(text(f"PRAGMA {name}")) for name in ("foreign_keys", "journal_mode", "busy_timeout", "synchronous")
        ]

    assert found == [1, "wal", 30000, 1]


def test_a_database_that_may_only_be_read(tmp_path, watch) -> None:
    """R43: a file opened with mode=ro is read; a write raises the database's own error."""
    path = tmp_path / "app.db"
    made = sqlite3.connect(path)
    made.executescript("CREATE TABLE t (i); INSERT INTO t VALUES (7);")
    made.close()
    db = Database(f"sqlite:///file:{path}?mode=ro&uri=true")
    watch(db, "sqlite")
    with db.unit() as session:
        value = session.scalar(text("SELECT i FROM t"))
    with pytest.raises(sa.exc.OperationalError, match="readonly"), db.unit() as session:
        session.execute(text("INSERT INTO t VALUES (8)"))

    assert value == 7


def test_memory_is_shared_by_threads_and_gone_after_close() -> None:
    """R43: a database in memory is one for all threads of a Database, another for each Database, and ends with close()."""
    first, second = Database("sqlite://"), Database("sqlite:///:memory:")
    Base.metadata.create_all(first.engine)
    errors = _run(4, first.unit(lambda number, session: session.add(User(name=str(number)))))
    with first.unit() as session:
        count = session.scalar(select(func.count()).select_from(User))
    with second.unit() as session:
        tables = session.scalar(text("SELECT count(*) FROM sqlite_master"))
    path = str(first.engine.url.database)
    first.close()
    second.close()
    gc.collect()
    again = sqlite3.connect(f"{path}?vfs=memdb", uri=True)
    left = again.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    again.close()

    assert errors == []
    assert (count, tables, left) == (4, 0, 0)


def test_memory_is_shared_by_tasks() -> None:
    """R43: the same under asyncio."""
    import asyncio

    async def main() -> int:
        db = AsyncDatabase("sqlite+aiosqlite://")
        async with db.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        @db.unit
        async def add(session, name: str) -> None:
            session.add(User(name=name))

        await asyncio.gather(*(add(str(i)) for i in range(20)))
        async with db.unit() as session:
            count = await session.scalar(select(func.count()).select_from(User))
        await db.close()
        return count

    assert asyncio.run(main()) == 20


def _cursor(buffering: bool):
    connection = sqlite3.connect(":memory:", factory=BufferingConnection, isolation_level=None)
    connection.executescript("CREATE TABLE t (i); INSERT INTO t VALUES (1), (2), (3), (4), (5);")
    connection.buffering = buffering
    return connection.cursor()


@pytest.mark.parametrize(
    "read",
    [
        lambda c: c.fetchall(),
        lambda c: [c.fetchone(), c.fetchone(), *c.fetchall(), c.fetchone()],
        lambda c: [c.fetchmany(), c.fetchmany(3), c.fetchmany(9), c.fetchmany()],
        lambda c: list(iter(c)),
        lambda c: [next(c), *c],
        lambda c: (setattr(c, "arraysize", 2), c.fetchmany(), c.fetchmany())[1:],
        lambda c: [c.description, c.rowcount, c.fetchall()],
    ],
    ids=["all", "one", "many", "iterate", "next", "arraysize", "description"],
)
def test_a_buffering_cursor_reads_as_the_drivers_own(read) -> None:
    """R33: every way to fetch gives the same rows whether they were fetched on execute or not."""
    answers = []
    for buffering in (False, True):
        cursor = _cursor(buffering)
        cursor.execute("SELECT i FROM t ORDER BY i")
        answers.append(read(cursor))
        cursor.connection.close()

    assert answers[0] == answers[1]


@pytest.mark.parametrize("buffering", [False, True])
def test_a_buffering_cursor_keeps_its_rows(buffering) -> None:
    """R33: rows fetched on execute outlive what another cursor deletes; without that they do not."""
    cursor = _cursor(buffering)
    cursor.execute("SELECT i FROM t")
    first = cursor.fetchone()
    cursor.connection.execute("DELETE FROM t WHERE i > 1")
    rest = cursor.fetchall()
    cursor.connection.close()

    assert first == (1,)
    assert (len(rest) == 4) is buffering


def test_a_write_through_a_buffering_cursor() -> None:
    """R33: a statement without rows reports as the driver's own cursor does."""
    cursor = _cursor(buffering=True)
    cursor.executemany("INSERT INTO t VALUES (?)", [(8,), (9,)])
    inserted = cursor.rowcount
    cursor.execute("UPDATE t SET i = i")
    found = (inserted, cursor.rowcount, cursor.description)
    cursor.connection.close()

    assert found == (2, 7, None)


def test_an_engine_made_elsewhere_is_not_prepared(tmp_path) -> None:
    """R33: such an engine keeps the driver's own cursors, so its units hold their connection from the first statement on."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/x.db")
    db = Database(engine)
    with db.unit() as session:
        session.execute(select(1))
        held = db.status().in_use
    engine.dispose()

    assert not is_prepared(engine)
    assert held == 1


def _no_patience(connection):
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 50")
    cursor.close()


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_who_holds_the_lock_is_named(make_face):
    """R43: where the lock stays, the database's own error has a note that names the unit of this process which has it."""
    face = make_face(pool_size=2, max_overflow=0)
    event.listen(face.sync_engine, "connect", lambda connection, _: _no_patience(connection))
    async with face.unit(name="import") as session:
        session.add(User(name="first"))
        await session.flush()
        with pytest.raises(sa.exc.OperationalError, match="database is locked") as caught:
            async with face.unit(propagation="new", name="audit") as second:
                second.add(User(name="second"))
                await second.flush()

    assert re.search(
        r"tenure: unit 'import' \(test_sqlite\.py:\d+, (thread|task) '.+'\) holds the write lock for \d+ s\. End it sooner\."
        r" \[database-locked\]$",
        "\n".join(caught.value.__notes__),
    )
    async with face.unit() as session:
        session.add(User(name="third"))
    assert face.out() == 0


def test_a_folder_that_is_not_there(tmp_path):
    """R50: the error of a file that cannot be opened has a note with what to look for, and nothing about a server."""
    db = Database(f"sqlite:///{tmp_path}/missing/app.db")
    with pytest.raises(sa.exc.OperationalError) as caught, db.unit() as session:
        session.execute(text("SELECT 1"))
    db.close()

    (note,) = [one for one in caught.value.__notes__ if "could be made" in one]
    assert note.endswith("Nothing was stored. Check that the folder is there and may be written and that the URL names it.")
