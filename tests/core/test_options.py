"""Bad input is refused at the earliest moment, with the remedy in the message."""

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tenure import AsyncDatabase, Database, Retry
from tenure.core.options import UnitOptions, guard_modes, unit_options
from tenure.exceptions import BadOption, JoinRefused, UnexpectedUnit, UnsupportedCallable, WrongDriver

SQLITE = "sqlite://"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"readonly": 1}, "readonly=1: give one of True, False"),
        ({"propagation": "require"}, "propagation='require': give one of 'required', 'new'"),
        ({"isolation": "SNAPSHOOT"}, "isolation='SNAPSHOOT': give one of"),
        ({"isolation": 3}, "isolation=3: give one of"),
        ({"isolation": "autocommit"}, "a unit is a transaction"),
        ({"hold": "statement"}, "hold='statement': give one of None, 'auto', 'transaction'"),
        ({"retry": "3"}, "retry='3': give the number of runs in all"),
        ({"retry": True}, "retry=True"),
        ({"retry": 0}, "attempts=0"),
        ({"settings": "a=b"}, "settings='a=b': give a mapping"),
        ({"settings": {"drop table": "1"}}, "'drop table' is not the name of a server setting"),
        ({"settings": {"app.x": object()}}, "give text, a number or a truth value"),
        ({"name": ""}, "name='': give the text"),
        ({"readnly": True}, "unit(readnly=…): there is no such option. The options are hold, isolation"),
    ],
)
def test_an_option_that_is_wrong(options, says) -> None:
    """R50: a wrong option of unit() raises BadOption where it is given, and says what it takes."""
    db = Database(SQLITE)
    with pytest.raises(BadOption) as caught:
        db.unit(**options)
    db.close()

    assert says in str(caught.value)
    assert str(caught.value).endswith("[bad-option]")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry(attempts=1.5),
        lambda: Retry(first=-1),
        lambda: Retry(longest="2"),
        lambda: Retry(first=True),
        lambda: Database(SQLITE, guards="loud"),
        lambda: Database(SQLITE, guards={"not-owner": "off"}),
        lambda: Database(SQLITE, session_options={"bind": None}),
        lambda: Database(SQLITE, session_options={"autoflsh": True}),
        lambda: Database(SQLITE, hold="none"),
        lambda: Database(SQLITE, isolation="nothing"),
        lambda: Database(SQLITE, name=""),
        lambda: Database(SQLITE, no_such_option=1),
        lambda: Database(SQLITE, isolation_level="AUTOCOMMIT"),
        lambda: Database(sa.create_engine(SQLITE, isolation_level="AUTOCOMMIT")),
        lambda: Database(sa.create_engine(SQLITE).execution_options(isolation_level="AUTOCOMMIT")),
        lambda: Database(sa.create_engine(SQLITE), pool_size=3),
        lambda: Database(None),
        lambda: Database(42),
        lambda: Database("no url at all"),
        lambda: Database("nosuchdb://host/name"),
        lambda: Database("oracle+oracledb://u:s3cret@h/n"),
        lambda: AsyncDatabase("sqlite+aiosqlite://", finish_within=0),
        lambda: AsyncDatabase("sqlite+aiosqlite://", finish_within="10"),
    ],
    ids=[f"argument-{n}" for n in range(23)],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_argument_that_is_wrong(make) -> None:
    """R50: a wrong argument of a constructor raises BadOption at once; no password is in the message."""
    with pytest.raises(BadOption) as caught:
        make()

    assert str(caught.value).endswith("[bad-option]")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: Database("postgresql+asyncpg://h/n"), "Use AsyncDatabase, or a driver that blocks, as 'postgresql+psycopg'"),
        (lambda: Database("sqlite+aiosqlite://"), "as 'sqlite'"),
        (lambda: Database(create_async_engine("sqlite+aiosqlite://")), "Use AsyncDatabase"),
        (lambda: AsyncDatabase("sqlite://"), "as 'sqlite+aiosqlite'"),
        (lambda: AsyncDatabase("mysql+pymysql://h/n"), "as 'mysql+asyncmy'"),
        (lambda: AsyncDatabase(sa.create_engine("sqlite://")), "Use Database"),
    ],
)
def test_a_driver_of_the_other_face(make, remedy) -> None:
    """R50: a URL or engine of the other face raises WrongDriver when the database is made, and names one that fits."""
    with pytest.raises(WrongDriver) as caught:
        make()

    assert remedy in str(caught.value)
    assert str(caught.value).endswith("[wrong-driver]")


def test_options_are_made_once() -> None:
    """R49: the same keyword arguments give the same frozen options, and what cannot be hashed is made anew."""
    assert unit_options({"readonly": True}) is unit_options({"readonly": True})
    assert unit_options({}) == UnitOptions()
    assert unit_options({"settings": {"a.b": 1}}).settings == {"a.b": "1"}
    assert unit_options({"isolation": "repeatable_read"}).isolation == "REPEATABLE READ"


def test_guards_by_slug() -> None:
    """R49: every guard is on by default, and each can be set by its slug."""
    modes = guard_modes({"concurrent-use": "warn"})

    assert modes["concurrent-use"] == "warn"
    assert set(guard_modes(None).values()) == {"raise"}
    assert set(guard_modes("off").values()) == {"off"}


@pytest.mark.dialects("sqlite", "mysql")
async def test_settings_need_a_server_that_forgets_them(face) -> None:
    """R60: settings= is refused at entry where they would stay on the connection."""
    with pytest.raises(BadOption, match="would stay on the connection"):
        async with face.unit(settings={"app.tenant": "1"}):
            pass

    assert face.out() == 0


@pytest.mark.drivers("psycopg", "asyncpg")
@pytest.mark.parametrize(
    "inner",
    [{"isolation": "SERIALIZABLE"}, {"hold": "transaction"}, {"settings": {"app.tenant": "1"}}],
    ids=["isolation", "hold", "settings"],
)
async def test_joining_for_more_than_there_is(face, inner) -> None:
    """R5: a unit that asks on joining for more than the outer one gives is refused at entry, and the outer one goes on."""
    async with face.unit() as session:
        with pytest.raises(JoinRefused, match=r'test_options\.py:\d+.*propagation="new"\. \[join-refused\]'):
            async with face.unit(**inner):
                pass
        answer = await session.scalar(sa.select(1))

    assert answer == 1


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_joining_for_what_the_outer_unit_gives(face) -> None:
    """R5: asking for as much as the outer unit gives, or for less, joins."""
    much = face.unit(isolation="SERIALIZABLE", settings={"app.tenant": "1"}, hold="transaction")
    less = face.unit(isolation="READ COMMITTED", settings={"app.tenant": 1}, hold="transaction")
    async with much as outer, less as inner:
        same = inner.raw is outer.raw

    assert same


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_refused_entries_leave_the_outer_unit_alone(face) -> None:
    """R5: never inside a unit, retry inside a unit and retry on a block are refused; the outer unit commits."""

    async def work(session) -> None:
        pass

    async with face.unit():
        with pytest.raises(UnexpectedUnit, match=r"\[unexpected-unit\]"):
            async with face.unit(propagation="never"):
                pass
        with pytest.raises(UnsupportedCallable, match=r"test_options\.py:\d+ is on a with-block.*\[unsupported-callable\]"):
            async with face.unit(retry=3):
                pass
        with pytest.raises(JoinRefused, match="retry="):
            await face.decorated(work, retry=3)()
        unit = face.current

    assert unit.outcome.value == "read only"
