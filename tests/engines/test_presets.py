import pytest
from sqlalchemy.pool import NullPool, StaticPool

import tenure
from tenure.engines import presets
from tenure.exceptions import BadOption, WrongDriver


@pytest.mark.parametrize(
    ("address", "lifo", "recycle"),
    [
        ("postgresql+psycopg://h/d", True, -1),
        ("mysql+pymysql://h/d", True, 3600),
        ("mariadb+pymysql://h/d", True, 3600),
        ("sqlite:///app.db", False, -1),
    ],
)
def test_the_presets(address, lifo, recycle):
    """R36: an engine that tenure makes has the settings of its database; SQLite's are made on its connections."""
    engine = presets.make_engine(presets.parse(address), {})

    assert (engine.pool._pool.use_lifo, engine.pool._recycle) == (lifo, recycle)


@pytest.mark.parametrize("address", ["postgresql+asyncpg://h/d", "mysql+asyncmy://h/d", "mariadb+aiomysql://h/d"])
def test_the_presets_for_asyncio(address):
    """R36: the same holds for engines of asyncio."""
    engine = presets.make_async_engine(presets.parse(address), {})

    assert engine.pool._pool.use_lifo is True


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"pool_use_lifo": False}, (False, 3600)),
        ({"pool_recycle": 60}, (True, 60)),
        ({"pool_recycle": 60, "pool_use_lifo": False, "pool_size": 2}, (False, 60)),
    ],
)
def test_what_the_caller_gives_goes_before(given, found):
    """R36: an option of the caller's goes before the preset's, and the others stay."""
    with_preset = tenure.Database("mysql+pymysql://h/d", **given)
    pool = with_preset.engine.pool

    assert (pool._pool.use_lifo, pool._recycle) == found
    assert pool.size() == given.get("pool_size", 5)


@pytest.mark.parametrize("pool", [NullPool, StaticPool])
@pytest.mark.parametrize("address", ["postgresql+psycopg://h/d", "mysql+pymysql://h/d"])
def test_another_pool_need_not_take_the_presets(address, pool):
    """R36: a pool class of the caller's is made without the options of the pool that it replaces."""
    assert type(presets.make_engine(presets.parse(address), {"poolclass": pool}).pool) is pool


def test_an_option_that_is_none_of_create_engines():
    """R36: what create_engine() does not take is refused with its name."""
    with pytest.raises(BadOption, match=r"pool_sise.*\[bad-option\]"):
        tenure.Database("sqlite://", pool_sise=3)


@pytest.mark.parametrize(
    ("database", "address", "remedy"),
    [
        (tenure.Database, "sqlite+aiosqlite:///d", "'sqlite'"),
        (tenure.Database, "postgresql+asyncpg://h/d", r"'postgresql\+psycopg'"),
        (tenure.Database, "mysql+asyncmy://h/d", r"'mysql\+pymysql'"),
        (tenure.AsyncDatabase, "sqlite:///d", r"'sqlite\+aiosqlite'"),
        (tenure.AsyncDatabase, "mariadb+pymysql://h/d", r"'mariadb\+asyncmy'"),
    ],
)
def test_a_driver_of_the_other_kind(database, address, remedy):
    """R13: a driver for asyncio is refused by Database, with one that would do, and the other way round."""
    with pytest.raises(WrongDriver, match=remedy):
        database(address)


@pytest.mark.parametrize("given", [{"isolation_level": "AUTOCOMMIT"}, {"execution_options": {"isolation_level": "autocommit"}}])
def test_an_engine_that_commits_every_statement(given):
    """R1: an engine on which nothing could be rolled back is refused."""
    with pytest.raises(BadOption, match="AUTOCOMMIT"):
        presets.make_engine(presets.parse("sqlite://"), given)


@pytest.mark.parametrize(
    "address",
    [
        "app:s3cret@db/app",
        "postgresql+psycopg://app:s3cret@db:port/app",
        "postgresql+psycopg://app:a@s3cret:s3cret@db/app",
        "nonsense://app:s3cret@db/app",
        "postgresql+nonsense://app:s3cret@db/app",
        "s3cret",
        b"postgresql://app:s3cret@db",
    ],
)
def test_an_address_that_cannot_be_read(address):
    """R58: an address that cannot be used is refused, and no part of it that may be a password is shown."""
    with pytest.raises(BadOption) as refused:
        tenure.Database(address)

    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None or "s3cret" not in str(refused.value.__cause__)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("sqlite///app.db", "the database URL has no '://'."),
        ("postgres://app:s3cret@db/app", "SQLAlchemy knows no dialect 'postgres', but 'postgresql'."),
        ("nonsense://app:s3cret@db/app", "SQLAlchemy knows no dialect 'nonsense'."),
        ("postgresql://app:s3cret@db:port/app", "the database URL that begins with 'postgresql' cannot be read."),
    ],
)
def test_what_is_wrong_with_an_address(address, says):
    """R50: the error says what is wrong with a URL, and how one is written."""
    with pytest.raises(BadOption) as refused:
        tenure.Database(address)

    form = "Its form is dialect+driver://user:password@host/name, for SQLite sqlite:///app.db. [bad-option]"
    assert str(refused.value) == f"{says} {form}"


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://app:s3cret@h/d",
        "postgresql+psycopg://h/d?user=app&password=s3cret",
        "postgresql+psycopg://h/d?sslpassword=s3cret&passfile=s3cret",
        "mysql+pymysql://h/d?passwd=s3cret&ssl_key_password=s3cret",
    ],
)
def test_an_address_is_shown_without_its_password(address):
    """R58: wherever the password stands in an address, stars are shown in its place."""
    shown = repr(tenure.Database(address, name="shop"))

    assert "s3cret" not in shown
    assert "***" in shown
    assert shown.startswith("<Database 'shop' ")
    assert "@h/d" in shown or "//h/d" in shown
