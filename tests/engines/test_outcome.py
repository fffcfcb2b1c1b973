"""R40: the answer to COMMIT was lost, and the server is asked."""

import time

import pytest
import sqlalchemy as sa

import tenure
from tenure.core.plan import Outcome
from tenure.engines import outcome
from tenure.exceptions import BadOption, CommitUnknown, JoinRefused

from support import servers
from support.face import SessionFace, face_of, settle
from support.models import User

POSTGRESQL = ("psycopg", "asyncpg", "psycopg_async")
postgresql = pytest.mark.drivers(*POSTGRESQL)


def _names():
    """What is stored, seen by somebody else."""
    engine = sa.create_engine(servers.server("postgresql").base, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.scalars(sa.text("SELECT name FROM users ORDER BY id")).all()


class Hooks:
    def __init__(self):
        self.ran = []

    def on(self, unit):
        unit.on_commit(self.ran.append, "commit")
        unit.on_rollback(self.ran.append, "rollback")


@postgresql
async def test_commit_never_arrived(make_face, proxy):
    """R40: given a proxy that cuts before COMMIT arrives, when a unit with verify_commit ends, then it raises with 0 rows."""
    face, hooks = make_face(through=proxy), Hooks()
    proxy.cut_before(b"COMMIT")

    with pytest.raises(sa.exc.DBAPIError) as caught:
        async with face.unit(verify_commit=True) as session:
            session.add(User(name="ada", balance=1))
            unit = face.current
            hooks.on(unit)

    assert _names() == []
    assert unit.outcome is Outcome.ROLLED_BACK
    assert hooks.ran == ["rollback"]
    assert "this COMMIT did not take place" in "".join(caught.value.__notes__)


@postgresql
async def test_the_answer_was_dropped(make_face, proxy):
    """R40: given a proxy that drops the answer to COMMIT, then the unit returns normally and its hooks run once."""
    face, hooks = make_face(through=proxy), Hooks()
    proxy.cut_after(b"COMMIT")

    async with face.unit(verify_commit=True) as session:
        ada = User(name="ada", balance=1)
        session.add(ada)
        unit = face.current
        hooks.on(unit)

    assert _names() == ["ada"]
    assert unit.outcome is Outcome.COMMITTED
    assert hooks.ran == ["commit"]
    assert (ada.id, ada.name) == (1, "ada")  # the objects are as after any commit
    assert face.out() == 0


@postgresql
async def test_without_it_the_outcome_is_unknown(make_face, proxy):
    """R40: without verify_commit the same is CommitUnknown, and no hook runs."""
    face, hooks = make_face(through=proxy), Hooks()
    proxy.cut_after(b"COMMIT")

    with pytest.raises(CommitUnknown) as caught:
        async with face.unit() as session:
            session.add(User(name="ada", balance=1))
            hooks.on(face.current)

    assert hooks.ran == []
    assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)


@postgresql
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_with_retry_it_is_done_exactly_once(make_face, proxy, cut):
    """R40: retry needs a known rollback: wherever the connection breaks, the row is there exactly once."""
    face, runs = make_face(through=proxy), []

    async def pay(session: SessionFace) -> str:
        runs.append(1)
        session.add(User(name="ada", balance=1))
        return "paid"

    getattr(proxy, f"cut_{cut}")(b"COMMIT")
    result = await face.decorated(pay, verify_commit=True, retry=tenure.Retry(attempts=3, first=0.0))()

    assert result == "paid"
    assert _names() == ["ada"]
    assert len(runs) == (2 if cut == "before" else 1)


@postgresql
async def test_retry_does_not_follow_an_unknown_outcome(make_face, proxy):
    """R40: without verify_commit retry= does not run the function again."""
    face, runs = make_face(through=proxy), []

    async def pay(session: SessionFace) -> None:
        runs.append(1)
        session.add(User(name="ada", balance=1))

    proxy.cut_before(b"COMMIT")
    with pytest.raises(CommitUnknown):
        await face.decorated(pay, retry=tenure.Retry(attempts=3, first=0.0))()

    assert len(runs) == 1


@postgresql
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_what_only_reads_leaves_no_doubt(make_face, proxy, cut):
    """R40: a read-only unit has nothing to store, so of its lost COMMIT the caller sees the driver's error, and not CommitUnknown."""
    face, hooks = make_face(through=proxy), Hooks()
    getattr(proxy, f"cut_{cut}")(b"COMMIT")

    with pytest.raises(sa.exc.DBAPIError):
        async with face.unit(readonly=True) as session:
            unit = face.current
            hooks.on(unit)
            await session.scalar(sa.select(sa.func.pg_backend_pid()))  # no plain read: it begins a transaction

    assert unit.outcome is Outcome.ROLLED_BACK
    assert hooks.ran == ["rollback"]
    assert face.out() == 0


@postgresql
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_nobody_answers(make_face, proxy, cut, monkeypatch):
    """R40: a server that cannot be reached within the limit leaves the outcome unknown, and that is said."""
    monkeypatch.setattr(outcome, "LIMIT", 0.3)
    face, hooks = make_face(through=proxy), Hooks()
    getattr(proxy, f"cut_{cut}")(b"COMMIT", down=True)
    begun = time.monotonic()

    with pytest.raises(CommitUnknown) as caught:
        async with face.unit(verify_commit=True) as session:
            session.add(User(name="ada", balance=1))
            unit = face.current
            hooks.on(unit)

    assert 0.25 < time.monotonic() - begun < 3
    assert "did not answer" in "".join(caught.value.__notes__)
    assert unit.outcome is Outcome.UNKNOWN
    assert hooks.ran == []


@postgresql
async def test_a_route_that_stands_still(make_face, proxy, monkeypatch):
    """R40: the limit holds as well where connecting gets no answer at all; libpq's is 2 s at least."""
    monkeypatch.setattr(outcome, "LIMIT", 0.3)
    face = make_face(through=proxy)
    real = outcome.Witness.ask

    def ask(witness, lease):
        proxy.freeze()
        try:
            return real(witness, lease)
        finally:
            proxy.thaw()

    monkeypatch.setattr(outcome.Witness, "ask", ask)
    proxy.cut_after(b"COMMIT")
    begun = time.monotonic()

    with pytest.raises(CommitUnknown):
        async with face.unit(verify_commit=True) as session:
            session.add(User(name="ada", balance=1))

    assert time.monotonic() - begun < 5
    await face.close()
    assert not face.sync_engine.dialect.dispatch.do_connect


@postgresql
async def test_a_server_that_comes_back(make_face, proxy):
    """R40: the question is asked again until the server is there, within the limit."""
    import threading

    face = make_face(through=proxy)
    proxy.cut_after(b"COMMIT", down=True)
    timer = threading.Timer(0.2, proxy.up)
    timer.start()

    async with face.unit(verify_commit=True) as session:
        session.add(User(name="ada", balance=1))
    timer.join()

    assert _names() == ["ada"]


@postgresql
async def test_a_full_pool_is_no_deadlock(make_face, proxy, monkeypatch):
    """R40: the question does not wait for a connection that others, or this unit itself, hold."""
    monkeypatch.setattr(outcome, "LIMIT", 2.0)
    face = make_face(through=proxy, pool_size=1, max_overflow=0, pool_timeout=0.5)
    real = outcome.Witness.ask

    def ask(witness, lease):
        held = face.pool.connect()  # somebody was faster
        try:
            return real(witness, lease)
        finally:
            held.close()

    monkeypatch.setattr(outcome.Witness, "ask", ask)
    proxy.cut_after(b"COMMIT")

    async with face.unit(verify_commit=True) as session:
        session.add(User(name="ada", balance=1))

    assert _names() == ["ada"]
    async with face.unit() as session:
        assert await session.scalar(sa.select(sa.func.count(User.id))) == 1


@postgresql
async def test_a_checkpoint_whose_answer_was_dropped(make_face, proxy):
    """R40: a checkpoint that took place is one: its hooks run, objects stay, and the unit goes on."""
    face, hooks = make_face(through=proxy), Hooks()
    proxy.cut_after(b"COMMIT")

    async with face.unit(verify_commit=True) as session:
        ada = User(name="ada", balance=1)
        session.add(ada)
        unit = face.current
        hooks.on(unit)
        await session.commit()
        assert hooks.ran == ["commit"]
        ada.balance = 2
        session.add(User(name="bob", balance=1))

    assert unit.outcome is Outcome.COMMITTED
    assert hooks.ran == ["commit"]
    assert _names() == ["ada", "bob"]
    async with face.unit() as session:
        assert await session.scalar(sa.select(User.balance).where(User.name == "ada")) == 2


@postgresql
async def test_a_checkpoint_that_never_arrived(make_face, proxy):
    """R40: a checkpoint that did not take place raises the database's error, and the unit is rolled back."""
    face, hooks = make_face(through=proxy), Hooks()
    proxy.cut_before(b"COMMIT")

    with pytest.raises(sa.exc.DBAPIError):
        async with face.unit(verify_commit=True) as session:
            session.add(User(name="ada", balance=1))
            unit = face.current
            hooks.on(unit)
            await session.commit()

    assert unit.outcome is Outcome.ROLLED_BACK
    assert hooks.ran == ["rollback"]
    assert _names() == []


@postgresql
async def test_a_checkpoint_of_which_nothing_is_known(make_face, proxy, monkeypatch):
    """R40: CommitUnknown at the checkpoint, and the unit's outcome is unknown."""
    monkeypatch.setattr(outcome, "LIMIT", 0.1)
    face, hooks = make_face(through=proxy), Hooks()
    proxy.cut_after(b"COMMIT", down=True)

    with pytest.raises(CommitUnknown):
        async with face.unit(verify_commit=True) as session:
            session.add(User(name="ada", balance=1))
            unit = face.current
            hooks.on(unit)
            await session.commit()

    assert unit.outcome is Outcome.UNKNOWN
    assert hooks.ran == []


@postgresql
async def test_in_the_body_of_a_response(make_face, proxy):
    """R40: a unit that is settled first and read from afterwards, as a web request is, can be read from."""
    face = make_face(through=proxy)
    db = face.db
    unit = await settle(db.enter(db.unit_options({"verify_commit": True}), None))
    session = face_of(unit.session)
    session.add(User(name="ada", balance=1))
    proxy.cut_after(b"COMMIT")

    verdict = await settle(db.settle(unit, None))
    assert verdict.outcome is Outcome.COMMITTED
    assert await session.scalar(sa.select(User.name)) == "ada"
    await settle(db.leave(unit, None, None, verdict))

    assert unit.outcome is Outcome.COMMITTED
    assert face.out() == 0


@pytest.mark.drivers("asyncpg")
@pytest.mark.parametrize("where", ["at the end", "at a checkpoint"])
async def test_a_commit_that_timed_out_is_in_doubt(make_face, proxy, where):
    """R40: asyncpg's own time limit tells as little of a COMMIT as a broken connection does, and is no known rollback."""
    face = make_face(through=proxy, connect_args={"command_timeout": 0.2})
    sa.event.listen(face.sync_engine, "commit", lambda _connection: proxy.freeze())

    with pytest.raises(CommitUnknown) as caught:
        async with face.unit() as session:
            session.add(User(name="ada", balance=1))
            unit = face.current
            if where == "at a checkpoint":
                await session.commit()
    proxy.thaw()

    assert isinstance(caught.value.__cause__, TimeoutError)
    assert unit.outcome is Outcome.UNKNOWN


@postgresql
async def test_what_it_costs(make_face, proxy):
    """R40: one round trip for each COMMIT, none for a unit that only reads."""
    face = make_face(through=proxy)
    numbers = {}
    for verify in (False, True):
        for case in ("write", "read"):
            for _ in range(2):
                with proxy.count() as trips:
                    async with face.unit(verify_commit=verify) as session:
                        if case == "write":
                            await session.execute(sa.update(User).values(balance=1))
                        else:
                            await session.execute(sa.select(User.id))
            numbers[verify, case] = trips.number

    assert numbers[True, "write"] == numbers[False, "write"] + 1
    assert numbers[True, "read"] == numbers[False, "read"] == 1


@pytest.mark.drivers("sqlite", "aiosqlite", "pymysql", "asyncmy")
def test_refused_where_the_database_cannot_tell(face):
    """R40: verify_commit on a database that cannot tell is refused where it is asked for, not when it is needed."""
    with pytest.raises(BadOption, match=r"verify_commit=True: \w+.* cannot tell"):
        face.unit(verify_commit=True)
    with pytest.raises(BadOption, match="verify_commit='yes'"):
        face.unit(verify_commit="yes")


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_refused_on_an_old_server(face, monkeypatch):
    """R40: a server before PostgreSQL 13 is refused at the first write, and from then on at once."""
    unit = face.unit(verify_commit=True)
    monkeypatch.setattr(outcome, "_OLDEST", (99,))

    with pytest.raises(BadOption, match="cannot tell"):
        async with unit as session:
            await session.execute(sa.insert(User).values(name="ada", balance=1))
    with pytest.raises(BadOption, match="cannot tell"):
        face.unit(verify_commit=True)
    assert face.out() == 0
    assert _names() == []


@postgresql
async def test_a_unit_that_joins_cannot_ask_for_more(face):
    """R40: who joins has the outer unit's COMMIT."""
    async with face.unit():
        with pytest.raises(JoinRefused, match="verify_commit=True"):
            async with face.unit(verify_commit=True):
                pass
    async with face.unit(verify_commit=True), face.unit(verify_commit=True):
        pass
