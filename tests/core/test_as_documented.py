"""Where a unit's session must be as SQLAlchemy documents it. What its own tests have found is held here by name."""

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select

from tenure import Database

from support.models import User
from support.probe import stored


@pytest.fixture
def auto(make_face, driver):
    """A face whose units read in autocommit, on every driver."""
    return make_face(**({"isolation": "READ COMMITTED"} if "my" in driver else {}))


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_close_leaves_the_objects_as_they_are(auto, way):
    """R33: objects leave a session that is closed with what they have loaded, and the session goes on without them."""
    async with auto.unit() as session:
        session.add(User(name="ada"))
        await session.commit()
        ada = await session.scalar(select(User))
        session.add(User(name="bob"))
        await session.flush()

        await session.run_sync(lambda raw: getattr(raw, way)())
        name, inside, out = ada.name, ada in session.raw, auto.out()
        session.add(User(name="eve"))

    assert (name, inside, out) == ("ada", False, 0)
    assert stored(auto) == ["ada", "eve"]


async def test_commit_after_a_failed_flush(auto):
    """R33: after a flush that failed, commit() raises what SQLAlchemy raises until rollback() is called; then all goes on."""
    async with auto.unit() as session:
        session.add(User(id=1, name="ada"))
        await session.commit()
        session.add(User(name="ada"))
        with pytest.raises(sa.exc.IntegrityError):
            await session.commit()
        for _ in range(2):
            with pytest.raises(sa.exc.PendingRollbackError):
                await session.commit()
        assert not session.is_active

        await session.rollback()
        session.add(User(name="bob"))

    assert stored(auto) == ["ada", "bob"]


async def test_rollback_after_nothing(auto):
    """R33: rollback() expires what was read in the transaction that it ends, and nothing when none was begun."""
    async with auto.unit() as session:
        session.add(User(name="ada"))
        await session.commit()
        heard = []
        event.listen(
            getattr(session.raw, "sync_session", session.raw), "after_rollback", lambda session: heard.append("rollback")
        )

        (ada,) = (await session.execute(select(User))).scalars()
        await session.commit()
        await session.rollback()
        kept = "name" in ada.__dict__
        await session.refresh(ada)
        await session.rollback()
        expired = "name" not in ada.__dict__

    assert kept
    assert expired
    assert heard == ["rollback"]


async def test_the_engine_that_a_session_shows(auto):
    """R33: session.bind, get_bind() and connection().engine are the engine that the user knows."""
    engine = auto.sync_engine
    async with auto.unit() as session:
        await session.execute(select(User))
        connection = await session.connection()
        shown = [
            await session.run_sync(lambda raw: raw.bind),
            session.get_bind(),
            getattr(connection, "sync_connection", connection).engine,
        ]
        same = await session.connection(bind_arguments={"bind": engine})
        out = auto.out()

    assert shown == [engine] * 3
    assert await _raw(same) is await _raw(connection)
    assert out == 1


async def _raw(connection):
    return getattr(connection, "sync_connection", connection)


async def test_the_connection_of_a_transaction_is_found_by_its_engine(auto):
    """R33: SessionTransaction.bound_connection() gives the connection that a unit holds (SQLAlchemy 2.1.7)."""
    if not hasattr(sa.orm.SessionTransaction, "bound_connection"):
        pytest.skip("this SQLAlchemy has no bound_connection()")

    def found(raw):
        raw.add(User(name="ada"))
        raw.flush()
        return raw.get_transaction().bound_connection(), raw.connection()

    async with auto.unit() as session:
        bound, connection = await session.run_sync(found)

    assert bound is connection


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_begin_is_not_a_statement(auto):
    """R33: who listens to the statements of SQLite meets those of the program alone, as on other databases."""
    heard = []
    event.listen(
        auto.sync_engine, "before_cursor_execute", lambda c, cursor, statement, *args: heard.append(statement.split()[0])
    )
    async with auto.unit() as session:
        await session.execute(select(User))
        session.add(User(name="ada"))

    assert heard == ["SELECT", "INSERT"]


def test_an_engine_with_options(watch, tmp_path):
    """R33: Database(engine.execution_options(…)) reads in autocommit as Database(engine) does."""
    first = Database(f"sqlite:///{tmp_path}/app.db")
    watch(first, "sqlite")
    db = Database(first.engine.execution_options(logging_token="reports"))
    watch(db, "sqlite")

    with db.unit() as session:
        session.execute(select(1))
        out = db.status().in_use

    assert out == 0


async def test_what_was_merged_alone_is_stored(make_face):
    """R33: merge_all() is use of the session like any other, also where nothing else was done and nothing autoflushes."""
    if not hasattr(sa.orm.Session, "merge_all"):
        pytest.skip("this SQLAlchemy has no merge_all()")
    face = make_face(session_options={"autoflush": False})
    async with face.unit() as session:
        await session.run_sync(lambda raw: raw.merge_all([User(name="ada")]))

    assert stored(face) == ["ada"]
