"""More than one server: read-only units on replicas, and every client sees what it has written."""

import gc
import logging
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

import tenure
from tenure import AsyncDatabase, Database, Replicas
from tenure.core.plan import Outcome
from tenure.engines import position
from tenure.exceptions import BadOption, CommitUnknown, ReadOnlyUnit, WrongDriver

from support import servers
from support.models import User
from support.proxy import Proxy
from support.servers import DRIVERS

streaming = pytest.mark.dialects("postgresql")
WHERE = text("SELECT pg_is_in_recovery()")
REPLICA, PRIMARY = True, False


class Clock:
    """A clock that stands still until the test moves it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def standby(url):
    """The replica: running, replaying, with all that the primary has; so it is left, too."""
    found = servers.found("standby")
    found.renew()
    yield found
    found.renew()


@pytest.fixture
def pair(standby, driver, url, watch):
    """``pair(**settings)`` gives a face of a database with one replica; ``face.db.routing.clock`` stands still."""

    def make(replicas=None, *, options=None, **settings):
        database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
        replica = standby.base.set(drivername=DRIVERS[driver].drivername)
        face = watch(database(url, replicas=Replicas(replicas or [replica], **settings), **(options or {})), driver)
        face.db.routing.clock = Clock(1000.0)
        return face

    return make


async def where(face, **options) -> bool:
    """On which server a read-only unit of the caller's context is."""
    async with face.unit(readonly=True, **options) as session:
        return await session.scalar(WHERE)


async def add(face, name: str) -> None:
    async with face.unit() as session:
        session.add(User(name=name))


async def names(face, **options) -> list[str]:
    async with face.unit(readonly=True, **options) as session:
        return list(await session.scalars(select(User.name)))


# ------------------------------------------------------------------------------------ who reads where


@streaming
async def test_read_only_units_use_the_replica_and_all_others_the_primary(pair):
    """R41: `readonly=True` may use a replica, all else is on the primary."""
    face = pair()

    assert await where(face) is REPLICA
    assert await where(face, hold="transaction") is REPLICA
    async with face.unit() as session:
        assert await session.scalar(WHERE) is PRIMARY
    async with face.unit(readonly=True) as session:
        async with face.unit(propagation="new") as other:
            assert await other.scalar(WHERE) is PRIMARY
        assert await session.scalar(WHERE) is REPLICA


@streaming
async def test_one_unit_never_spans_two_servers(pair, standby):
    """R41: a unit that reads and then writes used the primary throughout, and so did a read-only part that joined it."""
    face = pair()
    standby.pause()
    async with face.unit() as session:
        assert await session.scalar(WHERE) is PRIMARY
        assert await session.scalar(select(sa.func.count()).select_from(User)) == 0
        session.add(User(name="ada"))
        await session.flush()
        assert await names(face) == ["ada"]


@streaming
async def test_a_unit_stays_on_its_server(pair):
    """R41: a read-only unit on a replica stays there, for plain reads, raw SQL, streams and savepoints, and may write nowhere."""
    face = pair()
    async with face.unit(readonly=True) as session:
        assert await names(face) == []
        assert await session.scalar(WHERE) is REPLICA
        rows = await session.stream(select(sa.func.pg_is_in_recovery()))
        assert [row[0] for row in await rows.all()] == [REPLICA]
        await rows.close()
        async with session.begin_nested():
            assert await session.scalar(WHERE) is REPLICA
        assert await session.scalar(WHERE, bind_arguments={"bind": face.sync_engine}) is REPLICA
    with pytest.raises(ReadOnlyUnit):
        async with face.unit(readonly=True) as session:
            await session.execute(text("INSERT INTO users (name, balance) VALUES ('eve', 0)"))


@streaming
async def test_serializable_is_on_the_primary(pair):
    """R41: what a replica cannot give is asked of the primary: a hot standby has no SERIALIZABLE."""
    assert await where(pair(), isolation="SERIALIZABLE") is PRIMARY


# ------------------------------------------------------------------------------- reading one's own write


@streaming
async def test_a_client_sees_its_own_write_on_a_replica_that_lags(pair, standby):
    """R41: a client that writes and then reads sees its write; one that wrote nothing reads from the replica."""
    face = pair(wait=0.02)
    standby.pause()
    seen = {}

    async def writer():
        await add(face, "ada")
        seen["writer"] = (await names(face), await where(face))

    async def reader():
        seen["reader"] = (await names(face), await where(face))

    await face.spawn(writer)
    await face.spawn(reader)

    assert seen == {"writer": (["ada"], PRIMARY), "reader": ([], REPLICA)}


@streaming
async def test_the_replica_serves_its_client_again_when_it_has_caught_up(pair, standby):
    """R41: as soon as the replica has replayed what the client wrote, it serves the client; that is asked once."""
    face = pair(wait=0.02)
    standby.pause()
    await add(face, "ada")
    assert await where(face) is PRIMARY

    standby.resume()
    standby.caught_up()

    assert await names(face) == ["ada"]
    assert await where(face) is REPLICA
    asked = []
    sa.event.listen(face.db.supplies[1].engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert await names(face) == ["ada"]
    assert len(asked) == 1


@streaming
async def test_a_short_wait_is_waited(pair, standby):
    """R41: a read-only unit waits for a replica that has its client's write within `wait` seconds."""
    face = pair(wait=10.0)
    standby.pause()
    await add(face, "ada")
    asked = threading.Event()
    sa.event.listen(face.db.supplies[1].engine, "before_cursor_execute", lambda *_: asked.set())

    def resume():
        asked.wait(10)
        standby.resume()
        standby.caught_up()

    thread = threading.Thread(target=resume)
    thread.start()
    async with face.unit(readonly=True) as session:
        found = await session.scalar(WHERE), list(await session.scalars(select(User.name)))
    thread.join()

    assert found == (REPLICA, ["ada"])


@streaming
async def test_each_way_to_commit_is_remembered(pair, standby):
    """R41: what a checkpoint or `session.begin()` has committed is seen too, also while its unit is open; what was undone is not waited for."""
    face = pair(wait=0.02)
    standby.pause()
    with pytest.raises(KeyError):
        async with face.unit() as session:
            session.add(User(name="eve"))
            await session.flush()
            raise KeyError
    assert await where(face) is REPLICA

    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.commit()
        async with face.unit(readonly=True, propagation="new") as other:
            assert list(await other.scalars(select(User.name))) == ["ada"]
        session.add(User(name="eve"))
        await session.rollback()
    assert await names(face) == ["ada"]


@streaming
async def test_a_unit_that_only_reads_costs_no_position(pair):
    """R41: the position is asked after a write only."""
    face = pair()
    async with face.unit() as session:
        await session.scalar(select(User.id))
    async with face.unit(hold="transaction") as session:
        await session.scalar(select(User.id))
    await where(face, hold="transaction")
    assert face.db.position() == ""
    await add(face, "ada")
    assert face.db.position().startswith("p")


@streaming
async def test_a_write_costs_one_round_trip_more(make_face, standby, driver, proxy):
    """R41: the position costs one round trip after a COMMIT that stored something, and a read on a replica none to the primary."""
    replica = standby.base.set(drivername=DRIVERS[driver].drivername)
    face = make_face(through=proxy, replicas=[replica])
    alone = make_face(through=proxy)
    trips = {}
    for made in (face, alone):
        for _ in range(8):  # psycopg prepares a statement when it is seen for the sixth time
            with proxy.count() as counted:
                async with made.unit() as session:
                    await session.execute(sa.update(User).where(User.id == -1).values(balance=1))
            trips[made] = counted.number
    assert trips[face] == trips[alone] + 1

    standby.caught_up()
    with proxy.count() as counted:
        async with face.unit(readonly=True) as session:
            await session.scalar(select(User.id))
    assert counted.number == 0


@streaming
@pytest.mark.parametrize("lost", [b"COMMIT", b"pg_current_wal_insert_lsn"])
async def test_without_a_position_the_client_stays_on_the_primary(make_face, standby, driver, proxy, lost):
    """R41: where the COMMIT's answer or the position was lost, the client stays on the primary; the work that is stored stays so."""
    replica = standby.base.set(drivername=DRIVERS[driver].drivername)
    face = make_face(through=proxy, replicas=[replica])
    face.db.routing.wall = Clock(1000.0)
    standby.pause()
    proxy.cut_after(lost)
    if lost == b"COMMIT":
        with pytest.raises(CommitUnknown):
            await add(face, "ada")
    else:
        await add(face, "ada")

    assert await names(face) == ["ada"]
    face.db.routing.wall.now += 5.0
    assert await names(face) == []


@streaming
async def test_a_token_carries_it_across_requests(pair, standby):
    """R41: `position()` gives a token, and `after(token)` makes another context see what was written then."""
    face = pair(wait=0.02)
    standby.pause()
    await add(face, "ada")
    token = face.db.position()
    seen = {}

    async def other():
        seen["without"] = await names(face)
        with face.db.after(token):
            seen["within"] = await names(face)
            assert face.db.position() == token
        seen["afterwards"] = await names(face)

    await face.spawn(other, inherit=False)

    assert seen == {"without": [], "within": ["ada"], "afterwards": []}


@streaming
async def test_within_a_client_all_threads_and_tasks_are_one(pair, standby):
    """R41: within `after()` what one thread or task writes, the others see."""
    face = pair(wait=0.02)
    standby.pause()

    async def helper():
        await add(face, "ada")

    with face.db.after(None):
        await face.spawn(helper, inherit=True)
        assert await names(face) == ["ada"]
    assert await names(face) == []


@pytest.mark.parametrize(
    "token", ["", "x", "p", "pp1", "p12345678901234567", "0/16B3748", "p1; DROP TABLE users", "P1F", "p1\n", "t", "é" * 100]
)
def test_garbage_is_no_token(token):
    """R41: a token comes from a client: nothing but well-formed numbers is taken from it, the rest is ignored."""
    assert position.read(token, 1000.0, 5.0) in (position.NOTHING, position.read("p0", 0.0, 0.0))


def test_a_token_says_what_it_said():
    """R41: a token gives the position it was made of; a time that lies too far ahead is cut to `sticky`."""
    mark = position.Mark(0x16B3748, 1004.0)
    assert position.read(mark.token(1000.0), 1000.0, 5.0) == mark
    assert mark.token(1005.0) == "p16b3748"
    assert position.read("tfffffffffff", 1000.0, 5.0) == position.Mark(0, 1005.0)


@pytest.mark.parametrize(("told", "meant"), [("0/3070018", 0x3070000), ("1/3000028", 0x103000000), ("0/3070020", 0x3070020)])
def test_a_position_at_the_begin_of_a_page(told, meant):
    """R41: a server that has written a page to its end names a place behind the next page's header, which no replica has yet."""
    assert position._number(told) == meant


@streaming
async def test_a_forged_token_costs_the_client_only(pair):
    """R41: a position that no server has leads to the primary."""
    face = pair(wait=0.01)
    with face.db.after("pffffffffffffffff"):
        assert await where(face) is PRIMARY
    assert await where(face) is REPLICA


# ----------------------------------------------------------------------------- a replica that is away


@streaming
async def test_a_dead_replica_is_served_by_the_primary_and_comes_back(pair, standby, caplog):
    """R41: a read-only unit whose first statement meets a dead replica is served elsewhere; the replica comes back by itself."""
    caplog.set_level(logging.INFO, "tenure")
    face = pair()
    clock = face.db.routing.clock
    assert await where(face) is REPLICA  # a pooled connection will be dead
    standby.halt()

    assert await where(face) is PRIMARY
    assert [one.left_out for one in face.db.status().replicas] == [True]
    assert await where(face, hold="transaction") is PRIMARY
    clock.now += 1.0
    assert await where(face, hold="transaction") is PRIMARY  # it is tried, and still away
    clock.now += 1.0
    assert await names(face) == []
    standby.renew()
    assert await where(face) is PRIMARY  # two seconds have not passed
    clock.now += 1.0
    assert await where(face) is REPLICA
    assert [one.left_out for one in face.db.status().replicas] == [False]
    told = [record.getMessage() for record in caplog.records if "replica" in record.getMessage()]
    assert [("[replica-left-out]" in one, "tried again in 2 s" in one) for one in told] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert not any("postgres:" in one for one in told)


@streaming
@pytest.mark.parametrize("options", [{}, {"hold": "transaction"}], ids=["plain", "transaction"])
async def test_a_replica_that_dies_in_the_first_statement_leaves_nothing_behind(pair, standby, driver, options):
    """R41: the unit is served elsewhere as a whole, also where that statement is in a transaction: its end knows of no failure."""
    with Proxy(f"{standby.base.query['host']}/.s.PGSQL.5432", standby.base) as network:
        face = pair([network.url(driver)])
        assert await where(face) is REPLICA
        network.cut_before(b"FROM users")
        async with face.unit(readonly=True, **options) as session:
            unit = face.current
            assert list(await session.scalars(select(User.name))) == []
            assert await session.scalar(WHERE) is PRIMARY
        await face.close()

    assert unit.outcome is Outcome.READ_ONLY


@pytest.mark.drivers("sqlite")
async def test_one_unit_at_a_time_tries_a_replica_that_was_away(copied):
    """R41: when its time is over one unit tries the replica, and the others go on without until it has answered."""
    routing = copied().db.routing
    routing.clock = Clock(1000.0)
    primary, replica = routing.primary, routing.replicas[0].supply
    routing.left_out(replica, OSError("gone"))
    assert routing.choose(None) is primary
    routing.clock.now += 1.0
    assert [routing.choose(None) for _ in range(3)] == [replica, primary, primary]
    routing.answered(replica)
    assert routing.choose(None) is replica
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        routing.left_out(replica, OSError("gone"))
        assert routing.replicas[0].until == routing.clock.now + seconds


@streaming
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg's, of the cursor on the lost connection
async def test_a_stream_on_a_dead_replica_is_served_elsewhere(pair, standby):
    """R41: the statement that goes elsewhere is the one that was asked, with its options."""
    face = pair()
    assert await where(face) is REPLICA
    standby.halt()
    async with face.unit(readonly=True) as session:
        rows = await session.stream(select(sa.func.pg_is_in_recovery()))
        assert [row[0] for row in await rows.all()] == [PRIMARY]
        await rows.close()
        assert await session.scalar(WHERE) is PRIMARY
    gc.collect()


@streaming
async def test_later_in_the_unit_the_error_is_the_databases_own(pair, standby):
    """R41: once something was read from a replica the unit cannot go on elsewhere."""
    face = pair()
    with pytest.raises(sa.exc.DBAPIError) as lost:
        async with face.unit(readonly=True, hold="transaction") as session:
            assert await session.scalar(WHERE) is REPLICA
            standby.halt()
            await session.scalar(WHERE)
    assert lost.value.connection_invalidated


@streaming
async def test_a_statement_that_fails_is_no_dead_replica(pair):
    """R41: an error in the statement is raised as it is, and the replica stays."""
    face = pair()
    with pytest.raises(sa.exc.ProgrammingError):
        async with face.unit(readonly=True) as session:
            await session.scalar(text("SELECT nothing FROM nowhere"))
    assert await where(face) is REPLICA


@streaming
async def test_the_next_replica_serves(pair, standby, driver, url):
    """R41: the unit goes on to another replica before it takes the primary, and each unit takes another in turn."""
    away = url.set(query={"host": "/nonexistent"})
    here = standby.base.set(drivername=DRIVERS[driver].drivername)
    face = pair([away, here])
    for _ in range(3):
        assert await where(face) is REPLICA
    assert [one.left_out for one in face.db.status().replicas] == [True, False]


@streaming
async def test_a_primary_that_is_away_keeps_no_reader_from_a_replica(pair, standby, driver, url, watch):
    """R41: read-only units need no primary."""
    database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
    replica = standby.base.set(drivername=DRIVERS[driver].drivername)
    face = watch(database(url.set(query={"host": "/nonexistent"}), replicas=[replica]), driver)
    assert await where(face) is REPLICA


@streaming
async def test_a_replica_too_far_behind_is_left_out(pair, standby, caplog):
    """R41: with `max_lag` a replica that is too far behind is left out, and comes back."""
    caplog.set_level(logging.INFO, "tenure")
    face = pair(max_lag=0.0)
    clock = face.db.routing.clock
    assert await where(face) is REPLICA
    standby.pause()
    with face.db.after(None):
        await add(face, "ada")
    standby.until("SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()")

    assert await where(face) is REPLICA  # what was measured counts for a second
    clock.now += 1.0
    assert await where(face) is PRIMARY
    assert [one.left_out for one in face.db.status().replicas] == [True]
    standby.resume()
    standby.caught_up()
    clock.now += 1.0
    assert await where(face) is REPLICA
    assert ["behind, and max_lag is 0 s" in record.getMessage() for record in caplog.records] == [True, False]


# -------------------------------------------------------------------------- databases without positions


@pytest.fixture
def copied(driver, url, tmp_path, watch):
    """``copied(**settings)``: a SQLite database and a copy that nothing brings up to date, as its replica."""

    def make(**settings):
        other = servers.url(driver, tmp_path)
        database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
        face = watch(database(url, replicas=Replicas([other], **settings)), driver)
        face.db.routing.wall = Clock(1_700_000_000.0)
        return face

    return make


@pytest.mark.dialects("sqlite")
async def test_without_positions_a_client_stays_on_the_primary_for_a_time(copied):
    """R41: where positions cannot be compared, a client that wrote stays on the primary for `sticky` seconds; so does its token."""
    face = copied(sticky=3.0)
    assert await names(face) == []
    await add(face, "ada")
    token = face.db.position()
    assert await names(face) == ["ada"]

    async def other():
        with face.db.after(token):
            return await names(face)

    assert await face.spawn(other, inherit=False) == [["ada"]]
    face.db.routing.wall.now += 3.0
    assert await names(face) == []
    assert face.db.position() == ""
    assert await face.spawn(other, inherit=False) == [[]]


@pytest.mark.dialects("sqlite", "mysql")
async def test_the_numbers_cover_the_replicas(driver, url, tmp_path, watch):
    """R41: `status()`, `holders()` and `close()` cover the connections to replicas."""
    other = servers.url(driver, tmp_path)
    database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
    face = watch(database(url, replicas=[other], pool_size=2, max_overflow=1), driver)
    async with face.unit(readonly=True, hold="transaction", name="report") as session:
        await session.scalar(select(User.id))
        numbers = face.db.status()
        assert numbers.in_use == 0
        assert [(one.capacity, one.in_use, one.left_out) for one in numbers.replicas] == [(3, 1, False)]
        assert [one.unit for one in face.db.holders()] == ["report"]
    pool = face.db.supplies[1].engine.pool
    await face.close()
    assert pool.checkedout() == 0
    assert face.db.supplies[1].closed
    assert face.db.supplies[1].engine.pool.checkedin() == 0


# --------------------------------------------------------------------------------------- bad input


def test_bad_input_is_refused(tmp_path):
    """R41: a replica of another kind, face or form is refused when the database is made."""
    url, other = f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}"
    engine = sa.create_engine(url)
    for wrong, said in (
        (other, "give a list of URLs"),
        (["postgresql+psycopg://h/d"], "is postgresql, and the primary is sqlite"),
        (["sqlite://"], "in memory"),
        ([3], "neither a database URL nor an Engine"),
        ([engine, engine], "given twice"),
    ):
        with pytest.raises(BadOption, match=said):
            Database(url, replicas=wrong)
    with pytest.raises(BadOption, match="given twice"):
        Database(engine, replicas=[engine])
    with pytest.raises(BadOption, match="leads to one server"):
        Database(url, replicas=[other], creator=lambda: None)
    with pytest.raises(WrongDriver):
        Database(url, replicas=["sqlite+aiosqlite:///b.db"])
    with pytest.raises(WrongDriver):
        AsyncDatabase("sqlite+aiosqlite:///a.db", replicas=[other])
    with pytest.raises(BadOption, match="max_lag"):
        Database(url, replicas=Replicas([other], max_lag=3))
    for name, value in (("wait", -1), ("sticky", "5"), ("max_lag", float("nan")), ("wait", True)):
        with pytest.raises(BadOption, match="give seconds"):
            Replicas([other], **{name: value})
    db = Database(url)
    with pytest.raises(BadOption, match="give what position"), db.after(3):  # type: ignore[arg-type]
        pass
    assert db.position() == ""
    with db.after("p1"):
        assert db.position() == ""
    db.close()
