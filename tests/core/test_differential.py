"""The promise of hold="auto": the same programs on SQLAlchemy's classic rule and in a unit, with the same answers.

Each program runs twice against the same rows: on a plain ``Session(engine, expire_on_commit=False)`` that commits at the end, and
in a unit. What it returns, what it raises, what another connection sees on the way and what is stored afterwards must agree.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, joinedload, selectinload

import tenure

from support.face import settle
from support.models import Item, Order, User
from support.probe import is_async
from support.stranger import Stranger

pytestmark = pytest.mark.drivers("sqlite", "psycopg", "pymysql", "aiosqlite", "asyncpg", "psycopg_async")

Program = Callable[[Session, Callable[[], Any]], Any]
PROGRAMS: dict[str, Program] = {}


def program(function: Program) -> Program:
    PROGRAMS[function.__name__] = function
    return function


def names(session: Session) -> list[str]:
    return list(session.scalars(select(User.name).order_by(User.id)))


# ------------------------------------------------------------------------------------------ by hand


@program
def read_twice(s, look):
    return names(s), names(s), look()


@program
def read_then_write(s, look):
    first = s.get(User, 1)
    first.balance += 5
    return look(), names(s), look()


@program
def add_read_rollback(s, look):
    s.add(User(id=10, name="new"))
    seen = names(s)
    s.rollback()
    return seen, names(s), look()


@program
def pending_then_rollback_without_a_flush(s, look):
    names(s)
    s.add(User(id=10, name="new"))
    s.rollback()
    return len(s.new), names(s)


@program
def changed_then_rollback_without_a_flush(s, look):
    one = s.get(User, 1)
    one.name = "changed"
    s.rollback()
    return one.name, names(s)


@program
def marked_as_deleted_then_rollback(s, look):
    one = s.get(User, 3)
    s.delete(one)
    s.rollback()
    return one in s, names(s)


@program
def unflushed_objects_are_not_seen_under_no_autoflush(s, look):
    with s.no_autoflush:
        s.add(User(id=10, name="new"))
        seen = names(s)
    return seen, look(), names(s)


@program
def a_checkpoint_is_seen(s, look):
    s.add(User(id=10, name="new"))
    s.flush()
    before = look()
    s.commit()
    return before, look(), names(s)


@program
def a_failed_flush_is_undone_by_rollback(s, look):
    s.add(User(id=10, name="ada"))
    try:
        s.flush()
    except sa.exc.IntegrityError:
        s.rollback()
    return names(s), look()


@program
def a_failed_commit_goes_on(s, look):
    s.add(User(id=10, name="ada"))
    try:
        s.commit()
    except sa.exc.IntegrityError:
        s.rollback()
    s.add(User(id=11, name="fine"))
    return names(s), look()


@program
def an_error_goes_to_the_caller(s, look):
    s.add(User(id=10, name="new"))
    s.flush()
    raise LookupError


@program
def a_duplicate_goes_to_the_caller(s, look):
    s.add(User(id=10, name="ada"))


@program
def a_savepoint_that_fails(s, look):
    s.add(User(id=10, name="kept"))
    try:
        with s.begin_nested():
            s.add(User(id=11, name="ada"))
    except sa.exc.IntegrityError:
        pass
    return names(s), look()


@program
def a_savepoint_that_is_released(s, look):
    with s.begin_nested():
        s.add(User(id=11, name="in"))
    s.add(User(id=12, name="out"))
    return names(s), look()


@program
def a_savepoint_after_reads(s, look):
    one = s.get(User, 1)
    nested = s.begin_nested()
    one.balance = 99
    s.flush()
    nested.rollback()
    return one.balance, names(s)


@program
def savepoints_in_savepoints(s, look):
    with s.begin_nested():
        s.add(User(id=11, name="a"))
        inner = s.begin_nested()
        s.add(User(id=12, name="b"))
        s.flush()
        inner.rollback()
    return names(s), look()


@program
def core_statements(s, look):
    s.execute(insert(User).values(id=10, name="core", balance=1))
    s.execute(update(User).where(User.id == 1).values(balance=7))
    s.execute(delete(User).where(User.id == 3))
    return names(s), look()


@program
def raw_sql(s, look):
    s.execute(text("UPDATE users SET balance = 3 WHERE id = 1"))
    return s.execute(text("SELECT balance FROM users WHERE id = 1")).scalar(), look()


@program
def raw_sql_undone(s, look):
    s.execute(text("UPDATE users SET balance = 3 WHERE id = 1"))
    s.rollback()
    return s.scalar(select(User.balance).where(User.id == 1))


@program
def lazy_loads(s, look):
    return [(one.name, [order.note for order in one.orders]) for one in s.scalars(select(User).order_by(User.id))]


@program
def eager_loads(s, look):
    asked = select(User).options(selectinload(User.orders).selectinload(Order.items)).order_by(User.id)
    return [(one.name, [[item.name for item in order.items] for order in one.orders]) for one in s.scalars(asked)]


@program
def joined_loads(s, look):
    asked = select(Order).options(joinedload(Order.user), joinedload(Order.items)).order_by(Order.id)
    return [(order.user.name, len(order.items)) for order in s.scalars(asked).unique()]


@program
def refresh_sees_what_others_stored(s, look):
    one = s.get(User, 1)
    one.balance = 5
    s.flush()
    s.refresh(one)
    return one.balance


@program
def expire_and_read(s, look):
    one = s.get(User, 1)
    s.expire_all()
    return one.name, one.balance


@program
def merge_an_object(s, look):
    merged = s.merge(User(id=2, name="bob the second", balance=1))
    return merged.name, names(s), look()


@program
def merge_a_new_object(s, look):
    s.merge(User(id=20, name="merged", balance=1))
    return names(s), look()


@program
def bulk_operations(s, look):
    s.bulk_insert_mappings(User, [{"id": 20, "name": "x", "balance": 0}, {"id": 21, "name": "y", "balance": 0}])
    s.bulk_update_mappings(User, [{"id": 1, "balance": 50}])
    s.bulk_save_objects([User(id=22, name="z", balance=0)])
    return names(s), look()


@program
def query_api(s, look):
    found = s.query(User).filter(User.id < 3).order_by(User.id)
    found.filter(User.id == 1).update({"balance": 4})
    return [one.name for one in found], s.query(User).count(), look()


@program
def a_lock_and_a_write(s, look):
    one = s.scalars(select(User).where(User.id == 1).with_for_update()).one()
    one.balance += 1
    return one.balance, look()


@program
def streamed_rows(s, look):
    asked = select(User.name).order_by(User.id).execution_options(yield_per=1)
    return list(s.scalars(asked)), names(s)


@program
def streamed_rows_and_a_write(s, look):
    s.add(User(id=10, name="new"))
    asked = select(User.name).order_by(User.id).execution_options(yield_per=2)
    return list(s.scalars(asked)), look()


@program
def rows_read_after_the_next_statement(s, look):
    result = s.execute(select(User.id, User.name).order_by(User.id))
    first = result.fetchone()
    s.scalar(select(func.count()).select_from(User))
    return tuple(first), [tuple(row) for row in result]


@program
def rows_read_after_a_write(s, look):
    result = s.scalars(select(User.name).order_by(User.id))
    s.execute(update(User).values(balance=1))
    return result.all(), look()


@program
def a_connection_of_the_session(s, look):
    s.connection().execute(text("UPDATE users SET balance = 8 WHERE id = 2"))
    return s.scalar(select(User.balance).where(User.id == 2)), look()


@program
def a_union(s, look):
    asked = sa.union(select(User.name).where(User.id == 1), select(User.name).where(User.id == 2)).order_by("name")
    return [row[0] for row in s.execute(asked)]


@program
def a_change_in_a_cte_or_not_at_all(s, look):
    if s.connection().dialect.name != "postgresql":
        return None
    changed = update(User).where(User.id == 1).values(balance=77).returning(User.id).cte()
    seen = s.scalar(select(changed.c.id))
    before = look()
    s.rollback()
    return seen, before, look()


@program
def delete_and_add_the_same_key(s, look):
    s.delete(s.get(User, 3))
    s.flush()
    s.add(User(id=3, name="again"))
    return names(s), look()


@program
def cascades(s, look):
    order = s.get(Order, 1)
    order.items.append(Item(id=50, name="more"))
    del order.items[0]
    return s.scalar(select(func.count()).select_from(Item)), look()


@program
def a_missing_row(s, look):
    return s.get(User, 4711), s.get_one(User, 4711)


@program
def an_explicit_begin(s, look):
    s.commit()
    with s.begin():
        s.add(User(id=10, name="new"))
        seen = names(s)
    return seen, look()


@program
def close_lets_go(s, look):
    one = s.get(User, 1)
    one.balance = 4
    s.flush()
    s.close()
    return one in s, s.get(User, 1).balance, look()


@program
def identity(s, look):
    return s.get(User, 1) is s.get(User, 1), s.scalars(select(User).where(User.id == 1)).one() is s.get(User, 1)


@program
def in_transaction_after_a_write(s, look):
    s.add(User(id=10, name="n"))
    s.flush()
    return s.in_transaction(), s.in_nested_transaction(), s.is_active


# ---------------------------------------------------------------------------------------- two worlds


class World:
    """One database, the same rows at the start of every run, and a connection from outside."""

    def __init__(self, face: Any, driver: str) -> None:
        self.face = face
        if self.face.is_async:
            name = {"asyncpg": "postgresql+psycopg", "psycopg_async": "postgresql+psycopg", "aiosqlite": "sqlite"}[driver]
            url = face.db.engine.url.set(drivername=name)
            self.outside = sa.create_engine(url)
        else:
            self.outside = sa.create_engine(face.db.engine.url)

    def reset(self) -> None:
        with self.outside.begin() as connection:
            for table in ("items", "orders", "users"):
                connection.execute(text(f"DELETE FROM {table}"))
            users = [{"id": n, "name": name, "balance": 10 * n} for n, name in enumerate(("ada", "bob", "cyd"), 1)]
            connection.execute(insert(User), users)
            connection.execute(insert(Order), [{"id": 1, "user_id": 1, "note": "x"}, {"id": 2, "user_id": 2, "note": "y"}])
            connection.execute(insert(Item), [{"id": n, "order_id": 1, "name": f"i{n}", "quantity": n} for n in (1, 2)])

    def look(self) -> list[tuple[Any, ...]]:
        """The rows as another connection sees them, and which of them it finds locked."""
        return [*self.rows(), self.locks()]

    def locks(self) -> Any:
        """On SQLite it is one lock for all, which a unit takes sooner on purpose: with its first write, in place of half-way."""
        if self.face.dialect == "sqlite":
            return None
        with Stranger(self.outside.url) as stranger:
            return {table: stranger.locked(table) for table in ("users", "orders", "items")}

    def rows(self) -> list[tuple[Any, ...]]:
        with self.outside.connect() as connection:
            people = connection.execute(select(User.id, User.name, User.balance).order_by(User.id)).all()
            count = connection.scalar(select(func.count()).select_from(Item))
        return [*map(tuple, people), (count,)]

    def run(self, body: Program, *, in_unit: bool) -> tuple[Any, ...]:
        self.reset()
        try:
            answer: Any = self._unit(body) if in_unit else self._classic(body)
        except Exception as error:
            answer = type(error).__name__
        return answer, self.rows(), self.locks()

    def _unit(self, body: Program) -> Any:
        if not self.face.is_async:
            with self.face.db.unit() as session:
                return body(session, self.look)

        async def case() -> Any:
            async with self.face.db.unit() as session:
                return await session.run_sync(body, self.look)

        return self.face.run(case())

    def _classic(self, body: Program) -> Any:
        if not self.face.is_async:
            engine = self.face.db.engine
            if engine.dialect.name == "mysql":
                engine = engine.execution_options(isolation_level="READ COMMITTED")
            with Session(engine, expire_on_commit=False) as session:
                answer = body(session, self.look)
                session.commit()
                return answer

        async def case() -> Any:
            async with AsyncSession(self.face.db.engine, expire_on_commit=False) as session:
                answer = await session.run_sync(body, self.look)
                await session.commit()
                return answer

        return self.face.run(case())


@pytest.fixture
def world(make_face, driver) -> Iterator[World]:
    options = {"isolation": "READ COMMITTED"} if driver == "pymysql" else {}
    found = World(make_face(**options), driver)
    yield found
    found.outside.dispose()


@pytest.fixture
def elsewhere(url, watch, driver) -> Iterator[World]:
    """The same on an engine that the application has made itself."""
    options = {"isolation": "READ COMMITTED"} if driver == "pymysql" else {}
    engine = create_async_engine(url) if is_async(driver) else sa.create_engine(url)
    face = watch((tenure.AsyncDatabase if is_async(driver) else tenure.Database)(engine, **options), driver)
    found = World(face, driver)
    yield found
    found.outside.dispose()
    face.run(settle(engine.dispose()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_written_by_hand(world, name) -> None:
    """R33: a program gives the same answers, errors and rows on SQLAlchemy's classic rule and in a unit."""
    classic = world.run(PROGRAMS[name], in_unit=False)
    unit = world.run(PROGRAMS[name], in_unit=True)

    assert unit == classic
    assert world.face.out() == 0


def test_the_comparison_can_fail(world) -> None:
    """R33: a program whose meaning hangs on the transaction that a read leaves open is told apart."""

    def in_transaction(session: Session, look: Any) -> bool:
        names(session)
        return session.in_transaction()

    assert world.run(in_transaction, in_unit=False) != world.run(in_transaction, in_unit=True)


# ------------------------------------------------------------------------------------------- generated

USERS = st.integers(1, 4)
NAMES = st.sampled_from(["ada", "bob", "dan", "eve", "fay"])
STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(4, 6), NAMES),
    st.tuples(st.just("rename"), USERS, NAMES),
    st.tuples(st.just("delete"), st.integers(3, 5)),
    st.tuples(st.just("core"), USERS, st.integers(0, 9)),
    st.tuples(st.just("raw"), USERS, st.integers(0, 9)),
    st.tuples(
        st.sampled_from(
            ["flush", "commit", "rollback", "names", "look", "expire", "lock", "stream", "raw read", "begin", "release", "undo"]
        )
    ),
    st.tuples(st.just("get"), USERS),
    st.tuples(st.just("refresh"), USERS),
)


def take(step: tuple[Any, ...], s: Session, look: Callable[[], Any], savepoints: list[Any]) -> Any:
    match step:
        case ("add", key, name):
            s.add(User(id=key, name=name))
        case ("rename", key, name):
            if one := s.get(User, key):
                one.name = name
        case ("delete", key):
            if one := s.get(User, key):
                s.delete(one)
        case ("core", key, value):
            s.execute(update(User).where(User.id == key).values(balance=value), execution_options={"synchronize_session": False})
        case ("raw", key, value):
            s.execute(text("UPDATE users SET balance = :value WHERE id = :key"), {"key": key, "value": value})
        case ("get", key):
            return getattr(s.get(User, key), "name", None)
        case ("refresh", key):
            if one := s.get(User, key):
                s.refresh(one)
                return one.balance
        case ("names",):
            return names(s)
        case ("raw read",):
            return s.execute(text("SELECT name FROM users ORDER BY id")).scalars().all()
        case ("stream",):
            return s.scalars(select(User.name).order_by(User.id).execution_options(yield_per=1)).all()
        case ("lock",):
            return s.scalars(select(User.balance).order_by(User.id).with_for_update()).all()
        case ("look",):
            return look()
        case ("begin",):
            savepoints.append(s.begin_nested())
        case ("release" | "undo" as how,):
            if savepoints:
                last = savepoints.pop()
                return last.commit() if how == "release" else last.rollback()
        case (plain,):
            if plain in ("commit", "rollback"):
                savepoints.clear()
            return {"flush": s.flush, "commit": s.commit, "rollback": s.rollback, "expire": s.expire_all}[plain]()
    return None


def interpreter(steps: list[tuple[Any, ...]]) -> Program:
    def run(s: Session, look: Callable[[], Any]) -> list[Any]:
        trace: list[Any] = []
        savepoints: list[Any] = []
        for step in steps:
            try:
                trace.append(take(step, s, look, savepoints))
            except Exception as error:
                trace.append(type(error).__name__)
                savepoints.clear()
                s.rollback()
        return trace

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """SQLAlchemy warns of odd programs, as of a row that was deleted meanwhile; both worlds do."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)
        yield


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(steps=st.lists(STEP, min_size=2, max_size=10))
def test_a_program_made_at_random(world, steps) -> None:
    """R33: any sequence of operations gives the same trace, errors included, and the same rows in both worlds."""
    with quiet():
        classic = world.run(interpreter(steps), in_unit=False)
        unit = world.run(interpreter(steps), in_unit=True)

    assert unit == classic


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(steps=st.lists(STEP, min_size=2, max_size=10))
def test_a_program_made_at_random_on_an_engine_made_elsewhere(elsewhere, steps) -> None:
    """R33: the promise holds on an engine that tenure has not made, whose settings are the application's."""
    with quiet():
        classic = elsewhere.run(interpreter(steps), in_unit=False)
        unit = elsewhere.run(interpreter(steps), in_unit=True)

    assert unit == classic


LOCKS = {
    "a lock": lambda s: s.scalars(select(User).where(User.id == 1).with_for_update()).one(),
    "a lock in a subquery": lambda s: s.execute(
        select(User.name).where(User.id.in_(select(Order.user_id).where(Order.id == 2).with_for_update(of=Order)))
    ).all(),
    "a lock in raw SQL": lambda s: s.execute(text("SELECT name FROM users WHERE id = 2 FOR UPDATE")).all(),
    "a lock in a query": lambda s: s.query(User).filter(User.id == 3).with_for_update().all(),
    "a refresh with a lock": lambda s: s.refresh(s.get(User, 2), with_for_update=True),
    "a get with a lock": lambda s: s.get(User, 3, with_for_update=True),
    "a stream with a lock": lambda s: s.scalars(select(User.id).with_for_update().execution_options(yield_per=1)).all(),
    "a write": lambda s: s.execute(update(User).where(User.id == 2).values(balance=0)),
    "a flush": lambda s: (setattr(s.get(User, 1), "balance", 0), s.flush()),
    "a reference": lambda s: (s.add(Order(id=9, user_id=3)), s.flush()),
    "a read": lambda s: s.get(User, 1),
}


@pytest.mark.drivers("psycopg", "pymysql", "asyncpg", "psycopg_async")
@pytest.mark.parametrize("where", ["world", "elsewhere"])
@pytest.mark.parametrize("name", LOCKS)
def test_locks_seen_from_outside(request, driver, where, name) -> None:
    """R33: what a program locks is locked for all others until its commit, as on SQLAlchemy's classic rule, and no longer."""
    world = request.getfixturevalue(where)

    def body(session: Session, look: Callable[[], Any]) -> Any:
        names(session)
        LOCKS[name](session)
        names(session)
        held = world.locks()
        session.commit()
        return held, world.locks()

    classic = world.run(body, in_unit=False)
    unit = world.run(body, in_unit=True)

    (held, after), *_ = unit
    assert unit == classic
    assert any(held.values()) is (name != "a read")
    assert not any(after.values())
