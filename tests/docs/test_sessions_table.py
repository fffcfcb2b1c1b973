"""Each row of the table in docs/reference/sessions.md, tried out on a real session of each face."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import delete, event, func, insert, literal, select, text, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, joinedload, object_session, selectinload, subqueryload

from tenure.exceptions import BadOption, NotOwner

from support.models import Item, Order, User

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sessions.md"
ROW = re.compile(r"^\| (.+?) \| (as documented|differs|refused)\b.* \|$", re.MULTILINE)

Probe = Callable[[Any, Any], None]
PROBES: dict[str, Probe] = {}


def row(name: str) -> Callable[[Probe], Probe]:
    """The function tries out the row whose first column is *name*."""

    def note(probe: Probe) -> Probe:
        PROBES[name] = probe
        return probe

    return note


def sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"


def stored(session: Session) -> list[str]:
    """The names that another connection sees."""
    with session.get_bind().connect() as other:
        return list(other.execute(select(User.name).order_by(User.id)).scalars())


# ------------------------------------------------------------------------------------------ reading


@row("`execute(select(…))`, `scalars()`, `scalar()`")
def _(session, out):
    result = session.execute(select(User).order_by(User.id))
    assert out() == 0
    assert [one.name for one in result.scalars()] == ["ada", "bob"]
    assert session.scalar(select(func.count()).select_from(User)) == 2
    assert out() == 0
    assert not session.in_transaction()


@row("`get()`, `get_one()`")
def _(session, out):
    ada = session.get(User, 1)
    assert session.get_one(User, 1) is ada
    assert session.get(User, 4711) is None
    assert out() == 0


@row("`refresh()`")
def _(session, out):
    ada = session.get(User, 1)
    session.refresh(ada, ["balance"])
    assert out() == 0
    session.refresh(ada, with_for_update=True)
    assert out() == 1


@row("lazy loads, loads of expired and deferred attributes")
def _(session, out):
    ada = session.get(User, 1)
    assert [order.note for order in ada.orders] == ["first"]
    session.expire(ada)
    assert ada.name == "ada"
    assert out() == 0


@row("`joinedload()`, `selectinload()`, `subqueryload()`")
def _(session, out):
    for how in (joinedload, selectinload, subqueryload):
        session.expunge_all()
        users = session.scalars(select(User).options(how(User.orders).selectinload(Order.items))).unique().all()
        assert [len(one.orders) for one in users] == [1, 0]
        assert out() == 0


@row("`query()`")
def _(session, out):
    assert session.query(User).filter_by(name="ada").one().id == 1
    assert session.query(User).count() == 2
    assert session.query(User.name).order_by(User.id).first() == ("ada",)
    assert out() == 0
    session.query(User).filter_by(name="ada").update({"balance": 5})
    assert out() == 1


@row("`with_for_update()`")
def _(session, out):
    session.scalars(select(User).with_for_update()).all()
    assert out() == 1


@row("`text()`, `from_statement()`")
def _(session, out):
    assert session.execute(text("SELECT 1")).scalar() == 1
    assert out() == (0 if sqlite(session) else 1)
    session.rollback()
    session.scalars(select(User).from_statement(text("SELECT * FROM users"))).all()
    assert out() == (0 if sqlite(session) else 1)
    session.rollback()
    session.execute(text("UPDATE users SET balance = 1"))
    assert out() == 1


@row("lambda statements")
def _(session, out):
    session.execute(sa.lambda_stmt(lambda: select(User.id))).all()
    assert out() == 1


@row("functions: `func.lower()` and the like")
def _(session, out):
    session.scalars(select(func.lower(User.name)).where(func.coalesce(User.balance, 0) == 0)).all()
    assert out() == 0


@row("functions that write, lock, or keep one value in a transaction; functions tenure does not know")
def _(session, out):
    session.scalar(select(func.changes() if sqlite(session) else func.now()))
    assert out() == 1


@row("`union()` and the other set operations of mapped classes")
def _(session, out):
    names = select(User.name).union(select(Order.note)).order_by("name")
    assert session.scalars(names).all() == ["ada", "bob", "first"]
    assert out() == 0


# ------------------------------------------------------------------------------------------ writing


@row("`add()`, `add_all()`, `delete()`, `expunge()`, `expire()`, `new`, `dirty`, `deleted`")
def _(session, out):
    eve = User(name="eve")
    session.add(eve)
    session.expunge(eve)
    session.add_all([eve])
    with session.no_autoflush:
        bob = session.get(User, 2)
        bob.balance = 1
        session.delete(bob)
    assert (eve in session.new, bob in session.deleted) == (True, True)
    assert out() == 0


@row("`flush()` and autoflush")
def _(session, out):
    session.flush()
    assert out() == 0
    session.add(User(name="eve"))
    assert "eve" in session.scalars(select(User.name)).all()
    assert out() == 1
    assert "eve" not in stored(session)


@row("`merge()`")
def _(session, out):
    session.merge(User(id=1, name="ada lovelace"))
    assert out() == 0
    session.flush()
    assert out() == 1


@row("`merge_all()`, `delete_all()`")
def _(session, out):
    if not hasattr(Session, "merge_all"):
        pytest.skip("this SQLAlchemy has no merge_all()")
    (ada,) = session.merge_all([User(id=1, name="ada lovelace")])
    assert out() == 0
    session.flush()
    session.rollback()
    session.delete_all([ada])
    assert out() == 0
    assert ada in session.deleted


@row("`execute()` of `insert()`, `update()`, `delete()`")
def _(session, out):
    for statement in (insert(User).values(name="eve"), update(User).values(balance=1), delete(Item)):
        session.execute(statement)
        assert out() == 1
    session.commit()
    assert out() == 0
    assert "eve" in stored(session)


@row("`bulk_save_objects()`, `bulk_insert_mappings()`, `bulk_update_mappings()`")
def _(session, out):
    session.bulk_save_objects([User(name="eve")])
    session.bulk_insert_mappings(User, [{"name": "fay", "balance": 0}])
    session.bulk_update_mappings(User, [{"id": 1, "balance": 7}])
    assert out() == 1
    session.commit()
    assert stored(session) == ["ada", "bob", "eve", "fay"]


# ---------------------------------------------------------------------------------- the transaction


@row("`begin()`, `with session.begin():`")
def _(session, out):
    session.scalars(select(User)).all()
    with session.begin():
        assert out() == 0
        session.scalars(select(User)).all()
        assert out() == 1
        session.add(User(name="eve"))
    assert out() == 0
    assert "eve" in stored(session)
    session.begin()
    with pytest.raises(InvalidRequestError, match="already begun"):
        session.begin()


@row("`begin_nested()`")
def _(session, out):
    session.add(User(name="eve"))
    savepoint = session.begin_nested()
    assert out() == 1
    session.add(User(name="fay"))
    session.flush()
    savepoint.rollback()
    session.commit()
    assert stored(session) == ["ada", "bob", "eve"]


@row("`commit()`")
def _(session, out):
    ada = session.get(User, 1)
    ada.balance = 3
    session.commit()
    assert out() == 0
    assert not sa.inspect(ada).expired_attributes
    session.add(User(name="eve"))
    session.commit()
    assert "eve" in stored(session)
    _in_joined_code(session, "commit")


@row("`rollback()`")
def _(session, out):
    ada = session.get(User, 1)
    eve = User(name="eve")
    session.add(eve)
    session.rollback()
    assert eve not in session
    assert sa.inspect(ada).expired
    assert out() == 0
    _in_joined_code(session, "rollback")


@row("`close()`, `reset()`")
def _(session, out):
    for end in (session.close, session.reset):
        ada = session.get(User, 1)
        session.add(User(name="eve"))
        session.flush()
        end()
        assert out() == 0
        assert ada not in session
        assert session.scalars(select(User.name).order_by(User.id)).all() == ["ada", "bob"]
    _in_joined_code(session, "close")
    _in_joined_code(session, "reset", "close")


@row("`invalidate()`")
def _(session, out):
    connection = session.connection()
    session.add(User(name="eve"))
    session.flush()
    session.invalidate()
    assert connection.closed
    assert out() == 0
    assert session.scalars(select(User.name).order_by(User.id)).all() == ["ada", "bob"]
    _in_joined_code(session, "invalidate")


def _in_joined_code(session: Any, operation: str, named: str | None = None) -> None:
    """In a unit that has joined, *operation* is refused."""
    unit = session.unit
    database = unit.database
    joined = database.unit_class(database, unit.options, None, unit, joins=True)
    token = database.current_place.set(lambda: joined)
    try:
        with pytest.raises(NotOwner, match=rf"^({named or operation}|{operation})\(\)"):
            getattr(session, operation)()
    finally:
        database.current_place.reset(token)


@row('`prepare()`, `session_options={"twophase": True}`')
def _(session, out):
    with pytest.raises(InvalidRequestError, match="twophase"):
        session.prepare()
    _option_refused(session, "twophase")


@row("`in_transaction()`, `get_transaction()`")
def _(session, out):
    session.scalars(select(User)).all()
    assert not session.in_transaction()
    assert session.get_transaction() is None
    session.add(User(name="eve"))
    session.flush()
    assert session.in_transaction()


# ----------------------------------------------------------------------------------- the connection


@row("`connection()`")
def _(session, out):
    connection = session.connection()
    assert out() == 1
    assert connection.in_transaction()
    connection.execute(update(User).values(balance=9))
    session.rollback()
    assert session.get(User, 1).balance == 0


@row('`connection(execution_options={"isolation_level": …})`')
def _(session, out):
    connection = session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
    assert connection.get_isolation_level() == "SERIALIZABLE"
    session.scalars(select(User)).all()
    assert out() == 1


@row("`get_bind()`")
def _(session, out):
    assert isinstance(session.get_bind(), sa.Engine)
    assert out() == 0


@row("`session.bind`")
def _(session, out):
    assert session.bind is session.get_bind()
    assert out() == 0


@row('`bind_arguments={"bind": …}`')
def _(session, out):
    is_async = session.get_bind().dialect.is_async
    other = create_async_engine("sqlite+aiosqlite://").sync_engine if is_async else sa.create_engine("sqlite://")
    assert session.execute(select(literal(1)), bind_arguments={"bind": other}).all() == [(1,)]
    session.scalars(select(User)).all()
    assert out() == 1
    session.rollback()
    assert out() == 0
    other.dispose()


@row("`execution_options`: `populate_existing`, `autoflush`, `compiled_cache`, `schema_translate_map`, your own")
def _(session, out):
    seen = []
    event.listen(session, "do_orm_execute", lambda state: seen.append(state.execution_options["mine"]))
    options = {"populate_existing": True, "autoflush": False, "mine": 1, "schema_translate_map": {"x": "y"}}
    assert len(session.scalars(select(User), execution_options=options).all()) == 2
    assert seen == [1]
    assert out() == 0


@row("`yield_per`, `stream_results`, `Query.yield_per()`, `AsyncSession.stream()`")
def _(session, out):
    for stream in (
        lambda: session.scalars(select(User).order_by(User.id).execution_options(yield_per=1)),
        lambda: session.scalars(select(User).order_by(User.id), execution_options={"stream_results": True}),
        lambda: iter(session.query(User).order_by(User.id).yield_per(1)),
    ):
        assert [one.name for one in stream()] == ["ada", "bob"]
        assert out() == 1
        session.commit()
        assert out() == 0


# ------------------------------------------------------------------------- the session and its objects


@row("`expire_on_commit`")
def _(session, out):
    ada = session.get(User, 1)
    session.commit()
    assert not sa.inspect(ada).expired
    session.expire_on_commit = True
    session.commit()
    session.get(User, 1)
    session.connection()
    session.commit()
    assert sa.inspect(ada).expired


@row("`session_options={…}`: `autoflush`, `info`, `query_cls`, `enable_baked_queries`")
def _(session, out):
    database = session.unit.database
    again = type(database)(database.engine, session_options={"autoflush": False, "info": {"tenant": 7}})
    assert again.session_options == {"expire_on_commit": False, "autoflush": False, "info": {"tenant": 7}}
    again.supply.close()


@row("`bind`, `binds`, `autobegin`, `close_resets_only`, `join_transaction_mode`")
def _(session, out):
    for name in ("bind", "binds", "autobegin", "close_resets_only", "join_transaction_mode"):
        _option_refused(session, name)


def _option_refused(session: Any, name: str) -> None:
    database = session.unit.database
    with pytest.raises(BadOption, match=name):
        type(database)(database.engine, session_options={name: None})


@row("`bind_mapper()`, `bind_table()`")
def _(session, out):
    for method, what in ((session.bind_mapper, User), (session.bind_table, User.__table__)):
        with pytest.raises(BadOption, match="one database"):
            method(what, session.get_bind())


@row("`run_sync()`")
def _(session, out):
    assert session.scalars(select(User)).first().orders  # the whole test runs inside of it on the asynchronous face


@row("`object_session()`, `inspect(one).session`")
def _(session, out):
    ada = session.get(User, 1)
    assert object_session(ada) is session
    assert sa.inspect(ada).session is session


@row("events `before_flush`, `after_flush`, `do_orm_execute`, `loaded_as_persistent`, `after_commit`")
def _(session, out):
    told: list[str] = []
    for name in ("before_flush", "after_flush", "do_orm_execute", "loaded_as_persistent", "after_commit"):
        event.listen(session, name, lambda *args, name=name: told.append(name))
    session.get(User, 1)
    session.add(User(name="eve"))
    session.commit()
    assert told == ["do_orm_execute", "loaded_as_persistent", "before_flush", "after_flush", "after_commit"]


@row("events `after_begin`, `after_transaction_create`, `after_transaction_end`")
def _(session, out):
    told: list[str] = []
    event.listen(session, "after_begin", lambda *args: told.append("begin"))
    session.scalars(select(User)).all()
    session.scalars(select(User)).all()
    assert told == ["begin", "begin"]


# ------------------------------------------------------------------------------------------- the test


@pytest.mark.dialects("sqlite", "postgresql")
@pytest.mark.parametrize("name", PROBES)
async def test_the_row_is_true(face, name):
    """R33: every feature of a Session does in a unit what the table in docs/reference/sessions.md says of it."""
    async with face.unit() as session:
        session.add_all([User(name="ada", orders=[Order(note="first", items=[Item(name="tea")])]), User(name="bob")])

    async with face.unit() as session:
        await session.run_sync(PROBES[name], face.out)
        await session.rollback()
    assert face.out() == 0


def test_the_table_has_these_rows():
    """R33: no row of the table in docs/reference/sessions.md is untried."""
    assert [found[1] for found in ROW.finditer(PAGE.read_text())] == list(PROBES)
