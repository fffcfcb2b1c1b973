import functools
import threading

import pytest
import sqlalchemy as sa

from tenure import Retry
from tenure.core import events, retry
from tenure.core.plan import Outcome
from tenure.exceptions import JoinRefused, RollbackOnly

from support.face import SessionFace
from support.models import Order, Pledge, User
from support.probe import outside, stored

servers = pytest.mark.drivers("psycopg", "pymysql", "asyncpg", "psycopg_async", "asyncmy")
one = pytest.mark.drivers("sqlite", "aiosqlite")
AT_ONCE = Retry(attempts=3, first=0)


class Refused(Exception):
    """An error as a driver raises it."""

    def __init__(self, sqlstate):
        super().__init__("refused")
        self.sqlstate = sqlstate


def conflict(state="40001"):
    return sa.exc.OperationalError("UPDATE", {}, Refused(state))


@pytest.fixture
def accounts(face):
    """Two users with money."""
    for name in ("ada", "bob"):
        outside(face, sa.insert(User).values(name=name, balance=10))


# ------------------------------------------------------------------------------------ real conflicts


@servers
@pytest.mark.usefixtures("accounts")
async def test_two_functions_that_deadlock(face, told):
    """R39: when two functions deadlock, the database ends one; it runs again and both are committed once, with their hooks."""
    barrier, hooks, attempts, sessions = face.barrier(2), [], [], set()

    async def transfer(first, second, session: SessionFace):
        attempts.append(first)
        assert session.raw not in sessions
        assert not session.identity_map
        sessions.add(session.raw)
        face.db.on_commit(hooks.append, first)
        await session.execute(sa.update(User).where(User.id == first).values(balance=User.balance - 1))
        if attempts.count(first) == 1:
            await barrier.wait()
        await session.execute(sa.update(User).where(User.id == second).values(balance=User.balance + 1))

    transfer = face.decorated(transfer, retry=Retry(20, first=0), isolation="READ COMMITTED")
    await face.spawn(functools.partial(transfer, 1, 2), functools.partial(transfer, 2, 1))

    assert stored(face, User.balance) == [10, 10]
    assert sorted(hooks) == [1, 2]
    assert len(attempts) >= 3  # the one that runs again may be as quick as to meet the other once more
    assert sorted(told.outcomes()) == ["committed", "committed"] + ["rolled back"] * (len(attempts) - 2)
    assert len(told.of(events.Retried)) == len(attempts) - 2
    assert face.out() == 0


@pytest.mark.drivers("psycopg", "asyncpg", "psycopg_async")
@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize("where", ["statement", "commit"])
async def test_a_serialization_failure(face, told, where):
    """R39: a serialization failure (40001), in a statement or at COMMIT, runs the function again, on what is stored by then."""
    barrier, seen = face.barrier(2), []

    async def count(name, session: SessionFace):
        users = await session.scalar(sa.select(sa.func.count()).select_from(User))
        seen.append((name, users))
        if len(seen) <= 2:
            await barrier.wait()
        if where == "statement":
            await session.execute(sa.update(User).where(User.name == "ada").values(balance=users))
        session.add(User(name=f"{name} {users}"))
        await session.flush()
        if len(seen) <= 2 and where == "commit":
            await barrier.wait()

    count = face.decorated(count, retry=AT_ONCE, isolation="SERIALIZABLE")
    await face.spawn(functools.partial(count, "x"), functools.partial(count, "y"))

    third = seen[2][0]
    assert [users for _, users in seen] == [2, 2, 3]
    assert stored(face) == sorted(["ada", "bob", f"{'x' if third == 'y' else 'y'} 2", f"{third} 3"])
    assert sorted(told.outcomes()) == ["committed", "committed", "rolled back"]


@servers
@pytest.mark.usefixtures("accounts")
async def test_a_deadlock_that_is_swallowed(face):
    """R7: a deadlock undoes the whole transaction on the server; caught, it must not let the rest of the work commit."""
    barrier, results = face.barrier(2), []

    async def transfer(first, second):
        try:
            async with face.unit(isolation="READ COMMITTED") as session:
                await session.execute(sa.update(User).where(User.id == first).values(balance=first * 100))
                await barrier.wait()
                try:
                    await session.execute(sa.update(User).where(User.id == second).values(balance=first * 100))
                except sa.exc.DBAPIError:
                    results.append("deadlock")
                    if face.dialect == "mysql":  # goes on in a new transaction of its own making
                        await session.execute(sa.insert(Order).values(user_id=1, note="half the work"))
        except (RollbackOnly, sa.exc.SQLAlchemyError) as error:
            results.append(type(error).__name__)

    await face.spawn(functools.partial(transfer, 1, 2), functools.partial(transfer, 2, 1))

    assert results == ["deadlock", "RollbackOnly"]
    assert outside(face, sa.select(Order.note)) == []
    assert stored(face, User.balance) in ([100, 100], [200, 200])


@pytest.mark.drivers("pymysql", "asyncmy")
@pytest.mark.usefixtures("accounts")
async def test_a_lock_wait_timeout(face, told):
    """R39: MySQL's lock wait timeout (1205) runs the function again."""
    held, gate, attempts = face.event(), face.event(), []

    async def holder():
        async with face.unit() as session:
            await session.execute(sa.update(User).values(balance=1))
            held.set()
            await gate.wait()

    async def waiter(session: SessionFace):
        await held.wait()
        attempts.append(1)
        await session.execute(sa.text("SET SESSION innodb_lock_wait_timeout = 1"))
        if len(attempts) == 2:
            gate.set()
        await session.execute(sa.update(User).where(User.id == 1).values(balance=2))

    await face.spawn(holder, face.decorated(waiter, retry=AT_ONCE))

    assert len(attempts) == 2
    assert stored(face, User.balance) == [1, 2]


@pytest.mark.drivers("sqlite")
def test_sqlite_is_busy(small, tmp_path):
    """R39: SQLite's "database is locked" runs the function again."""
    face = small()
    blocker = sa.create_engine(face.sync_engine.url)
    attempts = []

    def write(session):
        attempts.append(1)
        if len(attempts) == 2:
            held.close()
        session.add(User(name="ada"))

    with face.sync_engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 20")
    held = blocker.connect()
    held.exec_driver_sql("BEGIN IMMEDIATE")
    face.db.unit(retry=AT_ONCE)(write)()
    blocker.dispose()

    assert len(attempts) == 2
    assert stored(face) == ["ada"]


# ---------------------------------------------------------------------------------------- what is run again


@one
@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_how_often(face, told, attempts):
    """R39: a function runs at most as often as it was told, in a new session each time, and the last error is raised."""
    sessions, ran = [], []

    async def work(session: SessionFace):
        sessions.append(session.raw)
        session.add(User(name=f"user {len(sessions)}"))
        await session.flush()
        face.db.on_commit(ran.append, "commit")
        face.db.on_rollback(ran.append, f"rollback {len(sessions)}")
        raise conflict()

    with pytest.raises(sa.exc.OperationalError):
        await face.decorated(work, retry=Retry(attempts, first=0))()

    assert len(set(sessions)) == len(sessions) == attempts
    assert ran == [f"rollback {number + 1}" for number in range(attempts)]
    assert told.outcomes() == ["rolled back"] * attempts
    assert [event.attempt for event in told.of(events.Retried)] == list(range(2, attempts + 1))
    assert stored(face) == []


@one
async def test_the_hooks_of_a_failed_attempt(face):
    """R39: commit hooks of failed attempts are dropped; those of the one that succeeded run once."""
    attempts, ran = [], []

    async def work(session: SessionFace):
        attempts.append(session.raw)
        face.db.on_commit(ran.append, len(attempts))
        session.add(User(name="ada"))
        await session.flush()
        if len(attempts) < 3:
            raise conflict("40P01")
        return "done"

    result = await face.decorated(work, retry=AT_ONCE)()

    assert result == "done"
    assert ran == [3]
    assert stored(face) == ["ada"]


@one
@pytest.mark.parametrize("error", [KeyError("x"), sa.exc.IntegrityError("INSERT", {}, Refused("23505")), conflict("57014")])
async def test_what_does_not_run_again(face, error):
    """R39: an error that the same work would meet again is raised at once."""
    attempts = []

    async def work(session: SessionFace):
        attempts.append(1)
        await session.scalar(sa.select(User))
        raise error

    with pytest.raises(type(error)):
        await face.decorated(work, retry=3)()

    assert attempts == [1]


@pytest.mark.dialects("sqlite", "postgresql")
async def test_a_constraint_at_commit_does_not_run_again(face):
    """R39: a COMMIT that fails for a constraint is raised at once."""
    attempts = []

    async def work(session: SessionFace):
        attempts.append(1)
        session.add(Pledge(user_id=4711))

    with pytest.raises(sa.exc.IntegrityError):
        await face.decorated(work, retry=AT_ONCE)()

    assert attempts == [1]


@one
async def test_a_conflict_anywhere_in_the_chain(face):
    """R39: the application's own error counts if a conflict caused it, and so does a conflict that was swallowed."""
    attempts = []

    async def work(session: SessionFace):
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyError("transfer failed") from conflict()
        if len(attempts) == 2:
            try:
                raise conflict()
            except sa.exc.OperationalError:
                raise LookupError from None

    with pytest.raises(LookupError):
        await face.decorated(work, retry=Retry(2, first=0))()
    assert attempts == [1, 1]

    async def swallow(session: SessionFace):
        attempts.append(2)
        if attempts.count(2) == 1:
            try:
                await joined()
            except sa.exc.OperationalError:
                pass

    async def fail(session):
        raise conflict()

    joined = face.decorated(fail)
    await face.decorated(swallow, retry=AT_ONCE)()
    assert attempts.count(2) == 2


@one
@pytest.mark.parametrize("how", ["commit", "begin"])
async def test_a_checkpoint_is_not_done_twice(face, how):
    """R39: a function that has committed a part of its work is not run again, and the error says why."""
    attempts = []

    async def work(session: SessionFace):
        attempts.append(1)
        session.add(User(name=f"user {len(attempts)}"))
        await session.commit()
        raise conflict()

    with pytest.raises(sa.exc.OperationalError) as caught:
        await face.decorated(work, retry=AT_ONCE, name="pay")()

    assert stored(face) == ["user 1"]
    assert caught.value.__notes__ == ["tenure: 'pay' is not run again, because its checkpoint has committed a part of it."]


@one
async def test_inside_an_outer_unit(face):
    """R39: retry inside an outer unit is refused, for only the whole unit can run again; a unit of its own may."""
    attempts = []

    async def work(session: SessionFace):
        attempts.append(1)
        if len(attempts) == 1:
            raise conflict()

    async with face.unit() as session:
        with pytest.raises(JoinRefused, match="retry="):
            await face.decorated(work, retry=3)()
        with pytest.raises(JoinRefused, match="retry="):
            await face.decorated(work, retry=3)(session)
        with pytest.raises(JoinRefused, match="retry="):
            await face.decorated(work, retry=3, propagation="nested")()
        await face.decorated(work, retry=AT_ONCE, propagation="new")()

    assert len(attempts) == 2


@pytest.mark.drivers("sqlite")
def test_interruptions_do_not_run_again(face):
    """R39: an interruption is never retried, whatever caused it."""
    attempts = []

    def work(session):
        attempts.append(1)
        raise KeyboardInterrupt from conflict()

    with pytest.raises(KeyboardInterrupt):
        face.db.unit(retry=3)(work)()

    assert attempts == [1]


# ------------------------------------------------------------------------------------------- when and how long


def test_the_wait_grows_to_its_bound():
    """R39: the bound of the random wait doubles with each attempt, up to the longest."""
    asked = Retry(attempts=2000, first=0.1, longest=1.0)
    bounds = [
        retry.wait_before(attempt, asked, conflict(), Outcome.ROLLED_BACK, lambda: 1.0) for attempt in (2, 3, 4, 5, 6, 1999)
    ]
    halves = retry.wait_before(3, asked, conflict(), Outcome.ROLLED_BACK, lambda: 0.5)

    assert bounds == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert halves == 0.1


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.COMMITTED, Outcome.READ_ONLY, None])
def test_only_a_known_rollback_is_followed_by_another_run(outcome):
    """R40: after an unknown outcome, or a commit, nothing is run again."""
    assert retry.wait_before(2, Retry(), conflict(), outcome) is None


@pytest.mark.parametrize(
    ("error", "deserves"),
    [
        (conflict("40001"), True),
        (conflict("40P01"), True),
        (conflict("23505"), False),
        (sa.exc.OperationalError("x", {}, Exception(1213, "Deadlock found")), True),
        (sa.exc.OperationalError("x", {}, Exception(1205, "Lock wait timeout")), True),
        (sa.exc.OperationalError("x", {}, Exception(2006, "gone away")), False),
        (Refused("40001"), False),
        (KeyError(1213), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_deserve_it(error, deserves):
    """R39: 40001, 40P01, MySQL's 1213 and 1205 and SQLite's busy deserve another attempt, and nothing else."""
    assert retry.deserves(error) is deserves


def test_a_chain_in_a_circle():
    """R39: a chain of causes that comes back to itself ends."""
    error, other = KeyError(), KeyError()
    error.__context__, other.__context__ = other, error

    assert not retry.deserves(error)


@pytest.mark.drivers("sqlite")
def test_no_connection_is_held_while_waiting(small, monkeypatch):
    """R39: between two attempts neither a connection nor a unit is held."""
    face = small()
    seen, attempts = [], []
    monkeypatch.setattr("time.sleep", lambda seconds: seen.append((seconds <= 0.05, face.out())))

    def work(session):
        attempts.append(1)
        session.add(User(name="ada"))
        session.flush()
        if len(attempts) < 2:
            raise conflict()

    thread = threading.Thread(target=face.db.unit(retry=2)(work))
    thread.start()
    thread.join()

    assert seen == [(True, 0)]
    assert stored(face) == ["ada"]
