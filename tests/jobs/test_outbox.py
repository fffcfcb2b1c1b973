import asyncio
import contextlib
import datetime as dt
import functools
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import celery
import dramatiq
import kombu
import pytest
import redis
import rq
import sqlalchemy as sa
from dramatiq.brokers.redis import RedisBroker
from sqlalchemy import select

import tenure
from tenure import Retry
from tenure.core.events import MessageDead, MessageFailed, RelayFailed
from tenure.exceptions import BadOption, NoUnit, OutboxMissing, ReadOnlyUnit, UnsupportedCallable
from tenure.jobs import outbox
from tenure.jobs.outbox import AsyncOutbox, Message, Numbers, Outbox

from support import brokers
from support.face import PATIENCE, settle
from support.models import User
from support.probe import outside

each = pytest.mark.drivers("sqlite", "aiosqlite", "psycopg", "asyncpg", "pymysql", "asyncmy")
some = pytest.mark.drivers("sqlite", "psycopg", "asyncpg", "pymysql")
servers = pytest.mark.drivers("psycopg", "asyncpg", "pymysql")  # that lock rows
alone = pytest.mark.drivers("sqlite")  # where the database plays no part


@pytest.fixture
def table():
    """The table of an outbox that no other test has."""
    return outbox.table(sa.MetaData(), f"outbox_{uuid.uuid4().hex[:12]}")


@pytest.fixture
def box(face, table):
    """An outbox on the face's database, whose table is there."""
    engine = sa.create_engine(_blocking(face.sync_engine.url, face.dialect), poolclass=sa.NullPool)
    table.metadata.create_all(engine)
    yield (AsyncOutbox if face.is_async else Outbox)(face.db, table)
    table.metadata.drop_all(engine)
    engine.dispose()


def _blocking(url, dialect):
    return url.set(drivername={"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}[dialect])


async def put(face, box, *numbers, topic="order"):
    """A message for each of the numbers, in one unit."""
    async with face.unit():
        for number in numbers:
            box.put(topic, number)


async def drained(relay):
    """Let the relay work until there is nothing more to send now."""
    while await settle(relay.step()):
        pass


# ------------------------------------------------------------------------------- put


@each
async def test_a_message_goes_with_its_unit(face, box):
    """R26: what a unit stores and what it sends are committed together, and neither of a unit or savepoint that is rolled back."""
    sent = []
    relay = box.relay(sent.append)
    async with face.unit() as session:
        session.raw.add(User(name="ada"))
        box.put("receipt", 1, to=["ada"], note="häßlich 🍵")
    with pytest.raises(ZeroDivisionError):
        async with face.unit() as session:
            session.raw.add(User(name="bob"))
            box.put("receipt", 2)
            await session.flush()
            raise ZeroDivisionError
    async with face.unit():
        with pytest.raises(ZeroDivisionError):
            async with face.unit(propagation="nested"):
                box.put("receipt", 3)
                raise ZeroDivisionError
        box.put("receipt", 4)

    await drained(relay)
    assert [(one.topic, one.args, one.kwargs, one.attempt) for one in sent] == [
        ("receipt", [1], {"to": ["ada"], "note": "häßlich 🍵"}, 1),
        ("receipt", [4], {}, 1),
    ]
    assert (outside(face, select(User.name)), face.out()) == (["ada"], 0)
    assert await settle(box.numbers()) == Numbers(0, 2, 0, 0.0)


@alone
async def test_what_cannot_be_put(face, box):
    """R26: a message without a unit, in a read-only one, or with what is not JSON, is refused at its line."""
    with pytest.raises(NoUnit):
        box.put("receipt", 1)
    with pytest.raises(ReadOnlyUnit):
        async with face.unit(readonly=True):
            box.put("receipt", 1)
    async with face.unit():
        for given in (dt.date(2026, 1, 1), float("nan"), object()):
            with pytest.raises(BadOption, match=r"at test_outbox\.py:\d+: its arguments cannot be stored as JSON"):
                box.put("receipt", given)
        for topic in ("", " ", None, "x" * 191):
            with pytest.raises(BadOption, match="give a topic"):
                box.put(topic)
    assert await settle(box.numbers()) == Numbers(0, 0, 0, 0.0)


@some
async def test_without_its_table(face, table):
    """R26: a unit that puts a message and a relay say which table is missing, and how to have it; then both work."""
    box = (AsyncOutbox if face.is_async else Outbox)(face.db, table)
    relay = box.relay(lambda _message: None)
    with pytest.raises(OutboxMissing, match=rf"'receipt' \(test_outbox\.py:\d+\) needs the table '{table.name}'.*create_all"):
        async with face.unit():
            box.put("receipt", 1)
    for start in (relay.step, relay.run):
        with pytest.raises(OutboxMissing, match=rf"a relay \(test_outbox\.py:\d+\) needs the table '{table.name}'"):
            await settle(start())
    engine = sa.create_engine(_blocking(face.sync_engine.url, face.dialect), poolclass=sa.NullPool)
    table.metadata.create_all(engine)
    await put(face, box, 1)
    assert await settle(relay.step()) == 1
    table.metadata.drop_all(engine)
    engine.dispose()
    assert face.out() == 0


# ------------------------------------------------------------------------------- send


@each
async def test_routes(face, box):
    """R26: a relay calls what its topic is mapped to, with the message's arguments, in the order in which they were put; others' wait."""
    got = []

    def receipt(number, *, to):
        got.append((number, to))

    for number in range(3):
        async with face.unit():
            box.put("receipt", number, to="ada")
            box.put("another's", number)
    await drained(box.relay({"receipt": receipt}, batch=2))
    assert got == [(number, "ada") for number in range(3)]
    assert (await settle(box.numbers()))[:3] == (3, 3, 0)


@some
async def test_a_message_that_fails(face, box, told):
    """R26: it is tried again, later and later, in no other's way, and then given up, told, and can be tried anew."""
    got, broken = [], True

    def send(number):
        got.append(number)
        if number == 1 and broken:
            raise LookupError("no such user")

    relay = box.relay({"order": send}, retry=Retry(2, first=0.0))
    await put(face, box, 0, 1, 2)
    await drained(relay)
    await drained(relay)
    assert Counter(got) == {0: 1, 1: 2, 2: 1}
    assert (await settle(box.numbers()))[:3] == (0, 2, 1)
    ((message, why),) = await settle(box.dead())
    assert (message.args, message.attempt, why) == ([1], 2, "LookupError: no such user")
    assert [(event.number, event.attempts, type(event.error)) for event in told.of(MessageDead)] == [(message.id, 2, LookupError)]
    broken = False
    assert [await settle(box.revive(message.id + 1000)), await settle(box.revive(message.id))] == [0, 1]
    await drained(relay)
    assert (await settle(box.numbers()), await settle(box.dead())) == (Numbers(0, 3, 0, 0.0), [])


@some
async def test_what_fails_is_told_once(face, box, told):
    """R26: a message that fails is told at its first attempt, with its line and the wait, and not again; nor are others of its topic that
    fail with it, until one of them has been sent.
    """
    broken = {"receipt", "other"}

    def send(message):
        if message.topic in broken:
            raise ConnectionError

    relay = box.relay(send, retry=Retry(9, first=0.0))
    for topic in ("receipt", "receipt", "order", "other"):
        await put(face, box, 1, topic=topic)
    for _ in range(3):
        await settle(relay.step())
    assert [(event.number, event.topic, event.attempts) for event in told.of(MessageFailed)] == [
        (1, "receipt", 9),
        (4, "other", 9),
    ]
    broken.discard("receipt")
    await drained(relay)
    broken.add("receipt")
    await put(face, box, 2, topic="receipt")
    await settle(relay.step())
    assert [event.number for event in told.of(MessageFailed)] == [1, 4, 5]


@alone
async def test_waits_grow(face, box):
    """R26: the second attempt is `first` seconds after the first, each wait is twice the one before, up to `longest`."""

    def send(_number):
        raise LookupError

    relay = box.relay({"order": send}, retry=Retry(9, first=100.0, longest=300.0))
    await put(face, box, 1)
    waits = []
    for _ in range(4):
        await settle(relay.step())
        waits += outside(face, f"SELECT due - ((julianday('now') - 2440587.5) * 86400.0) FROM {box.table.name}")
        outside(face, f"UPDATE {box.table.name} SET due = 0")
    assert [round(one, -1) for one in waits] == [100, 200, 300, 300]


@alone
async def test_a_broker_that_is_away(face, box):
    """R26: after three failures in a row the rest of a batch is left for later, and loses no attempt."""
    tried = []

    def send(number):
        tried.append(number)
        raise ConnectionError

    await put(face, box, *range(50))
    assert await settle(box.relay({"order": send}).step()) == 0
    assert tried == [0, 1, 2]
    assert sorted(outside(face, f"SELECT attempts FROM {box.table.name}")) == [0] * 47 + [1] * 3


@some
async def test_what_is_called_has_no_part_in_the_relays_unit(face, box):
    """R26: a unit that it opens is its own: one that is rolled back takes no message with it, and no unit is current."""
    current = []

    async def send(number):
        with pytest.raises(NoUnit):
            face.current  # noqa: B018
        async with face.unit() as session:
            session.raw.add(User(name=f"user {number}"))
            current.append(face.current.parent)
            if number == 1:
                raise LookupError

    await put(face, box, 0, 1, 2)
    await settle(box.relay({"order": face.plain(send)}).step())
    assert (current, sorted(outside(face, select(User.name)))) == ([None] * 3, ["user 0", "user 2"])
    assert (await settle(box.numbers()))[:3] == (1, 2, 0)


@some
async def test_sent_messages_are_swept(face, box):
    """R26: after `keep` seconds they are deleted, with 0 at once; pending and dead ones stay."""
    await put(face, box, 1)
    await drained(box.relay({"order": lambda _number: None}, keep=0))
    assert await settle(box.numbers()) == Numbers(0, 0, 0, 0.0)
    await put(face, box, 2, 3)
    await drained(box.relay({"order": lambda _number: None}, keep=60.0))
    outside(face, f"UPDATE {box.table.name} SET sent = sent - 61, created = created - 61")
    await put(face, box, 4)
    await settle(box.relay({"other": print}, keep=60.0).step())
    numbers = await settle(box.numbers())
    assert numbers[:3] == (1, 0, 0)
    assert 0 <= numbers.lag < 30


@some
async def test_the_lag(face, box):
    """R26: it is the age of the oldest message that waits, by the database's clock."""
    await put(face, box, 1, 2)
    outside(face, f"UPDATE {box.table.name} SET created = created - 100 WHERE arguments LIKE '%2%'")
    assert 100 <= (await settle(box.numbers())).lag < 130


@pytest.fixture
def queue():
    """A name that no other queue has, on RabbitMQ and on Redis; what was sent there is removed."""
    name = brokers.queue()
    brokers.found("Redis")
    brokers.found("RabbitMQ")
    yield name
    brokers.drop("RabbitMQ", name)
    with redis.Redis.from_url(brokers.address("Redis")) as client:
        for key in client.scan_iter(f"*{name}*"):
            client.delete(key)


def send_receipt(number, end):
    """A task that no worker runs."""


@alone
def test_to_celery_rq_and_dramatiq(face, box, queue):
    """R26: a relay sends to Celery on RabbitMQ and to RQ and Dramatiq on Redis by what their own users call."""
    app = celery.Celery(broker=brokers.address("RabbitMQ"), set_as_current=False)
    app.conf.task_default_queue = queue
    receipt = app.task(name="receipt")(send_receipt)
    connection = redis.Redis.from_url(brokers.address("Redis"))
    by_rq = rq.Queue(queue, connection=connection)
    broker = RedisBroker(client=connection, namespace=queue)
    broker.declare_queue(queue)
    mail = dramatiq.actor(print, broker=broker, queue_name=queue, actor_name="mail")

    with face.db.unit():
        for topic in ("celery", "rq", "dramatiq"):
            box.put(topic, 17, end="!")
    relay = box.relay({"celery": receipt.delay, "rq": functools.partial(by_rq.enqueue, "builtins.print"), "dramatiq": mail.send})
    assert relay.step() == 3

    with kombu.Connection(brokers.address("RabbitMQ")) as link, contextlib.closing(link.SimpleQueue(queue)) as waiting:
        message = waiting.get(timeout=PATIENCE)
        message.ack()
        assert message.payload[:2] == [[17], {"end": "!"}]
    (job,) = by_rq.jobs
    assert (job.func_name, job.args, job.kwargs) == ("builtins.print", (17,), {"end": "!"})
    by_rq.delete(delete_jobs=True)
    assert connection.llen(f"{queue}:{queue}") == 1
    broker.close()
    connection.close()
    app.close()


# ------------------------------------------------------------------------------- several, and the end


@servers
async def test_four_relays_at_once(face, box):
    """R26: each message is sent once, and by more than one of them; none waits for another's."""
    await put(face, box, *range(400))
    got, relays = [], []
    inside = face.barrier(4)

    async def relay(number):
        async def send(order):
            if number not in relays:
                relays.append(number)
                await inside.wait()  # each has a batch in hand
            got.append(order)

        await drained(box.relay({"order": face.plain(send)}, batch=10))

    await face.spawn(*[lambda number=number: relay(number) for number in range(4)])
    assert (sorted(got), sorted(relays)) == (list(range(400)), [0, 1, 2, 3])
    assert await settle(box.numbers()) == Numbers(0, 400, 0, 0.0)


@pytest.mark.drivers("sqlite", "aiosqlite")
async def test_one_relay_at_a_time_on_sqlite(face, box):
    """R26: another finds nothing to do while one works, and nobody who writes has to wait for it."""
    counts = []

    async def send(_number):
        counts.append(await settle(box.relay({"order": print}).step()))
        await put(face, box, 7, topic="later")

    await put(face, box, 1, 2)
    assert await settle(box.relay({"order": face.plain(send)}).step()) == 2
    assert (counts, (await settle(box.numbers()))[:3]) == ([0, 0], (2, 2, 0))


@servers
async def test_those_who_put_do_not_wait_for_a_relay(face, box):
    """R26: while a batch is being sent, units store messages, and others' are not locked."""
    await put(face, box, 1, 2)

    async def send(_number):
        async with face.unit(timeout=2):
            box.put("order", 3)

    relay = box.relay({"order": face.plain(send)}, batch=2)
    assert await settle(relay.step()) == 2
    assert (await settle(box.numbers()))[:3] == (2, 2, 0)


@some
async def test_stop(face, box):
    """R26: a relay that is stopped finishes the message that it sends, stores what was sent, and leaves the rest to the next."""
    got = []

    def send(number):
        got.append(number)
        if number == 3:
            relay.stop()

    relay = box.relay({"order": send})
    await put(face, box, *range(10))
    await settle(relay.run())
    assert (got, (await settle(box.numbers()))[:3]) == ([0, 1, 2, 3], (6, 4, 0))


@alone
async def test_an_interruption(face, box):
    """R26: Ctrl-C ends the relay; what was sent before is stored, what was being sent is not."""

    def send(number):
        if number == 2:
            raise KeyboardInterrupt

    await put(face, box, 0, 1, 2, 3)
    with pytest.raises(KeyboardInterrupt):
        box.relay({"order": send}).run()
    assert (box.numbers()[:3], face.out()) == ((2, 2, 0), 0)


@pytest.mark.drivers("asyncpg", "aiosqlite")
async def test_a_cancelled_relay(face, box):
    """R26: what was sent before the cancellation is stored, and no connection, lock or task is left."""
    inside = asyncio.Event()

    async def send(number):
        if number == 2:
            inside.set()
            await asyncio.sleep(PATIENCE)

    await put(face, box, 0, 1, 2, 3)
    task = asyncio.create_task(box.relay({"order": send}).run())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await box.numbers())[:3] == (2, 2, 0)
    await drained(box.relay({"order": lambda _number: None}))
    assert (await box.numbers())[:3] == (0, 4, 0)


@alone
async def test_a_drain_ends_it(face, box):
    """R31: a relay takes no batch after `drain()`, and `run` returns."""
    await put(face, box, 1)
    relay = box.relay({"order": lambda _number: face.db.units.__setattr__("draining", True)}, poll=0.01)
    thread = threading.Thread(target=relay.run)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_a_server_that_is_away(face, box, told):
    """R26: a relay whose connections are ended tells it, goes on, and sends what it had not stored once more."""
    got = []

    async def send(number):
        got.append(number)
        if len(got) == 1:
            outside(
                face,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state LIKE 'idle%'"
                " AND datname = current_database() AND backend_type = 'client backend'",
            )
        else:
            relay.stop()

    relay = box.relay({"order": face.plain(send)}, poll=0.01)
    await put(face, box, 1)
    await settle(relay.run())
    (event,) = told.of(RelayFailed)  # [relay-failed]
    assert (got, event.table, (await settle(box.numbers()))[:3]) == ([1, 1], box.table.name, (0, 1, 0))


# ------------------------------------------------------------------------------- processes

RELAY = """
import signal, sys, time
import sqlalchemy as sa
import tenure
from tenure.jobs import outbox

db = tenure.Database(sys.argv[1])
box = outbox.Outbox(db, outbox.table(sa.MetaData(), sys.argv[2]))
hangs_at = int(sys.argv[3])

def send(number):
    print(number, flush=True)
    if number == hangs_at:
        time.sleep(600)
    time.sleep(0.002)

relay = box.relay({"order": send}, batch=20, poll=0.02)
signal.signal(signal.SIGTERM, lambda *_: relay.stop())  # should it come before run() heeds it
print("begins", flush=True)
relay.run()
print("ended", flush=True)
db.close()
"""


def started(face, box, hangs_at=-1):
    """A relay in a process of its own, which prints what it sends; it is about to begin."""
    address = face.sync_engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", RELAY, address, box.table.name, str(hangs_at)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begins\n"
    return process


@pytest.mark.drivers("sqlite", "psycopg", "pymysql")
async def test_a_relay_that_is_killed(face, box):
    """R26: with SIGKILL in mid batch: every message is sent at least once, and only those of that batch a second time."""
    await put(face, box, *range(100))
    with started(face, box, hangs_at=29) as killed:
        sent = []
        while not sent or sent[-1] != 29:
            sent.append(int(killed.stdout.readline()))
        killed.send_signal(signal.SIGKILL)
    assert sent == list(range(30))
    again = []
    relay = box.relay({"order": again.append}, batch=20)
    ends = time.monotonic() + 2.0
    while box.numbers().pending and time.monotonic() < ends:  # the server is about to see it
        relay.step()
    assert sorted(again) == list(range(20, 100))
    assert box.numbers() == Numbers(0, 100, 0, 0.0)


@pytest.mark.drivers("psycopg")
async def test_four_processes_and_sigterm(face, box):
    """R26: four relays send each of 400 messages once while units go on storing them; at SIGTERM they end cleanly."""
    relays = [started(face, box) for _ in range(4)]
    for number in range(0, 400, 20):
        await put(face, box, *range(number, number + 20))
    await face.until(lambda: box.numbers().sent == 400)
    for one in relays:
        one.send_signal(signal.SIGTERM)
    said = [one.communicate(timeout=PATIENCE) for one in relays]
    assert [(one.returncode, err, out.splitlines()[-1]) for one, (out, err) in zip(relays, said, strict=True)] == [
        (0, "", "ended")
    ] * 4
    assert sorted(int(line) for out, _ in said for line in out.split()[:-1]) == list(range(400))


# ------------------------------------------------------------------------------- bad input


@alone
def test_bad_options(face, table):
    """R26: refused when the outbox or the relay is made."""
    box = Outbox(face.db, table)
    for options, said in (
        ({"batch": 0}, "at least 1"),
        ({"batch": True}, "at least 1"),
        ({"poll": 0}, "more than 0"),
        ({"keep": -1}, "at least 0"),
        ({"retry": 0}, "at least 1"),
    ):
        with pytest.raises(BadOption, match=said):
            box.relay(print, **options)
    with pytest.raises(BadOption, match="no topic"):
        box.relay({})
    for given in (None, sa.Table("plain", sa.MetaData())):
        with pytest.raises(BadOption, match=r"outbox\.table\(metadata\)"):
            Outbox(face.db, given)
    with pytest.raises(BadOption, match="AsyncOutbox"):
        Outbox(face.db.engine, table)
    with pytest.raises(BadOption, match="there is Outbox"):
        AsyncOutbox(face.db, table)


@alone
def test_what_cannot_be_called(face, table):
    """R3: a coroutine function under `Outbox` and a generator are refused when the relay is made."""
    box = Outbox(face.db, table)

    async def later(_number):
        pass

    def rows(_number):
        yield

    for send, said in (({"a": later}, "async def"), (rows, "a generator"), ({"a": "b"}, "cannot be called")):
        with pytest.raises(UnsupportedCallable, match=said):
            box.relay(send)


def test_a_memory_that_is_not_shared(watch, table):
    """R26: a relay on SQLite in one connection's memory is refused, for nothing could keep a second one away."""
    engine = sa.create_engine("sqlite://")
    with pytest.raises(BadOption, match="'sqlite://'"):
        Outbox(watch(tenure.Database(engine)).db, table).relay(print)
    engine.dispose()
    assert Message(1, "a", [], {}, 1).attempt == 1
