"""Running a function again after a conflict."""

import sqlite3

import pytest
import sqlalchemy as sa
from sqlalchemy import select

from tenure import Retry
from tenure.core.plan import Outcome
from tenure.core.retry import deserves, wait_before

from support.models import User
from support.probe import stored


def _conflict(state: str | int) -> sa.exc.OperationalError:
    origin = Exception(state) if isinstance(state, int) else type("DriverError", (Exception,), {"sqlstate": state})()
    return sa.exc.OperationalError("UPDATE …", {}, origin)


@pytest.mark.parametrize("state", ["40001", "40P01", 1213, 1205])
def test_conflicts_are_told_by_their_state(state) -> None:
    """R39: serialization failures and deadlocks deserve another attempt, anywhere in the chain of causes."""
    conflict = _conflict(state)
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = ValueError("inner")
    wrapped.__cause__.__context__ = conflict

    assert deserves(conflict)
    assert deserves(wrapped)


@pytest.mark.parametrize("state", ["23505", "42P01", 1062])
def test_other_errors_are_raised_at_once(state) -> None:
    """R39: what would fail again is not tried again."""
    assert not deserves(_conflict(state))
    assert not deserves(KeyError("40001"))


def test_a_busy_file_deserves_another_attempt(tmp_path) -> None:
    """R39: SQLite's busy error, as the driver itself raises it."""
    first, second = (sqlite3.connect(tmp_path / "x.db", timeout=0, isolation_level=None) for _ in range(2))
    first.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError) as busy:
        second.execute("BEGIN IMMEDIATE")
    for one in (first, second):
        one.close()

    assert deserves(sa.exc.OperationalError("BEGIN", {}, busy.value))


def test_only_a_known_rollback_is_followed_by_another_run() -> None:
    """R39, R40: after an unknown outcome, or a commit, nothing runs again; nor after the last attempt."""
    conflict, retry = _conflict("40001"), Retry(attempts=3, first=0.1, longest=0.15)

    assert [wait_before(n, retry, conflict, Outcome.ROLLED_BACK, lambda: 1.0) for n in (2, 3, 4)] == [0.1, 0.15, None]
    assert wait_before(2, retry, conflict, Outcome.UNKNOWN) is None
    assert wait_before(2, retry, conflict, Outcome.COMMITTED) is None
    assert wait_before(2, retry, ValueError(), Outcome.ROLLED_BACK) is None


@pytest.mark.dialects("postgresql", "mysql")
async def test_two_functions_that_deadlock(face) -> None:
    """R39: both are committed once, hooks ran once for each, and no object of attempt 1 is in the session of attempt 2."""
    async with face.unit() as session:
        session.add_all([User(name="a"), User(name="b")])
    meet = face.barrier(2)
    attempts: dict[str, list[object]] = {"ab": [], "ba": []}
    hooks: list[str] = []

    async def transfer(session, order: str) -> None:
        first_time = not attempts[order]
        attempts[order].append(session.raw)
        face.db.on_commit(hooks.append, order)
        held: list[User] = []
        for i, name in enumerate(order):
            if i == 1 and first_time:
                await meet.wait()
            one = (await session.scalars(select(User).where(User.name == name).with_for_update())).one()
            held.append(one)
            assert list(session.identity_map.values()) == held
            one.balance += 1
            await session.flush()

    work = face.decorated(transfer, retry=Retry(attempts=5, first=0.01))

    async def one_way() -> None:
        await work(order="ab")

    async def other_way() -> None:
        await work(order="ba")

    await face.spawn(one_way, other_way)

    assert stored(face, User.balance) == [2, 2]
    assert sorted(hooks) == ["ab", "ba"]
    runs = [one for several in attempts.values() for one in several]
    assert len({id(one) for one in runs}) == len(runs) >= 3  # the two may meet once more


@pytest.mark.dialects("postgresql")
async def test_a_conflict_at_commit(face) -> None:
    """R39: a serialization failure that comes with the COMMIT, or with a late statement, runs the function again."""
    async with face.unit() as session:
        session.add_all([User(name="a", balance=1), User(name="b", balance=1)])
    meet = face.barrier(2)
    runs: list[str] = []

    async def withdraw(session, name: str) -> None:
        total = sum(await session.scalars(select(User.balance)))
        if len(runs) < 2:
            runs.append(name)
            await meet.wait()
        else:
            runs.append(name)
        if total > 1:
            (await session.scalars(select(User).where(User.name == name))).one().balance = 0

    work = face.decorated(withdraw, retry=5, isolation="SERIALIZABLE")

    async def from_a() -> None:
        await work(name="a")

    async def from_b() -> None:
        await work(name="b")

    await face.spawn(from_a, from_b)

    assert sorted(stored(face, User.balance)) == [0, 1]
    assert len(runs) == 3


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_an_error_that_is_no_conflict_runs_once(face) -> None:
    """R39: the function's own error is raised by the first attempt, and its hooks are dropped."""
    runs: list[int] = []

    async def work(session) -> None:
        runs.append(1)
        face.db.on_commit(runs.append, 2)
        raise LookupError

    with pytest.raises(LookupError):
        await face.decorated(work, retry=3)()

    assert runs == [1]


@pytest.mark.drivers("sqlite")
def test_nothing_is_held_between_attempts(make_face) -> None:
    """R39: while a function waits for its next attempt its connection is home and its context has no unit."""
    face = make_face()
    seen: list[tuple[int, object]] = []
    reader = _Waits(face, seen)
    from support.probe import reading

    with reading(reader), pytest.raises(sa.exc.OperationalError):
        face.db.unit(retry=Retry(attempts=2, first=0.0))(_busy)()

    assert seen == [(0, None)]


def _busy() -> None:
    raise _conflict("40001")


class _Waits:
    def __init__(self, face, seen) -> None:
        self.face, self.seen = face, seen

    def wants(self, kind) -> bool:
        return kind.__name__ == "Retried"

    def __call__(self, event) -> None:
        self.seen.append((self.face.out(), self.face.db.current_place.here()))
