"""One way to provoke each error and warning of tenure, for the tests that look at what they say.

A provocation is written as a user would come by the message, and goes by its slug::

    @provokes("not-owner")
    async def _(face): ...

It raises the error, or leaves it to the log. Its face has a pool of one connection. Where it can, the statements of a provocation
hold `VALUE`, as a parameter and as a literal: no message may show it. A message that another test provokes is named in `ELSEWHERE`.
"""

import asyncio
import contextlib
import contextvars
import gc
import pickle
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, select, text

from tenure import Database
from tenure.engines import pooler
from tenure.exceptions import TenureError, UnitEnded
from tenure.jobs import outbox, sending
from tenure.jobs.once import once

from support.face import drive, settle
from support.models import Order, Pledge, User
from support.probe import outside

VALUE = "patient-0815"
LITERAL = text(f"SELECT id FROM users WHERE name = '{VALUE}'")

Provocation = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Provoked:
    """How a message is provoked, and on which faces and databases that can be done."""

    run: Provocation
    faces: tuple[str, ...]
    dialects: tuple[str, ...]
    names_no_line: bool
    """Raised by the very call that it is about, mostly at import: its traceback ends at the user's line."""

    def lines(self) -> range:
        """The lines of the provocation."""
        code = self.run.__code__
        return range(code.co_firstlineno, max(line for _, _, line in _positions(code) if line) + 1)


PROVOCATIONS: dict[str, Provoked] = {}

ELSEWHERE: dict[str, str] = {
    "database-locked": "tests/engines/test_sqlite.py::test_who_holds_the_lock_is_named",
    "overloaded": "tests/engines/test_admission.py::test_one_more_than_may_wait_is_refused_at_once",
    "pool-exhausted": "tests/engines/test_verdict.py::test_held_idle",
    "greenlets-blocked": "tests/green/test_greenlets.py::test_what_blocks_is_named_once",
    "wrong-loop": "tests/core/test_loops.py::test_trio_is_refused",
    "relay-failed": "tests/jobs/test_outbox.py::test_a_server_that_is_away",
    "replica-left-out": "tests/engines/test_routing.py::test_a_dead_replica_is_served_by_the_primary_and_comes_back",
}
"""Slug and test, as ``tests/engines/test_admission.py::test_name``, of what is provoked where it can be provoked best."""


def provokes(
    slug: str,
    *,
    faces: tuple[str, ...] = ("sync", "async"),
    dialects: tuple[str, ...] = ("sqlite", "postgresql"),
    names_no_line: bool = False,
) -> Callable[[Provocation], Provocation]:
    def note(run: Provocation) -> Provocation:
        assert slug not in PROVOCATIONS, slug
        PROVOCATIONS[slug] = Provoked(run, faces, dialects, names_no_line)
        return run

    return note


def _positions(code: Any) -> Any:
    yield from code.co_lines()
    for constant in code.co_consts:
        if hasattr(constant, "co_lines"):
            yield from _positions(constant)


async def provoke(provoked: Provoked, face: Any, records: list[Any]) -> tuple[BaseException | None, str]:
    """What the provocation raised, and its text: of tenure's error, of its note on another's, or of its line in the log."""
    try:
        await provoked.run(face)
    except TenureError as error:
        return error, str(error)
    except Exception as error:
        return error, getattr(error, "__notes__", [""])[-1]
    said = [record.getMessage() for record in records if record.name == "tenure" and record.levelname in ("WARNING", "ERROR")]
    assert len(said) == 1, said
    return None, said[0]


async def write(session: Any) -> None:
    """A row with the value, and a look at it."""
    session.add(User(name=VALUE))
    await session.flush()
    await session.execute(LITERAL)


# ------------------------------------------------------------------------------------- who may do what, and when


@provokes("second-connection")
async def _(face):
    async with face.unit() as session:
        await write(session)
        async with face.unit(propagation="new") as second:
            await write(second)


@provokes("blocked-loop", faces=("sync",))
async def _(face):
    async def handler():
        with face.db.unit() as session:
            session.execute(LITERAL)

    async with face.unit() as session:
        await write(session)
        contextvars.Context().run(asyncio.run, handler())


@provokes("no-unit")
async def _(face):
    face.session.add(User(name=VALUE))


@provokes("unexpected-unit")
async def _(face):
    async with face.unit(), face.unit(propagation="never"):
        pass


@provokes("join-refused")
async def _(face):
    async with face.unit() as session:
        await write(session)
        async with face.unit(hold="transaction"):
            pass


@provokes("unit-ended")
async def _(face):
    async with face.unit() as session:
        await write(session)
    await session.scalars(select(User).where(User.name == VALUE))


@provokes("foreign-context")
async def _(face):
    async def use():
        await session.scalars(select(User).where(User.name == VALUE))

    async with face.unit() as session:
        await write(session)
        await face.spawn(use, inherit=False)


@provokes("concurrent-use")
async def _(face):
    caught = []

    async def second():
        try:
            await session.execute(LITERAL)
        except TenureError as error:
            caught.append(error)

    def meanwhile(*_):
        if face.is_async:
            sa.util.await_only(asyncio.create_task(second()))
        else:
            thread = threading.Thread(target=contextvars.copy_context().run, args=(face.run, second()))
            thread.start()
            thread.join()

    async with face.unit() as session:
        event.listen(face.sync_engine, "before_cursor_execute", meanwhile)
        await session.scalar(select(User.id).where(User.name == VALUE))
        event.remove(face.sync_engine, "before_cursor_execute", meanwhile)
    raise caught[0]


@provokes("not-owner")
async def _(face):
    async with face.unit() as session:
        await write(session)
        async with face.unit():
            await session.commit()


@provokes("read-only-unit")
async def _(face):
    async with face.unit(readonly=True) as session:
        await session.execute(LITERAL)
        await session.execute(text(f"UPDATE users SET balance = 1 WHERE name = '{VALUE}'"))


@provokes("release-refused")
async def _(face):
    async with face.unit() as session:
        await write(session)
        released = face.current.release()
        if face.is_async:
            await released


@provokes("forked-unit")
async def _(face):
    from support.forked import Child

    async def use():
        try:
            await session.scalars(select(User).where(User.name == VALUE))
        except TenureError as error:
            return error

    async with face.unit() as session:
        await write(session)
        said = Child(face, use).result()
    raise said


# ------------------------------------------------------------------------------------- how it ends


@provokes("rollback-only")
async def _(face):
    async with face.unit() as session:
        await write(session)
        with contextlib.suppress(sa.exc.IntegrityError):
            await write(session)


@provokes("commit-unknown", dialects=("postgresql",))
async def _(face):
    backend = []

    def lost(connection):
        outside(face, f"SELECT pg_terminate_backend({backend[0]}, 5000)")

    async with face.unit() as session:
        await write(session)
        backend.append(await session.scalar(text("SELECT pg_backend_pid()")))
        event.listen(face.sync_engine, "commit", lost)


@provokes("hook-failed")
async def _(face):
    async def work(session):
        session.add(User(name=VALUE))
        await session.flush()

    async with face.unit() as session:
        await write(session)
        face.db.on_commit(face.decorated(work).target)


@provokes("close-failed")
async def _(face):
    def fail(*_):
        raise sa.exc.IntegrityError(f"INSERT INTO users VALUES ('{VALUE}')", {"name": VALUE}, Exception(VALUE))

    async with face.unit() as session:
        event.listen(getattr(session.raw, "sync_session", session.raw), "persistent_to_detached", fail)
        user = User(name=VALUE)
        session.add(user)


@provokes("leaked-unit")
async def _(face):
    kept = []

    async def leave_open():
        kept.append(face.unit())
        await write(await kept[0].__aenter__())

    await face.spawn(leave_open, inherit=False)
    async with face.unit() as session:
        await session.execute(LITERAL)
    kept.clear()
    gc.collect()


@provokes("database-draining")
async def _(face):
    await settle(face.db.drain(0.0))
    async with face.unit() as session:
        await session.execute(LITERAL)


@provokes("drained-unit")
async def _(face):
    ready, free = face.barrier(2), face.event()

    async def stuck():
        with contextlib.suppress(UnitEnded):
            async with face.unit() as session:
                await write(session)
                await ready.wait()
                await free.wait()

    async def end():
        await ready.wait()
        await settle(face.db.drain(0.0))
        free.set()

    await face.spawn(stuck, end)


@provokes("lost-work", faces=("sync",))
async def _(face):
    from tenure.web.blocking import BlockingBoundary, BlockingRequest

    begun = BlockingRequest(BlockingBoundary(face.db, commit="explicit"), "POST /users")
    try:
        await write(face.session)
        begun.settle(200)
    finally:
        begun.finish()
        begun.leave(begun.token)


@provokes("several-databases", faces=("sync",), dialects=("postgresql",))
async def _(face):
    from tenure.web.blocking import BlockingBoundary, BlockingRequest

    with contextlib.closing(Database(face.sync_engine.url, name="audit")) as audit:
        begun = [BlockingRequest(BlockingBoundary(db), "POST /users") for db in (audit, face.db)]
        try:
            await write(face.session)
            audit.session.add(Pledge(user_id=4711))
            begun[1].settle(200)
            begun[0].settle(200)
        finally:
            for one in reversed(begun):
                one.finish()
                one.leave(one.token)


@provokes("outcome-settled")
async def _(face):
    async with face.unit() as session:
        await write(session)
        await settle(face.db.settle(face.current, None))
        face.current.rollback_only(VALUE)


@provokes("early-enqueue")
async def _(face):
    async with face.unit() as session:
        await write(session)
        sending.noticed("task 'receipt'", "db.on_commit(receipt.delay, …)")


@provokes("held-idle")
async def _(face):
    face.db.notices.idle = 1e-6
    async with face.unit(name="chat") as session:
        await session.execute(sa.insert(User).values(name=VALUE))
        time.sleep(0.001)


@provokes("unit-too-old")
async def _(face):
    face.db.notices.age = 1e-6
    async with face.unit() as session:
        time.sleep(0.001)
        await session.execute(LITERAL)


@provokes("too-many-objects")
async def _(face):
    face.db.notices.objects = 1
    async with face.unit() as session:
        users = [User(name=VALUE), User(name="another")]
        session.add_all(users)
        await session.flush()


@provokes("detached")
async def _(face):
    async with face.unit() as session:
        await write(session)
        session.expunge_all()
        user = await session.scalar(select(User).where(User.name == VALUE))
    _ = user.orders


@provokes("reader-failed")
async def _(face):
    from support.probe import reading

    class Reader:
        def wants(self, kind):
            return True

        def __call__(self, event):
            raise ZeroDivisionError

    async def twice(session):
        await write(session)
        await write(session)

    with reading(Reader()), contextlib.suppress(sa.exc.IntegrityError):
        await face.decorated(twice)()


_SLOW = {
    "sqlite": f"SELECT '{VALUE}', max(i) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)",
    "postgresql": f"SELECT '{VALUE}', pg_sleep(5)",
}


@provokes("deadline-exceeded")
async def _(face):
    async with face.unit(timeout=0.05) as session:
        await session.execute(text(_SLOW[face.dialect]))


# ------------------------------------------------------------------------------------- once in the cluster


@provokes("job-still-runs")
async def _(face):
    async def wait_and_fire_again():
        await face.sleep(0.05)
        await settle(job())

    if face.is_async:

        async def report():
            await wait_and_fire_again()

    else:

        def report():
            drive(wait_and_fire_again())

    job = once(face.db, f"report {time.time_ns()}", every=0.05)(report)
    await settle(job())


@provokes("run-not-noted", faces=("sync",), dialects=("postgresql",))
async def _(face):
    @once(face.db, f"report {time.time_ns()}", every=60)
    def report():
        statement = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        outside(face, statement)

    report()


# ------------------------------------------------------------------------------------- the outbox


def _box(face, name):
    made = outbox.table(sa.MetaData(), name)
    return (outbox.AsyncOutbox if face.is_async else outbox.Outbox)(face.db, made)


@provokes("outbox-missing")
async def _(face):
    async with face.unit():
        _box(face, "no_outbox").put("receipt", VALUE)


async def _filled(face, messages):
    """An outbox with a table of its own, and messages in it."""
    box = _box(face, f"outbox_{time.time_ns()}")
    async with face.unit() as session:
        await session.run_sync(lambda session: box.table.create(session.connection()))
        for _ in range(messages):
            box.put("receipt", VALUE)
    return box


@provokes("message-dead")
async def _(face):
    def send(name):
        raise LookupError

    box = await _filled(face, 1)
    await settle(box.relay({"receipt": send}, retry=1).step())


@provokes("message-failed")
async def _(face):
    def send(name):
        raise LookupError

    box = await _filled(face, 2)
    relay = box.relay({"receipt": send})
    await settle(relay.step())
    await settle(relay.step())


# ------------------------------------------------------------------------------------- how it is set up


@provokes("pooler-refused", dialects=("postgresql",))
async def _(face):
    pooler.watch(face.sync_engine, "pgbouncer")
    async with face.unit() as session:
        await session.execute(text(f"SET application_name = '{VALUE}'"))


@provokes("bad-option", names_no_line=True)
async def _(face):
    face.db.unit(isolation="READ COMITTED")


@provokes("wrong-driver", names_no_line=True)
async def _(face):
    other = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    if face.is_async:
        other = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg2"}
    type(face.db)(face.db.engine.url.set(drivername=other[face.dialect]))


@provokes("not-picklable", names_no_line=True)
async def _(face):
    other = type(face.db)(face.db.engine)
    try:
        pickle.dumps(other)
    finally:
        await settle(other.close())


@provokes("unsupported-callable")
async def _(face):
    @face.db.unit
    def rows(session):
        yield from session.scalars(select(Order))


@provokes("wrong-block")
async def _(face):
    if face.is_async:
        with face.db.unit() as session:
            session.execute(LITERAL)
    async with face.db.unit() as session:
        await session.execute(LITERAL)


@provokes("database-closed")
async def _(face):
    await face.close()
    async with face.unit() as session:
        await session.execute(LITERAL)
