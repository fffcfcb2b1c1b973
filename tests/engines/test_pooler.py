"""PgBouncer in transaction mode: nothing is left on a connection that the next client gets."""

import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy import select, text, update
from sqlalchemy.pool import QueuePool

import tenure
from tenure import AsyncDatabase, Database
from tenure.engines import pooler
from tenure.exceptions import BadOption, PoolerRefused

from support import servers
from support.face import settle
from support.models import User
from support.servers import DRIVERS

CLIENTS = 20
UNITS = 1000
pytestmark = pytest.mark.dialects("postgresql")


@pytest.fixture
def bounced(driver, url, watch):
    """``bounced(**options)`` gives a face of a `Database` whose connections go through PgBouncer, with a connection per client."""
    address = servers.found("pgbouncer").base.set(drivername=DRIVERS[driver].drivername)

    def make(**options):
        database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
        return watch(database(address, pool_size=CLIENTS, max_overflow=0, **options), driver)

    return make


async def _units(face, count: int) -> None:
    """*count* units of all kinds, one after another."""
    for i in range(count):
        kind = i % 5
        if kind == 0:
            async with face.unit() as session:
                session.add(User(name=uuid.uuid4().hex))
        elif kind == 1:
            async with face.unit() as session:
                user = await session.scalar(select(User).order_by(User.id).limit(1))
                await session.execute(update(User).where(User.id == user.id).values(name=uuid.uuid4().hex))
        elif kind == 2:
            async with face.unit(readonly=True, settings={"application_name": "tenure"}) as session:
                assert await session.scalar(text("SELECT current_setting('application_name')")) == "tenure"
        elif kind == 3:
            async with face.unit() as session:
                rows = await session.stream(select(User.id).limit(3))
                assert len(await rows.all()) > 0
                await rows.close()
        else:
            async with face.unit() as session:
                for number in range(3):
                    wanted = sa.cast(sa.literal(number, sa.Integer), sa.Integer) + i
                    assert await session.scalar(select(wanted)) == number + i
                assert await session.scalar(select(sa.literal({"a": [1]}, sa.JSON))) == {"a": [1]}


async def test_a_thousand_units_with_the_preset(bounced):
    """R42: 20 at a time run 1,000 units with the preset: no statement error occurs, and nothing is left prepared."""
    face = bounced(pooler="pgbouncer")

    async def client():
        await _units(face, UNITS // CLIENTS)

    await face.spawn(*[client] * CLIENTS)

    async with face.unit(hold="transaction") as session:
        assert await session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
        assert await session.scalar(select(sa.func.count()).select_from(User)) == UNITS // 5


async def test_without_the_preset_the_first_error_names_it(bounced):
    """R42: without the preset the first error about a prepared statement has a note that names it."""
    face = bounced()
    errors = []

    async def client():
        try:
            for _ in range(10):
                await _units(face, 20)
        except sa.exc.DBAPIError as error:
            errors.append(error)

    await face.spawn(*[client] * CLIENTS, return_exceptions=True)

    assert "prepared statement" in str(errors[0])
    assert any("pooler='pgbouncer'" in note for note in errors[0].__notes__)


REFUSED = {
    "SET search_path TO tenant": "settings={…}",
    "set session statement_timeout = 5": "SET LOCAL",
    "-- a comment\n  SET ROLE admin": "SET LOCAL",
    "SELECT 1; SET TIME ZONE 'UTC'": "SET LOCAL",
    "RESET ALL": "SET LOCAL",
    "LISTEN jobs": "past the pooler",
    "UNLISTEN *": "past the pooler",
    "DISCARD ALL": "past the pooler",
    "PREPARE x AS SELECT 1": "the driver sends",
    "DEALLOCATE ALL": "nothing is prepared",
    "SELECT pg_advisory_lock(1)": "pg_advisory_xact_lock()",
    "select pg_try_advisory_lock_shared (1, 2)": "pg_try_advisory_xact_lock()",
    "SELECT pg_advisory_unlock_all()": "pg_advisory_xact_lock()",
    "DO $$ BEGIN PERFORM pg_advisory_lock(7); END $$": "pg_advisory_xact_lock()",
    "SELECT set_config('a.b', 'c', false)": "settings={…}",
    "SELECT pg_catalog.set_config('a.b', 'c', 'f')": "settings={…}",
}
ALLOWED = (
    "SET LOCAL statement_timeout = 5000",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_xact_lock(1)",
    "SELECT set_config('a.b', 'false', true)",
    "NOTIFY jobs",
    "UPDATE users\n SET name = name WHERE false",
    "SELECT 'a; SET x TO 1', 'pg_advisory_lock(1)', \"set_config(a, false)\" FROM (SELECT 1 AS \"set_config(a, false)\") AS t",
    "SELECT 1 /* LISTEN x; SET x */ -- ; RESET y",
)


async def test_what_outlasts_the_transaction_is_refused(bounced):
    """R42: session-level SET, advisory locks and LISTEN are refused at the user's line, with what to use instead."""
    face = bounced(pooler="pgbouncer")
    for statement, instead in REFUSED.items():
        with pytest.raises(PoolerRefused, match=r"at test_pooler\.py.*pgbouncer") as refused:
            async with face.unit() as session:
                await session.execute(text(statement))
        assert instead in str(refused.value)
        assert str(refused.value).endswith("[pooler-refused]")
    with pytest.raises(PoolerRefused, match=r"^LISTEN jobs at test_pooler\.py"):
        async with face.unit() as session:
            await settle((await session.connection()).exec_driver_sql("LISTEN jobs"))
    with pytest.raises(PoolerRefused, match=r"^pg_advisory_lock\(\)"):
        async with face.unit() as session:
            await session.scalar(select(sa.func.pg_advisory_lock(1)))
    for statement in ALLOWED:
        async with face.unit() as session:
            await session.execute(text(statement))


@pytest.mark.drivers("psycopg")
async def test_without_the_preset_nothing_is_refused(face):
    """R42: what a session sets is the user's own where no pooler is named."""
    async with face.unit() as session:
        await session.execute(text("SET application_name TO 'mine'"))


@pytest.mark.drivers("psycopg")
async def test_the_pool_stays(bounced):
    """R42: a unit that takes a connection for each read must not connect each time, so the pool keeps them."""
    face = bounced(pooler="pgbouncer")
    assert isinstance(face.pool, QueuePool)
    assert face.pool.size() == CLIENTS


@pytest.mark.drivers("psycopg")
def test_bad_input_is_refused(url):
    """R42: an unknown pooler, another database or driver, and an engine made elsewhere are a BadOption."""
    with pytest.raises(BadOption, match="give 'pgbouncer'"):
        Database(url, pooler="pgpool")
    with pytest.raises(BadOption, match="stands before PostgreSQL"):
        Database("sqlite://", pooler="pgbouncer")
    with pytest.raises(BadOption, match="Give its URL"):
        Database(sa.create_engine(url), pooler="pgbouncer")
    with pytest.raises(BadOption, match="Use psycopg or asyncpg"):
        pooler.preset("pgbouncer", sa.make_url("postgresql+pg8000://h/d"), {})
    with pytest.raises(BadOption, match="give 'pgbouncer'"):
        AsyncDatabase(url, pooler="odyssey")


def test_what_the_caller_gives_goes_first():
    """R42: connect_args= of the caller's stay, and go before the preset's."""
    given = {"connect_args": {"statement_cache_size": 7, "timeout": 3}}
    found = pooler.preset("pgbouncer", sa.make_url("postgresql+asyncpg://h/d"), given)["connect_args"]
    assert found["statement_cache_size"] == 7
    assert found["timeout"] == 3
    assert found["prepared_statement_cache_size"] == 0
    assert given == {"connect_args": {"statement_cache_size": 7, "timeout": 3}}
