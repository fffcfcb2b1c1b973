import asyncio
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Annotated, Any, Optional, Union
from unittest.mock import MagicMock, Mock

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tenure import AsyncDatabase, Database, callsite
from tenure.exceptions import BadOption, ForeignContext, JoinRefused, NoUnit, UnitEnded, UnsupportedCallable, WrongBlock

from support.face import Block, SessionFace, settle
from support.models import User
from support.probe import line, stored

one = pytest.mark.drivers("sqlite", "aiosqlite")
some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")
sync = pytest.mark.drivers("sqlite")


class OwnSession(Session):
    """A subclass, as applications make them."""


class NoSession:
    """A class of another library that happens to be called so."""


NoSession.__name__ = NoSession.__qualname__ = "Session"


# ------------------------------------------------------------------------ which parameter is filled in


def by_name(session, a):
    return session, a


def by_any(session: Any, a):
    return session, a


def by_annotation(a, db: Session):
    return db, a


def by_text(a, db: "Session"):
    return db, a


def by_qualified_text(a, db: "sa.orm.Session"):
    return db, a


def by_optional(a, db: Optional[Session] = None):  # noqa: UP045
    return db, a


def by_union(a, db: Session | None = None):
    return db, a


def by_old_union(a, db: Union[Session, None] = None):  # noqa: UP007
    return db, a


def by_annotated(a, db: Annotated[Session, "injected"]):
    return db, a


def by_annotated_union(a, db: Annotated[Session | None, "injected"] = None):
    return db, a


def by_subclass(a, db: OwnSession):
    return db, a


def keyword_only(a, *, session: Session):
    return session, a


def keyword_only_between(a, *more, session: Session, **options):
    return session, a


def positional_only(session: Session, a, /):
    return session, a


def first_of_two_names(other: "Session", session: Session, a=1):
    return session, a


def beside_another_librarys(a, http: NoSession = None, session: Session = None):
    return session, a


CALLS = {
    by_name: ([(1,), {}], [(), {"a": 1}]),
    by_any: ([(1,), {}],),
    by_annotation: ([(1,), {}], [(), {"a": 1}]),
    by_text: ([(1,), {}],),
    by_qualified_text: ([(1,), {}],),
    by_optional: ([(1,), {}], [(), {"a": 1}], [(), {"a": 1, "db": None}]),
    by_union: ([(1,), {}],),
    by_old_union: ([(1,), {}],),
    by_annotated: ([(1,), {}],),
    by_annotated_union: ([(1,), {}],),
    by_subclass: ([(1,), {}],),
    keyword_only: ([(1,), {}], [(), {"a": 1}]),
    keyword_only_between: ([(1, 2, 3), {"other": 4}], [(1,), {}]),
    positional_only: ([(1,), {}],),
    beside_another_librarys: ([(1,), {}], [(1, NoSession()), {}], [(), {"a": 1, "http": NoSession()}]),
}


@sync
@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_where_the_session_goes(face, function):
    """R2: the session goes to the parameter annotated for it, else to the one of that name, however the rest is passed."""
    decorated = face.db.unit(function)
    for args, kwargs in CALLS[function]:
        session, a = decorated(*args, **kwargs)
        assert isinstance(session, Session)
        assert a == 1

    hidden = [name for name in ("db", "session") if name in inspect.signature(decorated).parameters]
    assert hidden == []
    assert face.out() == 0


@sync
def test_a_name_for_type_checkers_only(face):
    """R2: an annotation that cannot be resolved when the program runs is judged by its text."""

    def fill(a, db: "Session | None"):
        return db, a

    def fill_later(a, db: "LaterSession"):  # noqa: F821 - on purpose
        return db, a

    def fill_imported(a, *, db: "orm.Session"):  # noqa: F821 - on purpose
        return db, a

    fill.__annotations__["db"] = "missing.Session | None"
    assert isinstance(face.db.unit(fill)(1)[0], Session)
    assert isinstance(face.db.unit(fill_imported)(1)[0], Session)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'db'"):
        face.db.unit(fill_later)(1)


@sync
def test_annotations_are_text(face):
    """R2: `from __future__ import annotations` changes nothing, for names of the module, of a closure, or unknown ones."""
    source = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated, Optional
from sqlalchemy.orm import Session as Known
if TYPE_CHECKING:
    from sqlalchemy.orm import Session

def make():
    class Local(Known): ...
    def closed_over(a, db: Local) -> None:
        return db, Local
    return closed_over

def known(a, db: Known) -> Unknown: return db
def later(a, db: Session) -> None: return db
def annotated(a, db: Annotated[Known, 1]) -> None: return db
def optional(a, db: Optional[Session] = None) -> None: return db
def scoped(a, db: scoped_session[Session] = 5) -> None: return db
"""
    names = {}
    exec(source, names)

    assert isinstance(face.db.unit(names["known"])(1), Session)
    assert isinstance(face.db.unit(names["later"])(1), Session)
    assert isinstance(face.db.unit(names["annotated"])(1), Session)
    assert isinstance(face.db.unit(names["optional"])(1), Session)
    assert isinstance(face.db.unit(names["make"]())(1)[0], Session)
    assert face.db.unit(names["scoped"])(1) == 5


@one
async def test_a_function_without_a_session(face):
    """R2: a function that takes no session runs in a unit all the same."""

    async def work(a, session: int = 3):
        face.session.raw.add(User(name="ada"))
        return a, session

    result = await face.decorated(work)(1)

    assert result == (1, 3)
    assert stored(face) == ["ada"]


# ------------------------------------------------------------------------------- what can be decorated


@sync
def test_methods_of_all_kinds(face):
    """R2: methods, static methods, class methods, also decorated from outside or bound already."""
    db = face.db

    class Handler:
        def __init__(self, name="handler"):
            self.name = name

        @db.unit
        def GET(self, session, a=0):  # noqa: N802 - as web.py has it
            return self.name, session, a

        @db.unit(readonly=True)
        @staticmethod
        def static(session, a=0):
            return "static", session, a

        @staticmethod
        @db.unit
        def inner_static(a=0, *, session):
            return "static", session, a

        @db.unit
        @classmethod
        def of_class(cls, a, session: Session):
            return cls.__name__, session, a

        def plain(self, session, a=0):
            return self.name, session, a

    handler = Handler()
    results = [
        handler.GET(a=2), handler.GET(2), Handler.GET(handler, 2), handler.static(2), Handler.static(a=2),
        handler.inner_static(2), handler.of_class(2), Handler.of_class(a=2), db.unit(handler.plain)(2),
    ]  # fmt: skip

    assert [(name, a) for name, _, a in results] == [
        ("handler", 2), ("handler", 2), ("handler", 2), ("static", 2), ("static", 2),
        ("static", 2), ("Handler", 2), ("Handler", 2), ("handler", 2),
    ]  # fmt: skip
    assert all(isinstance(session, Session) for _, session, _ in results)
    assert len({session for _, session, _ in results}) == len(results)


@sync
def test_objects_that_can_be_called(face):
    """R2: a functools.partial, a callable object and a lambda can carry a unit."""

    def work(session, a, b=0):
        return session, a, b

    class Job:
        def __call__(self, a, session: Session):
            return session, a, 0

    jobs = [
        face.db.unit(functools.partial(work, b=2)), face.db.unit(functools.partial(functools.partial(work), b=2)),
        face.db.unit(Job()), face.db.unit(lambda session, a: (session, a, 0)),
    ]  # fmt: skip
    results = [job(1) for job in jobs]

    assert [(a, b) for _, a, b in results] == [(1, 2), (1, 2), (1, 0), (1, 0)]
    assert all(isinstance(session, Session) for session, *_ in results)
    assert [job.__name__ for job in jobs] == ["work", "work", "Job", "<lambda>"]


@sync
def test_what_a_decorated_function_looks_like(face):
    """R2: name, module, documentation and signature are the function's own, without the session."""

    def rename(session: Session, user_id: int, name: str = "x", *, force: bool = False) -> str:
        """Rename a user."""
        return name

    decorated = face.db.unit(readonly=True)(rename)

    assert decorated.__name__ == "rename"
    assert decorated.__doc__ == "Rename a user."
    assert decorated.__module__ == __name__
    assert decorated.__wrapped__ is rename
    assert str(inspect.signature(decorated)) == "(user_id: int, name: str = 'x', *, force: bool = False) -> str"
    assert set(inspect.get_annotations(decorated)) == {"user_id", "name", "force", "return"}


@pytest.mark.drivers("aiosqlite")
async def test_what_a_decorated_coroutine_function_looks_like(face):
    """R2: a coroutine function stays one, for asyncio and for frameworks that ask."""

    class Job:
        async def __call__(self, a, session: AsyncSession):
            return session, a

    async def work(a, *, db: "AsyncSession | None" = None):
        return db, a

    decorated, job, partial = face.db.unit(work), face.db.unit(Job()), face.db.unit(functools.partial(work, 1))

    assert inspect.iscoroutinefunction(decorated)
    assert inspect.iscoroutinefunction(job)
    assert str(inspect.signature(decorated)) == "(a)"
    assert [type((await call)[0]) for call in (decorated(1), job(1), partial())] == [AsyncSession] * 3


# ---------------------------------------------------------------------------- what cannot be decorated


def rows(session):
    yield 1


async def arows(session):
    yield 1


async def work(session):
    return 1


def plain(session):
    return 1


class Rows:
    def __call__(self, session):
        yield 1


def place(function):
    return f"test_decorator.py:{function.__code__.co_firstlineno}"


GENERATOR = "is a generator; its unit would end before the first row. Open the unit inside it:"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (rows, f"'rows' ({place(rows)}) {GENERATOR} with db.unit() as session."),
        (functools.partial(rows), f"'rows' ({place(rows)}) {GENERATOR} with db.unit() as session."),
        (Rows(), f"'Rows' ({place(Rows.__call__)}) {GENERATOR} with db.unit() as session."),
        (arows, f"'arows' ({place(arows)}) {GENERATOR} with db.unit() as session."),
        (staticmethod(rows), f"'rows' ({place(rows)}) {GENERATOR} with db.unit() as session."),
        (
            work,
            f"'work' ({place(work)}) is async def under a Database; its unit would end before the body runs.",
        ),
        (Rows, "is a class; decorate its methods."),
        (3, "3 cannot be called. Options go by keyword: db.unit(readonly=True)."),
        ("read", "'read' cannot be called."),
    ],
)
def test_what_cannot_carry_a_unit(function, says):
    """R3: generators, coroutine functions and what cannot be called are refused when they are decorated, with the remedy."""
    db = Database("sqlite://")
    for decorate in (db.unit, db.unit(readonly=True)):
        with pytest.raises(UnsupportedCallable) as caught:
            decorate(function)
        assert says in str(caught.value)
        assert str(caught.value).endswith("[unsupported-callable]")
    db.close()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            plain,
            f"'plain' ({place(plain)}) is a plain function under an AsyncDatabase; nobody could await its COMMIT. Make it async def.",
        ),
        (arows, f"'arows' ({place(arows)}) {GENERATOR} async with db.unit() as session."),
        (rows, f"'rows' ({place(rows)}) {GENERATOR} async with db.unit() as session."),
    ],
)
def test_what_cannot_carry_an_async_unit(function, says):
    """R3: plain functions and generators are refused by an AsyncDatabase when they are decorated, with the remedy."""
    db = AsyncDatabase("sqlite+aiosqlite://")
    with pytest.raises(UnsupportedCallable) as caught:
        db.unit(function)
    asyncio.run(db.close())

    assert says in str(caught.value)


def test_sessions_of_the_other_face():
    """R3: a parameter for the other face's session is refused when it is decorated."""
    db, adb = Database("sqlite://"), AsyncDatabase("sqlite+aiosqlite://")

    def takes_async(session: AsyncSession):
        pass

    async def takes_sync(session: "Session"):
        pass

    with pytest.raises(
        UnsupportedCallable, match=r"asks for AsyncSession, but this database gives Session. Annotate it as that."
    ):
        db.unit(takes_async)
    with pytest.raises(
        UnsupportedCallable, match=r"asks for Session, but this database gives AsyncSession. Annotate it as that."
    ):
        adb.unit(takes_sync)
    db.close()
    asyncio.run(adb.close())


@sync
def test_two_parameters_for_a_session(face):
    """R3: where two parameters could take the session the one of that name does; without one it is refused."""

    def copy(source: Session, target: Session):
        pass

    with pytest.raises(UnsupportedCallable) as caught:
        face.db.unit(copy)

    assert str(caught.value) == (
        f"'test_two_parameters_for_a_session.<locals>.copy' ({place(copy)}) has two parameters for a session, source and target."
        " Call the one to fill 'session'. [unsupported-callable]"
    ).replace("test_two_parameters_for_a_session.<locals>.", "")
    with Session() as other:
        assert face.db.unit(first_of_two_names)(other)[0] is not other


@sync
def test_a_coroutine_that_comes_out_of_a_plain_function(face):
    """R3: what only shows when it is called, a coroutine from a plain function, is refused then, and nothing is stored."""

    def hidden(session):
        session.add(User(name="ada"))
        return work(session)

    with pytest.raises(UnsupportedCallable, match="'hidden' returned a coroutine; its unit would end before that runs"):
        face.db.unit(hidden)()

    assert stored(face) == []


class Kept:
    """A decorator that is an object, as some libraries' are."""

    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __call__(self, *args):
        return self.__wrapped__(*args)


def again(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


@sync
@pytest.mark.parametrize(
    "decorator", [again, Kept, functools.lru_cache, functools.partial, lambda function: again(Kept(function))]
)
def test_the_line_of_a_function_with_other_decorators(face, decorator):
    """R50: a unit around a function that others have wrapped has the line of the function as it was written."""

    @face.db.unit
    @decorator
    def work(session):
        return session.unit

    written = line(-5)

    unit = work()

    assert callsite.words(unit.site) == written


@one
@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"d": 4}, "got an unexpected keyword argument 'd'"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
    ],
)
async def test_a_call_with_wrong_arguments(face, args, kwargs, says):
    """R2: the error for wrong arguments speaks of those that the caller gives, not of the session that tenure adds."""

    def add(session, a, b=2, *, c=3): ...

    async def add_later(session, a, b=2, *, c=3): ...

    add_later.__qualname__ = add.__qualname__ = "add"

    with pytest.raises(TypeError) as caught:
        await settle(face.db.unit(add_later if face.is_async else add)(*args, **kwargs))

    assert str(caught.value) == f"add(a, b=2, *, c=3): {says}"


@one
async def test_a_type_error_of_the_body(face):
    """R50: a TypeError that the function raises itself is left as it is."""

    async def add(session, a):
        len(a)

    with pytest.raises(TypeError, match=r"^object of type 'int' has no len\(\)$"):
        await face.decorated(add)(1)


@one
async def test_options_beside_a_function(face):
    """R50: db.unit(function, readonly=True) is refused with the way it is written."""
    with pytest.raises(BadOption, match=r"give the options first, as @db.unit\(readonly=True\)"):
        face.db.unit(plain, readonly=True)


@one
async def test_retry_on_a_block(face):
    """R39: a with-block cannot run again, so retry= on one is refused at its line."""
    with pytest.raises(UnsupportedCallable, match="is on a with-block, which cannot run again") as caught:
        opened = line(1)
        async with face.unit(retry=3):
            pass

    assert f"retry= at {opened} is on" in str(caught.value)
    with pytest.raises(NoUnit):
        face.current  # noqa: B018


@one
async def test_a_block_without_parentheses(face):
    """R1: `db.unit` is itself a block, as `db.unit()` is; each entry is a new unit, which commits."""
    seen = []
    for _ in range(2):
        async with Block(face.db.unit, is_async=face.is_async) as session:
            session.add(User(name="ada" if seen else "bob"))
            seen.append(face.current)

    assert seen[0] is not seen[1]
    assert seen[0].name == "test_a_block_without_parentheses"
    assert stored(face) == ["ada", "bob"]


WRONG = {
    "with": "__enter__",
    "async with": "__aenter__",
    "for": "__iter__",
    "async for": "__aiter__",
    "await": "__await__",
}


@one
@pytest.mark.parametrize("called", [True, False])
async def test_a_unit_opened_by_the_wrong_syntax(face, called):
    """R50: `with` in place of `async with`, and whatever else opens no unit, says what does at the user's line."""
    block = face.db.unit() if called else face.db.unit
    right = "an AsyncDatabase. Write `async with" if face.is_async else "a Database. Write `with"
    wrong = {way: name for way, name in WRONG.items() if way != ("async with" if face.is_async else "with")}

    assert len(wrong) == 4
    for way, name in wrong.items():
        with pytest.raises(WrongBlock) as caught:
            getattr(type(block), name)(block)
        assert str(caught.value) == (
            f"`{way}` at {line(-2)} opens no unit of 'main', which is {right} db.unit() as session:`. [wrong-block]"
        )
    assert face.db.current_place.here() is None


@one
@pytest.mark.parametrize("called", [True, False])
async def test_a_block_taken_for_its_session(face, called):
    """R50: who calls the session's methods on a unit that is not open is told how to get the session."""
    block = face.db.unit() if called else face.db.unit

    with pytest.raises(
        AttributeError, match=r"^'\w+' object has no attribute 'execute'\. Its session has it: .*with db\.unit\(\) as"
    ):
        block.execute  # noqa: B018
    with pytest.raises(AttributeError, match=r"^'\w+' object has no attribute 'exekute'$"):
        block.exekute  # noqa: B018


# ------------------------------------------------------------------------------ sessions passed by hand


@some
async def test_a_session_passed_by_hand(face, told):
    """R2: a caller that passes a session by hand joins that session's unit, by position or keyword."""

    async def add(session: SessionFace, name):
        session.add(User(name=name))
        return session.raw

    add = face.decorated(add)
    with pytest.raises(KeyError):
        async with face.unit() as session:
            given = [await add(session, "a"), await add(session=session, name="b"), await add("c")]
            raise KeyError

    assert given == [session.raw] * 3
    assert stored(face) == []
    assert told.outcomes() == ["rolled back"]


@some
async def test_a_session_passed_by_hand_from_an_outer_unit(face):
    """R2: what joins by hand joins the unit of the session, though another one is current."""

    async def add(session: SessionFace, name):
        session.add(User(name=name))
        return face.session.raw is session.raw

    add = face.decorated(add)
    async with face.unit() as outer:
        async with face.unit(propagation="new") as inner:
            assert await add(outer, "outer")
            assert face.session.raw is inner.raw
        with pytest.raises(KeyError):
            async with face.unit(propagation="nested"):
                await add(outer, "nested")
                await outer.flush()
                raise KeyError

    assert stored(face) == ["outer"]


@one
async def test_a_session_of_ones_own_passed_by_hand(face, told):
    """R2: with a session that tenure knows nothing of, a decorated function opens no unit: its life is the caller's business."""

    async def add(session, name, more=None):
        session.add(User(name=name))
        with pytest.raises(NoUnit):
            face.current  # noqa: B018
        return session

    add = face.db.unit(face.plain(add))
    if face.is_async:
        registry = async_scoped_session(async_sessionmaker(face.db.engine), scopefunc=lambda: 1)
        async with AsyncSession(face.db.engine) as session:
            assert (await add(session, "a")).raw is session
            assert (await add(session=registry, name="b")) is registry
        await registry.remove()
    else:
        registry = scoped_session(sessionmaker(face.db.engine))
        with Session(face.db.engine) as session:
            assert add(session, "a").raw is session
            assert add(session=registry, name="b") is registry
            assert add(registry, "c") is registry
        registry.remove()
    mock = MagicMock()
    given = add(session=mock, name="d")

    assert (await given if face.is_async else given) is mock
    assert told == []
    assert stored(face) == []


@sync
def test_a_stand_in_for_a_session(face):
    """R2: a Mock with the specification of Session counts as a session by position too, so functions can be unit-tested."""
    mock = Mock(spec=Session)

    assert face.db.unit(by_name)(mock, 1) == (mock, 1)


@one
async def test_a_session_of_another_database_passed_by_hand(make_face):
    """R12: a session of another database is used as it is given, and does not become this database's current one."""
    here, there = make_face(name="here"), make_face(name="there")

    async def look(session: SessionFace):
        with pytest.raises(NoUnit):
            here.current  # noqa: B018
        return session.raw

    async with there.unit() as session:
        assert await here.decorated(look)(session) is session.raw


@one
async def test_a_session_passed_by_hand_into_a_foreign_context(face):
    """R46: passing a session by hand does not carry it into a context that has no part in its unit."""

    async def look(session: SessionFace):
        raise AssertionError("must not run")

    look = face.decorated(look)
    async with face.unit() as session:

        async def bare():
            with pytest.raises(ForeignContext, match="'bare'"):
                await look(session)
            with pytest.raises(NoUnit):
                face.current  # noqa: B018

        await face.spawn(bare, inherit=False)


@one
async def test_an_ended_session_passed_by_hand(face):
    """R45: a session whose unit has ended is refused at the call."""

    async def look(session: SessionFace):
        raise AssertionError("must not run")

    async with face.unit(name="first") as session:
        pass
    with pytest.raises(UnitEnded, match="the session of 'first'") as caught:
        await face.decorated(look)(session)

    assert f"was used again at {line(-2)}" in str(caught.value)


@one
async def test_a_session_by_hand_for_a_unit_of_its_own(face):
    """R2: a function with propagation="new" would not use a session passed by hand, so that is refused."""

    async def look(session: SessionFace):
        raise AssertionError("must not run")

    async with face.unit(name="outer") as session:
        with pytest.raises(JoinRefused, match="was given the session of 'outer'"):
            await face.decorated(look, propagation="new")(session)


# ----------------------------------------------------------------------------------------- many at once


@pytest.mark.drivers("sqlite", "psycopg", "pymysql", "aiosqlite", "asyncpg")
async def test_twenty_workers_with_a_hundred_calls(make_face, driver):
    """R2: 20 workers call a decorated function 100 times, half of them in vain: no two share a session, 0 are out."""
    face = make_face(pool_size=5, max_overflow=0)
    seen, lock = [], threading.Lock()
    calls = 100 if driver == "sqlite" else 20

    async def visit(worker: int, turn: int, *, session: SessionFace):
        assert session.raw is face.session.raw
        assert not session.in_transaction()
        with lock:
            seen.append(session.raw)
        await session.scalar(sa.select(User.id))
        if turn % 2:
            raise KeyError(turn)

    visit = face.decorated(visit)

    async def work(worker):
        failed = 0
        for turn in range(calls):
            try:
                await visit(worker, turn)
            except KeyError:
                failed += 1
        return failed

    failed = await face.spawn(*[functools.partial(work, number) for number in range(20)])

    assert failed == [calls // 2] * 20
    assert len({id(session) for session in seen}) == 20 * calls
    assert face.out() == 0


@some
async def test_a_decorated_function_in_bare_workers(face):
    """R23: a worker that starts with a decorated function has a unit of its own, and nothing is current afterwards."""
    found = []

    async def job(session: SessionFace):
        session.add(User(name="ada"))
        found.append(face.current.name)

    async def look():
        await face.decorated(job)()
        with pytest.raises(NoUnit):
            face.current  # noqa: B018

    await face.spawn(look, inherit=False)

    assert found == ["job"]
    assert stored(face) == ["ada"]


@sync
def test_a_unit_in_a_thread(face):
    """R23: `threading.Thread(target=db.unit(fn))` is a job in a unit."""

    def rename_all(session):
        session.add(User(name="ada"))

    thread = threading.Thread(target=face.db.unit(rename_all))
    thread.start()
    thread.join()

    assert stored(face) == ["ada"]


@one
async def test_recursion(face):
    """R5: a decorated function that calls itself joins its own outermost unit."""
    sessions = set()

    async def down(session: SessionFace, depth):
        sessions.add(session.raw)
        if depth:
            await down(depth - 1)

    down: Callable[..., Any] = face.decorated(down)
    await down(20)

    assert len(sessions) == 1
