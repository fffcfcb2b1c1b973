"""Where connections come from: exact under every way in which one can leave."""

import gc
import random
import threading
import warnings
from collections import Counter

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select, text
from sqlalchemy.pool import NullPool, QueuePool

from tenure import Database
from tenure.exceptions import DatabaseClosed

from support.models import User

POOL = 5
# dispose() leaves the connections that are out to the old pool, and with it to the garbage collector, as SQLAlchemy documents.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collected():
    """What dispose() left to the garbage collector goes here, not in a test that comes later."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


class _Listener(Exception):
    """Raised by a checkout listener, as a broken add-on would."""


class _Chaos:
    """Units that lose their connection in every way there is, at random; notes which rows were to be stored."""

    WAYS = ("return", "raise", "invalidate", "detach", "dispose", "listener", "leave", "read")

    def __init__(self, face) -> None:
        self.face = face
        self.pool = face.db.engine.pool
        self.stored: set[str] = set()
        self.ways: Counter[str] = Counter()
        self.unexpected: list[BaseException] = []
        self.failing = threading.local()
        self.most_out = 0
        event.listen(face.db.engine, "checkout", self._checkout)

    def _checkout(self, *_: object) -> None:
        self.most_out = max(self.most_out, self.face.db.engine.pool.checkedout())
        if getattr(self.failing, "now", False):
            self.failing.now = False
            raise _Listener

    def unit(self, name: str, way: str) -> None:
        with self.face.db.unit() as session:
            if way == "listener":
                self.failing.now = True
            session.add(User(name=name))
            session.flush()
            if way == "invalidate":
                session.connection().invalidate()
            elif way == "detach":
                session.connection().detach()
            elif way == "dispose":
                self.face.db.engine.dispose()
            elif way == "raise":
                raise KeyError(name)
            elif way == "leave":
                session.rollback()

    def thread(self, number: int, units: int) -> None:
        dice = random.Random(number)
        for i in range(units):
            way = dice.choices(self.WAYS, (60, 5, 2, 2, 0.2, 2, 5, 20))[0]
            name = f"{number}-{i}"
            self.ways[way] += 1
            try:
                if way == "read":
                    with self.face.db.unit() as session:
                        session.scalar(select(User.id).limit(1))
                    continue
                self.unit(name, way)
                if way in ("return", "detach", "dispose"):
                    self.stored.add(name)
            except (KeyError, _Listener):
                pass
            except sa.exc.PendingRollbackError:  # what an invalidated connection says at the commit
                assert way == "invalidate"
            except BaseException as error:
                self.unexpected.append(error)


@pytest.mark.drivers("psycopg", "sqlite")
def test_every_way_out_of_the_pool_is_counted(make_face, driver) -> None:
    """R36: 16 threads with 500 units each, mixed at random: 0 out, nobody in the ledger, never more than 5 out, right rows."""
    face = make_face(pool_size=POOL, max_overflow=0, pool_timeout=60)
    chaos = _Chaos(face)
    units = 500 if driver == "psycopg" else 60
    threads = [threading.Thread(target=chaos.thread, args=(n, units)) for n in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    with face.db.unit() as session:
        rows = set(session.scalars(select(User.name)))
    gc.collect()

    assert chaos.unexpected == []
    assert set(chaos.ways) == set(chaos.WAYS)
    assert rows == chaos.stored
    assert chaos.most_out <= POOL
    assert face.out() == 0
    assert len(face.db.supply.ledger) == 0


@pytest.mark.drivers("psycopg")
def test_a_wait_that_times_out_leaves_nothing(make_face) -> None:
    """R36: a unit that got no connection in time raises the pool's error, and the ledger knows only who holds one."""
    face = make_face(pool_size=1, max_overflow=0, pool_timeout=0.05, guards={"second-connection": "off"})
    with face.db.unit() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(sa.exc.TimeoutError), face.db.unit(propagation="new") as other:
            other.execute(text("SELECT 1"))
        holders = face.db.holders()

    assert len(holders) == 1
    assert face.out() == 0


def test_the_bound_of_a_pool_is_known(tmp_path) -> None:
    """R36: the capacity is read off a private name of QueuePool; this fails when that changes."""
    url = f"sqlite:///{tmp_path}/x.db"
    sizes = {
        15: Database(url),
        7: Database(url, pool_size=5, max_overflow=2),
        5: Database(sa.create_engine(url, poolclass=QueuePool, pool_size=5, max_overflow=0)),
    }
    unbounded = [Database(url, max_overflow=-1), Database(sa.create_engine(url, poolclass=NullPool))]

    assert [db.status().capacity for db in sizes.values()] == list(sizes)
    assert [db.status().capacity for db in unbounded] == [None, None]


def test_statements_take_the_short_way(tmp_path) -> None:
    """R49: tenure listens to no statement: an engine is as fast as without it. This fails when the private switch changes."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/x.db")
    db = Database(engine)
    short = engine._has_events is False
    engine.dispose()
    with engine.connect() as connection:
        short = short and connection._has_events is False

    assert short
    assert engine.pool.connect.__self__ is db.supply.gate


@pytest.mark.dialects("postgresql")
def test_status_takes_no_connection(make_face) -> None:
    """R36: the numbers of a database come without a connection, and the peak is the most that were out at once."""
    face = make_face(pool_size=3, max_overflow=0)

    async def case() -> None:
        before = face.db.status()
        async with face.unit() as outer:
            await outer.execute(text("SELECT 1"))
            async with face.unit(propagation="new") as inner:
                await inner.execute(text("SELECT 1"))
                within = face.db.status()
        after = face.db.status()

        assert (before.capacity, before.in_use) == (3, 0)
        assert within.in_use == 2
        assert (after.in_use, after.peak) == (0, 2)

    face.run(case())


def test_a_closed_database_hands_out_nothing(make_face) -> None:
    """R50: after close() a statement raises DatabaseClosed, and nothing is left open."""
    face = make_face()

    async def case() -> None:
        await face.close()
        with pytest.raises(DatabaseClosed, match=r"was closed.*\[database-closed\]"):
            async with face.unit() as session:
                await session.execute(text("SELECT 1"))

    face.run(case())


def test_an_engine_taken_as_it_is_stays_open(tmp_path) -> None:
    """R21: close() refuses further units, but an engine made elsewhere belongs to whoever made it."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/x.db")
    db = Database(engine)
    with db.unit() as session:
        session.execute(text("SELECT 1"))
    db.close()
    with engine.connect() as connection:
        answer = connection.execute(text("SELECT 1")).scalar()
    engine.dispose()

    assert answer == 1


@pytest.mark.dialects("postgresql")
def test_a_url_that_nothing_answers_says_so(driver) -> None:
    """R50: an unreachable server raises the driver's own error with a note that names the database, without its password."""
    url = f"postgresql+{'psycopg' if driver.startswith('psycopg') else driver}://ada:s3cret@127.0.0.1:1/nowhere"
    import asyncio

    from tenure import AsyncDatabase

    from support.probe import is_async

    async def ask() -> None:
        db = AsyncDatabase(url)
        async with db.unit() as session:
            await session.execute(text("SELECT 1"))

    with pytest.raises((sa.exc.OperationalError, OSError)) as caught:
        if is_async(driver):
            asyncio.run(ask())
        else:
            with Database(url).unit() as session:
                session.execute(text("SELECT 1"))

    notes = "\n".join(caught.value.__notes__)
    assert "no connection of 'main'" in notes
    assert "s3cret" not in notes
