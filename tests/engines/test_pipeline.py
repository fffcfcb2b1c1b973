"""BEGIN in the round trip of the first statement: a transaction is what it is without, whatever its first statement comes to."""

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy import event, select

from tenure.engines import pipeline
from tenure.engines.supply import Terms

from support.models import Order, Pledge, User
from support.probe import stored

pytestmark = pytest.mark.drivers("psycopg", "psycopg_async")
only_blocking = pytest.mark.drivers("psycopg")


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """The tests' server is on a unix socket, where it would not pay."""
    monkeypatch.setattr(pipeline, "pays", lambda _driver: True)


@pytest.fixture
def one(make_face):
    """A face with one connection, on which ada is stored."""
    return make_face(pool_size=1, max_overflow=0, pool_timeout=5)


async def fill(face):
    async with face.unit() as session:
        session.add(User(name="ada", orders=[Order(note=f"{n}") for n in range(3)]))


async def driver_of(session):
    """The driver's own connection, as user code gets it."""
    return await session.run_sync(lambda s: s.connection().connection.driver_connection)


async def is_clean(face):
    """The next one who takes the connection finds psycopg's own."""
    taken = []

    def look(session):
        with session.get_bind().connect() as connection:
            driver = connection.connection.driver_connection
            taken.append((driver.autocommit, driver.info.transaction_status, driver.info.pipeline_status))
            taken.append(driver.cursor_factory in (psycopg.Cursor, psycopg.AsyncCursor))
            taken.append(driver.server_cursor_factory in (psycopg.ServerCursor, psycopg.AsyncServerCursor))

    async with face.unit() as session:
        await session.run_sync(look)
    assert taken == [(False, TransactionStatus.IDLE, PipelineStatus.OFF), True, True]


FIRST = {
    "insert": lambda s: s.execute(sa.insert(User).values(name="eve", balance=0)),
    "text": lambda s: s.execute(sa.text("INSERT INTO users (name, balance) VALUES ('eve', 0)")),
    "two in one": lambda s: s.execute(sa.text("INSERT INTO users (name, balance) VALUES ('eve', 0); SELECT 1")),
    "escaped": lambda s: s.execute(sa.text("INSERT INTO users (name, balance) VALUES (replace('e%ve', '%', ''), 0)")),
    "returning": lambda s: s.scalars(sa.insert(User).returning(User.id), [{"name": "eve"}, {"name": "bob"}]).all(),
    "many": lambda s: s.connection().execute(sa.insert(User.__table__), [{"name": n, "balance": 0} for n in ("eve", "bob")]),
    "flush": lambda s: (s.add_all([User(name=n) for n in ("eve", "bob")]), s.flush()),
    "savepoint": lambda s: (s.begin_nested(), s.add(User(name="eve")), s.flush()),
    "lock": lambda s: (s.scalars(select(User).with_for_update()).all(), s.add(User(name="eve")), s.flush()),
    "stream": lambda s: (s.scalars(select(User).execution_options(yield_per=1)).all(), s.add(User(name="eve")), s.flush()),
    "explicit": lambda s: (s.begin(), s.scalar(select(User.id)), s.add(User(name="eve")), s.flush()),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("options", [{}, {"settings": {"app.tenant": "7"}}, {"isolation": "SERIALIZABLE"}], ids=str)
async def test_a_rolled_back_row_is_not_there(one, first, options):
    """R1: whatever a transaction begins with, its rollback leaves nothing and its commit everything."""
    await fill(one)
    async with one.unit(**options) as session:
        await session.run_sync(FIRST[first])
        await session.rollback()
    assert stored(one) == ["ada"]
    with pytest.raises(ZeroDivisionError):
        async with one.unit(**options) as session:
            await session.run_sync(FIRST[first])
            raise ZeroDivisionError
    assert stored(one) == ["ada"]

    async with one.unit(**options) as session:
        await session.run_sync(FIRST[first])

    assert "eve" in stored(one)
    await is_clean(one)


FAILING = {
    "no such table": (sa.exc.ProgrammingError, lambda s: s.execute(sa.text("INSERT INTO nowhere VALUES (:x)"), {"x": 1})),
    "unique": (sa.exc.IntegrityError, lambda s: s.execute(sa.insert(User).values(name="ada", balance=0))),
    "unique, many": (sa.exc.IntegrityError, lambda s: s.connection().execute(sa.insert(User.__table__), [{"name": "ada"}] * 3)),
    "in the driver": (sa.exc.ProgrammingError, lambda s: s.execute(sa.text("SELECT :x"), {"x": object()})),
    "in a stream": (sa.exc.DataError, lambda s: s.scalars(sa.text("SELECT 1/0").execution_options(yield_per=1)).all()),
}


@pytest.mark.parametrize("failing", FAILING)
async def test_a_first_statement_that_fails(one, failing):
    """R7: an error of the first statement is the driver's own, spoils its transaction as ever, and ends with it."""
    await fill(one)
    error, statement = FAILING[failing]
    async with one.unit() as session:
        with pytest.raises(error):
            await session.run_sync(statement)
        if failing != "in the driver":
            with pytest.raises(sa.exc.InternalError, match="current transaction is aborted"):
                await session.execute(sa.text("SELECT 1"))
        await session.rollback()
        session.add(User(name="eve"))

    assert stored(one) == ["ada", "eve"]
    await is_clean(one)


async def test_begin_itself_fails(one, monkeypatch):
    """R1: where the server refuses BEGIN nothing is carried out, and the connection is as good as before."""
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Opening, "statements", lambda *args: iter([("BEGIN NONSENSE", None)]))
        with pytest.raises(sa.exc.ProgrammingError, match="NONSENSE"):
            async with one.unit() as session:
                await session.execute(sa.insert(User).values(name="eve", balance=0))

    assert stored(one) == []
    await is_clean(one)


@pytest.mark.parametrize("thrown", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stuck", [False, True])
async def test_interrupted_in_the_pipeline(one, monkeypatch, thrown, stuck):
    """R38: a connection that was interrupted in its pipeline is never handed out in it, even if it could not leave it."""
    kind = psycopg.AsyncCursor if one.is_async else psycopg.Cursor
    execute = kind.execute

    def interrupted(self, query, *args, **kw):
        if "INSERT" in query:
            raise thrown
        return execute(self, query, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "execute", interrupted)
        if stuck:
            patch.setattr(psycopg._pipeline_base.BasePipeline, "_exit", lambda self, error: setattr(self, "level", 0))
        with pytest.raises(thrown):
            async with one.unit() as session:
                await session.execute(sa.insert(User).values(name="eve", balance=0))

    assert one.out() == 0
    await is_clean(one)
    async with one.unit() as session:
        session.add(User(name="bob"))
    assert stored(one) == ["bob"]


@pytest.mark.parametrize("reached", [False, True], ids=["before the server", "after the server"])
async def test_the_line_is_cut_as_it_begins(make_face, proxy, reached):
    """R38: a connection that is lost with BEGIN is told as lost and replaced, and nothing of the transaction is stored."""
    face = make_face(through=proxy, pool_size=1, max_overflow=0)
    await fill(face)
    (proxy.cut_after if reached else proxy.cut_before)(b"BEGIN")
    with pytest.raises(sa.exc.OperationalError) as caught:
        async with face.unit() as session:
            await session.execute(sa.insert(User).values(name="eve", balance=0))

    assert caught.value.connection_invalidated
    assert face.out() == 0
    async with face.unit() as session:
        session.add(User(name="bob"))
    assert stored(face) == ["ada", "bob"]
    await is_clean(face)


async def test_isolation_and_access_are_said_with_begin(one):
    """R60: a transaction has the isolation and access that were asked for."""
    shows = [sa.text("SHOW transaction_isolation"), sa.text("SHOW transaction_read_only")]

    async def shown(**options):
        async with one.unit(**options) as session:
            return [await session.scalar(show) for show in shows]

    assert await shown() == ["read committed", "off"]
    assert await shown(isolation="SERIALIZABLE") == ["serializable", "off"]
    assert await shown(isolation="REPEATABLE READ", readonly=True) == ["repeatable read", "on"]
    assert await shown(readonly=True) == ["read committed", "on"]
    async with one.unit(isolation="SERIALIZABLE") as session:
        options = {"postgresql_deferrable": True, "postgresql_readonly": True}
        await session.run_sync(lambda s: s.connection(execution_options=options))
        assert await session.scalar(sa.text("SHOW transaction_deferrable")) == "on"
    await is_clean(one)


async def test_settings_that_the_server_refuses(one):
    """R60: a setting that is refused fails the first statement, with a note that it was not its fault."""
    with pytest.raises(sa.exc.DataError) as caught:
        async with one.unit(settings={"statement_timeout": "soon"}) as session:
            await session.execute(sa.insert(User).values(name="eve", balance=0))

    assert "settings=['statement_timeout'], sent along" in "".join(caught.value.orig.__notes__)
    assert stored(one) == []
    await is_clean(one)


async def test_rows_changed_by_a_first_statement_are_counted(one):
    """R33: the rowcount of a first statement is right, of many as of one."""
    await fill(one)
    async with one.unit() as session:
        assert (await session.execute(sa.update(Order).values(note="x"))).rowcount == 3
    async with one.unit() as session:
        orders = (await session.scalars(select(Order))).all()
        for order in orders:
            order.note = f"new {order.id}"  # one UPDATE for many rows, whose count SQLAlchemy checks
    async with one.unit() as session:
        statement = sa.update(Order.__table__).where(Order.__table__.c.id == sa.bindparam("key")).values(note="y")
        found = await session.run_sync(lambda s: s.connection().execute(statement, [{"key": o.id} for o in orders]))
        assert found.rowcount == 3
    assert stored(one, Order.note) == ["y", "y", "y"]


async def test_a_deferred_constraint_still_fails_the_commit(one):
    """R7: COMMIT is a round trip of its own, and its error the unit's."""
    with pytest.raises(sa.exc.IntegrityError):
        async with one.unit() as session:
            session.add(Pledge(user_id=4711))

    assert stored(one, Pledge.user_id) == []


INSERT = "INSERT INTO users (name, balance) VALUES ('eve', 0)"


def _raw_copy(driver):
    with driver.cursor().copy("COPY users (name, balance) FROM STDIN") as rows:
        rows.write_row(("eve", 0))


def _in_pipeline(driver):
    with driver.pipeline():
        driver.execute(INSERT)
        driver.execute("INSERT INTO users (name, balance) VALUES ('bob', 0)")


RAW = {
    "connection": lambda driver: driver.execute(INSERT),
    "cursor": lambda driver: driver.cursor().execute(INSERT),
    "many": lambda driver: driver.cursor().executemany("INSERT INTO users (name, balance) VALUES (%s, 0)", [("eve",), ("bob",)]),
    "copy": _raw_copy,
    "stream": lambda driver: list(driver.cursor().stream(INSERT + " RETURNING id")),
    "composed": lambda driver: driver.execute(psycopg.sql.SQL(INSERT)),
    "pipeline": _in_pipeline,
}


@only_blocking
@pytest.mark.parametrize("way", RAW)
@pytest.mark.parametrize("again", [False, True], ids=["first", "after a commit"])
async def test_the_drivers_own_cursors_begin_too(one, way, again):
    """R33: a driver's cursor begins a transaction as ever, also if its user committed by hand before, and a rollback undoes it."""
    await fill(one)
    for settings in ({}, {"app.tenant": "7"}):
        async with one.unit(settings=settings) as session:
            driver = await driver_of(session)
            if again:
                driver.execute("SELECT 1")
                driver.commit()
            RAW[way](driver)
            assert driver.info.transaction_status == TransactionStatus.INTRANS
            if settings and not again:
                assert driver.execute("SELECT current_setting('app.tenant')").fetchone() == ("7",)
            driver.rollback()
            assert driver.info.transaction_status == TransactionStatus.IDLE
            with driver.cursor("named") as named:
                named.execute("SELECT 1")
                assert driver.info.transaction_status == TransactionStatus.INTRANS
        assert stored(one) == ["ada"]
    await is_clean(one)


@pytest.mark.drivers("psycopg_async")
async def test_the_asynchronous_drivers_own_cursors_begin_too(one):
    """R33: the same for asyncio."""
    await fill(one)
    many = "INSERT INTO users (name, balance) VALUES (%s, 0)"

    async def copy(driver):
        async with driver.cursor().copy("COPY users (name, balance) FROM STDIN") as rows:
            await rows.write_row(("eve", 0))

    async def stream(driver):
        return [row async for row in driver.cursor().stream(INSERT + " RETURNING id")]

    ways = [copy, stream, lambda d: d.execute(INSERT), lambda d: d.cursor().executemany(many, [("eve",), ("bob",)])]
    async with one.unit() as session:
        driver = await driver_of(session)
        for way in ways:
            await way(driver)
            assert driver.info.transaction_status == TransactionStatus.INTRANS
            await driver.rollback()
        async with driver.cursor("named") as named:
            await named.execute("SELECT 1")
            assert driver.info.transaction_status == TransactionStatus.INTRANS
    assert stored(one) == ["ada"]
    await is_clean(one)


async def test_autocommit_that_the_user_asks_for(one):
    """R33: what runs on a connection that its user has switched to autocommit is stored at once, after a commit by hand too."""

    def after(session):
        connection = session.connection()
        connection.execute(sa.insert(User.__table__).values(name="bob", balance=0))
        connection.commit()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.insert(User.__table__).values(name="cy", balance=0))
        connection.rollback()

    async with one.unit() as session:
        await session.run_sync(after)
        with pytest.warns(sa.exc.SAWarning, match="deassociated"):
            await session.rollback()
    async with one.unit() as session:
        connection = await session.run_sync(lambda s: s.connection(execution_options={"isolation_level": "AUTOCOMMIT"}))
        await session.run_sync(lambda s: connection.execute(sa.text(INSERT)))
        await session.rollback()

    assert stored(one) == ["bob", "cy", "eve"]
    await is_clean(one)


@pytest.mark.parametrize("option", [{"skip_autocommit_rollback": True}, {"pool_reset_on_return": None}], ids=str)
async def test_engines_that_leave_rollbacks_out(make_face, option):
    """R1: under SQLAlchemy's options that leave out a ROLLBACK, what was rolled back is not there either."""
    face = make_face(pool_size=1, max_overflow=0, **option)
    for _ in range(2):
        async with face.unit() as session:
            session.add(User(name="eve"))
            await session.flush()
            await session.rollback()
        with pytest.raises(ZeroDivisionError):
            async with face.unit() as session:
                await session.execute(sa.text(INSERT))
                raise ZeroDivisionError
        async with face.unit() as session:
            await session.scalar(select(User.id).with_for_update())
    async with face.unit() as session:
        session.add(User(name="bob"))

    assert stored(face) == ["bob"]
    assert (face.db.supply.profile.pipeline is None) == ("skip_autocommit_rollback" in option)


async def test_a_transaction_left_open_by_hand(make_face):
    """R38: a connection on which somebody left a transaction of his own open is not handed out with it."""
    face = make_face(pool_size=1, max_overflow=0, pool_reset_on_return=None)

    def leave_open(session):
        supply = face.db.supply
        lease = supply.transact(session, Terms())
        lease.connection.connection.cursor().execute(INSERT)
        supply.give_back(lease)

    async with face.unit() as session:
        await session.run_sync(leave_open)
    await is_clean(face)

    assert stored(face) == []


async def test_cursors_of_the_applications_own(make_face, driver):
    """R43: an engine with cursors of its own class keeps them; its transactions begin as psycopg begins them."""
    own = psycopg.AsyncClientCursor if "async" in driver else psycopg.ClientCursor
    face = make_face(connect_args={"cursor_factory": own})
    async with face.unit(settings={"app.tenant": "7"}) as session:
        session.add(User(name="eve"))
        await session.flush()
        assert await session.scalar(sa.text("SELECT current_setting('app.tenant')")) == "7"
        assert (await driver_of(session)).cursor_factory is own
        await session.rollback()
    assert stored(face) == []


async def test_a_listener_that_speaks_first(one):
    """R33: settings hold for what a listener says as the transaction begins."""
    heard = []

    def begun(session, transaction, connection):
        heard.append(connection.scalar(sa.text("SELECT current_setting('app.tenant')")))

    async with one.unit(settings={"app.tenant": "7"}) as session:
        event.listen(getattr(session.raw, "sync_session", session.raw), "after_begin", begun)
        await session.execute(sa.text(INSERT))

    assert heard == ["7"]


def test_what_goes_through_a_pipeline():
    """R33: COPY and several statements at once, which mean something else in a pipeline, are not sent through one."""
    assert pipeline.fits("INSERT INTO users VALUES (1)", ())
    assert pipeline.fits("SELECT ';copy', %(x)s", {"x": 1})
    assert not pipeline.fits("SELECT 1; SELECT 2", ())
    assert not pipeline.fits("/* x */ Copy users TO STDOUT", None)
    assert not pipeline.fits(psycopg.sql.SQL("SELECT 1"), None)


@pytest.mark.drivers("psycopg", "psycopg_async")
async def test_not_on_a_unix_socket(make_face, proxy, monkeypatch):
    """R34: where the server is on this machine's unix socket the pipeline costs more than the round trip, and BEGIN is psycopg's own."""
    monkeypatch.undo()
    pays = []
    monkeypatch.setattr(pipeline, "pays", lambda driver, real=pipeline.pays: pays.append(real(driver)) or pays[-1])
    for face in (make_face(), make_face(through=proxy)):
        async with face.unit() as session:
            session.add(User(name=f"ada {len(pays)}"))

    assert pays == [False, True]
