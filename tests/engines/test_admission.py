"""Who gets a connection next: in order, bounded, exact whatever happens to those who wait."""

import asyncio
import gc
import random
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

from tenure import Admission, Database
from tenure.engines.admission import Queue, State, Turn
from tenure.engines.ledger import Lease, Stranger
from tenure.engines.overload import Overload
from tenure.exceptions import BadOption, Overloaded, PoolExhausted, SecondConnection

from support.models import User

some = pytest.mark.drivers("sqlite", "psycopg", "asyncpg", "aiosqlite")


# -- the brain, step by step ------------------------------------------------------------------------------------------


class _Line:
    """A queue with a clock of its own, and those who stand in it by name."""

    def __init__(self, capacity=1, **admission):
        self.now = 0.0
        self.queue = Queue(capacity, Admission(**admission), clock=lambda: self.now)
        self.woken = []

    def lease(self):
        return Lease(Stranger())

    def enter(self):
        lease = self.lease()
        return lease if self.queue.enter(lease) else None

    def join(self, name, there=True):
        def wake():
            self.woken.append(name)
            return there

        turn = Turn(self.lease(), wake)
        self.taken = self.queue.join(turn)
        return turn


def test_a_place_goes_to_the_first_in_line():
    """R35: a connection that comes back goes to whoever has waited longest, and nobody who comes then is served before."""
    line = _Line()
    holder = line.enter()
    first, second = line.join("first"), line.join("second")
    line.queue.leave(holder)
    newcomer = line.enter()
    line.queue.leave(first.lease)

    assert newcomer is None
    assert line.woken == ["first", "second"]
    assert (first.state, second.state) == (State.SERVED, State.SERVED)
    assert (line.queue.used, line.queue.waiting) == (1, 0)


def test_one_who_gives_up_at_the_moment_of_being_served_passes_the_place_on():
    """R35: a waiter that is served and cancelled at once loses no place."""
    line = _Line()
    holder = line.enter()
    first, second = line.join("first"), line.join("second")
    line.queue.leave(holder)
    line.queue.abandon(first)
    line.queue.leave(first.lease)

    assert second.state is State.SERVED
    line.queue.leave(second.lease)
    assert (line.queue.used, line.queue.waiting) == (0, 0)


def test_one_who_gives_up_before_that_is_passed_over():
    """R35: nobody is served who no longer waits, also when nobody is there to be woken."""
    line = _Line()
    holder = line.enter()
    first, _, third = line.join("first"), line.join("closed loop", there=False), line.join("third")
    line.queue.abandon(first)
    line.queue.leave(holder)

    assert first.state is State.GONE
    assert third.state is State.SERVED
    assert line.queue.used == 1


def test_a_place_is_given_up_once():
    """R36: a lease that comes back twice, as by invalidate and close, gives up one place."""
    line = _Line(2)
    one, _other = line.enter(), line.enter()
    line.queue.leave(one)
    line.queue.leave(one)

    assert line.queue.used == 1


def test_a_new_pool_has_all_its_places():
    """R36: after dispose() those who wait are served from the new pool, and what comes back to the old one frees no place."""
    line = _Line()
    old = line.enter()
    waiting = line.join("waiting")
    spare = line.queue.renew(1)
    line.queue.leave(old)

    assert spare == []
    assert waiting.state is State.SERVED
    assert line.queue.used == 1


def test_what_is_parked_is_taken_before_anyone_waits():
    """R32: an idle connection that a unit keeps for its next read is taken by whoever needs one; the unit then asks again."""
    line = _Line()
    kept = line.enter()
    kept.keepable = True
    parked = line.queue.park(kept)
    taker = line.join("taker")

    assert parked
    assert line.taken is kept
    assert taker.state is State.SERVED
    assert taker.lease.place is not None
    assert not line.queue.unpark(kept)
    line.queue.leave(kept)  # its connection is closed: the place is the taker's by now
    assert (line.queue.used, line.queue.spare) == (1, 0)


def test_nothing_is_parked_while_somebody_waits():
    """R32: a unit that comes back from a read while others wait hands its connection over."""
    line = _Line()
    kept = line.enter()
    waiting = line.join("waiting")
    parked = line.queue.park(kept)
    line.queue.leave(kept)

    assert not parked
    assert waiting.state is State.SERVED


def test_a_line_of_those_who_have_gone_is_tidied():
    """R35: however many gave up, the line holds no more than those who wait."""
    line = _Line()
    line.enter()
    for number in range(1000):
        line.queue.abandon(line.join(str(number)))

    assert len(line.queue._line) < 50
    assert line.queue.waiting == 0


def test_a_place_is_given_back_by_the_garbage_collector_within_a_method():
    """R36: the collector may give a connection back in the middle of a method of the same thread."""
    line = _Line()
    holder = line.enter()

    class _Line2(type(line.queue._line)):
        def append(self, turn):
            line.queue.leave(holder)  # as a weak reference's callback would
            super().append(turn)

    line.queue._line = _Line2()
    turn = line.join("turn")

    assert turn.state is State.SERVED
    assert (line.queue.used, line.queue.waiting) == (1, 0)


def test_overload_is_told_from_a_burst():
    """R35: with target=, those who waited too long are turned away only while the queue does not get short any more."""
    brain = Overload(0.1)
    burst = [brain.sheds(now, 0.5) for now in (0.0, 0.5, 0.9)]
    standing = [brain.sheds(now, 0.5) for now in (1.1, 1.2)]
    short = [brain.sheds(1.3, 0.15), brain.sheds(1.4, 0.05), brain.sheds(1.5, 0.5)]

    assert burst == [False, False, False]
    assert standing == [True, True]
    assert short == [False, False, False]


def test_an_overload_that_comes_back_is_seen_sooner():
    """R35: a pause in what comes does not buy a standing queue another whole interval."""
    brain = Overload(0.1)
    for now in (0.0, 0.5, 1.1):
        brain.sheds(now, 0.5)
    assert brain.overloaded
    brain.sheds(1.2, 0.05)  # a pause: the queue was short for a moment

    again = [brain.sheds(now, 0.5) for now in (1.25, 1.39, 1.41)]
    for now in (2.0, 3.5, 4.6):
        brain.sheds(now, 0.01)  # calm for long
    burst = [brain.sheds(now, 0.5) for now in (5.7, 5.8, 6.0)]

    assert again == [False, False, True]
    assert burst == [False, False, False]


def test_a_queue_with_a_target_turns_away():
    """R35: whoever is turned away is woken and has no place; the next one has it."""
    line = _Line(target=0.1)
    holder = line.enter()
    for step in range(2):
        turn = line.join("turn")
        line.now += 0.5
        line.queue.leave(holder)
        holder = turn.lease
        assert turn.state is State.SERVED, step
    late = line.join("late")
    line.now += 0.5
    fresh = line.join("fresh")
    line.queue.leave(holder)

    assert late.state is State.SHED
    assert fresh.state is State.SERVED
    assert line.queue.used == 1


@pytest.mark.parametrize(
    "options",
    [{"max_waiting": -1}, {"max_waiting": True}, {"max_waiting": 1.5}, {"max_wait": -1}, {"max_wait": "1"}, {"target": 0}],
)
def test_bad_settings_are_refused(options):
    """R35: settings out of range are refused where they are made."""
    with pytest.raises(BadOption, match=min(options)):
        Admission(**options)


def test_what_is_no_admission_is_refused(tmp_path):
    """R35: and so is what is none."""
    with pytest.raises(BadOption, match="admission=5"):
        Database(f"sqlite:///{tmp_path}/x.db", admission=5)


def test_one_pool_has_one_queue(tmp_path):
    """R35: two databases on one engine share its queue, and may not ask for two sorts of it."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/x.db", pool_size=1, max_overflow=0)
    one, two = Database(engine), Database(engine)
    with one.unit() as session:
        session.execute(text("SELECT 1"))
        seen = two.status().in_use
    with pytest.raises(BadOption, match="another Database has this engine"):
        Database(engine, admission=Admission(max_waiting=3))
    one.close()
    with two.unit() as session:
        session.execute(text("SELECT 1"))
    two.close()

    assert seen == 1
    assert "connect" not in vars(engine.pool)
    engine.dispose()


# -- real waits ---------------------------------------------------------------------------------------------------------


async def _use(face, name, order, entered=None, may_end=None):
    async with face.unit(name=name) as session:
        session.add(User(name=name))
        await session.flush()
        order.append(name)
        if entered is not None:
            entered.set()
            await may_end.wait()


@some
async def test_first_come_first_served(make_face):
    """R35: those who wait get the connection in the order in which they came."""
    face, order = make_face(pool_size=1, max_overflow=0), []
    entered, may_end = face.event(), face.event()

    def waiter(number):
        async def wait():
            await face.until(lambda: entered.is_set() and face.db.status().waiting == number)
            await _use(face, f"w{number}", order)

        return wait

    async def release():
        await face.until(lambda: face.db.status().waiting == 6)
        may_end.set()

    await face.spawn(lambda: _use(face, "holder", order, entered, may_end), *(waiter(n) for n in range(6)), release)

    assert order == ["holder", "w0", "w1", "w2", "w3", "w4", "w5"]
    status = face.db.status()
    assert (status.in_use, status.waiting, status.peak) == (0, 0, 1)
    assert status.acquired >= 7


@some
async def test_one_more_than_may_wait_is_refused_at_once(make_face):
    """R35: beyond max_waiting a unit is refused at once, as Overloaded, which is SQLAlchemy's TimeoutError too."""
    face, order = make_face(pool_size=1, max_overflow=0, admission=Admission(max_waiting=1)), []
    entered, may_end = face.event(), face.event()

    async def waits():
        await entered.wait()
        await _use(face, "waits", order)

    async def refused():
        await face.until(lambda: face.db.status().waiting == 1)
        try:
            with pytest.raises(Overloaded) as caught:
                await _use(face, "refused", order)
            return [caught.value]  # spawn() would raise an error
        finally:
            may_end.set()

    *_, (error,) = await face.spawn(lambda: _use(face, "holder", order, entered, may_end), waits, refused)

    assert str(error) == "'main': 1 units wait (max_waiting=1), 1 of 1 out. Retry after 1 s. [overloaded]"
    assert isinstance(error, sa.exc.TimeoutError)
    assert error.retry_after == 1
    assert order == ["holder", "waits"]
    status = face.db.status()
    assert (status.refused, status.waited, face.out()) == (1, 1, 0)
    assert 0 < status.longest_wait < 10


@some
async def test_a_wait_ends(make_face):
    """R35, R37: max_wait bounds the wait; the error is SQLAlchemy's TimeoutError too, and names who holds the connection."""
    face, order = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=0.05)), []
    entered, may_end = face.event(), face.event()

    async def waits():
        await entered.wait()
        try:
            with pytest.raises(PoolExhausted) as caught:
                await _use(face, "waits", order)
            return [caught.value]
        finally:
            may_end.set()

    _, (error,) = await face.spawn(lambda: _use(face, "holder", order, entered, may_end), waits)

    assert isinstance(error, sa.exc.TimeoutError)
    assert "'main': none of 1 free in 0.1 s, 1 wait." in str(error) or "in 0.0 s" in str(error)
    assert "'holder' (test_admission.py:" in str(error)
    assert [one.unit for one in error.holders] == ["holder"]
    assert order == ["holder"]
    assert (face.db.status().timed_out, face.db.status().waiting, face.out()) == (1, 0, 0)


@pytest.mark.drivers("asyncpg", "psycopg_async")  # aiosqlite 0.22: SQLAlchemy's closing of a connection may wait for ever
async def test_waiters_that_are_cancelled_at_random(make_face):
    """R35, R19: 300 tasks on two connections, cancelled at random, also at the moment they are served: 0 out, 0 wait."""
    face, dice = make_face(pool_size=2, max_overflow=0), random.Random(7)

    async def one():
        async with face.unit() as session:
            await session.scalar(select(User.id).limit(1))
            session.add(User(name="x"))
            await session.flush()
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(one()) for _ in range(300)]
    while any(not task.done() for task in tasks):
        for task in dice.sample(tasks, 5):
            task.cancel()
        await asyncio.sleep(dice.choice([0, 0, 0.001]))
    await asyncio.gather(*tasks, return_exceptions=True)
    status = face.db.status()

    assert (status.in_use, status.waiting, len(face.db.supply.ledger)) == (0, 0, 0)
    assert status.cancelled > 0
    assert face.db.supply.gate.queue.used == face.db.supply.gate.queue.spare == 0


@pytest.mark.drivers("sqlite", "psycopg")
def test_threads_in_a_tight_loop_are_served_alike(make_face):
    """R35: 16 threads that ask again at once, on two connections: nobody is left out."""
    face = make_face(pool_size=2, max_overflow=0)
    served, stop, start = [0] * 16, threading.Event(), threading.Barrier(16)

    def loop(number):
        start.wait(10)
        while not stop.is_set():
            with face.db.unit() as session:
                session.execute(text("SELECT 1"))
                served[number] += 1
                if sum(served) > 1600:
                    stop.set()

    threads = [threading.Thread(target=loop, args=(n,)) for n in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    assert min(served) * 2 >= max(served), served


@some
async def test_a_connection_taken_around_tenure_is_seen_and_waits_too(make_face):
    """R37: engine.connect() is in the ledger with its line, and its owner waits in the same queue."""
    face = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=0.05))
    engine = face.db.engine
    async with _Connection(face, engine):
        (report,) = face.db.holders()
        with pytest.raises(SecondConnection) as caught:  # R48: it would wait for itself
            async with face.unit() as session:
                await session.execute(text("SELECT 1"))
    async with face.unit() as session:
        session.add(User(name="ada"))
        await session.flush()
        (refused,) = await face.spawn(lambda: _take(face, engine), inherit=False, return_exceptions=True)

    assert report.unit == "engine.connect()"
    assert report.site.startswith("test_admission.py:")
    assert "'engine.connect()' holds a connection of 'main' (test_admission.py:" in str(caught.value)
    assert isinstance(refused, PoolExhausted)
    assert (face.out(), len(face.db.supply.ledger)) == (0, 0)


async def _take(face, engine):
    async with _Connection(face, engine):
        pass


class _Connection:
    """``engine.connect()`` of either face."""

    def __init__(self, face, engine):
        self.face, self.block = face, engine.connect()

    async def __aenter__(self):
        return await self.block.__aenter__() if self.face.is_async else self.block.__enter__()

    async def __aexit__(self, *error):
        return await self.block.__aexit__(*error) if self.face.is_async else self.block.__exit__(*error)


@pytest.mark.drivers("psycopg", "sqlite")
def test_a_stranger_that_is_dropped_gives_its_place_back(make_face):
    """R36: a connection that its owner forgot comes back with the garbage collector, as SQLAlchemy has it, and its place too."""
    face = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=5))

    def forget():
        face.db.engine.connect()

    forget()
    gc.collect()
    with face.db.unit() as session:
        session.execute(text("SELECT 1"))

    assert face.out() == 0


@pytest.mark.drivers("psycopg", "asyncpg")
async def test_a_connection_that_cannot_be_made_leaves_its_place(make_face, postgres_down):
    """R36: a server that answers nothing costs no place in the queue."""
    face = postgres_down(make_face)
    for _ in range(5):
        with pytest.raises((sa.exc.DBAPIError, OSError)):
            async with face.unit() as session:
                await session.execute(text("SELECT 1"))

    assert (face.db.supply.gate.queue.used, len(face.db.supply.ledger)) == (0, 0)


@pytest.fixture
def postgres_down():
    """Makes a face whose connections fail in the driver."""

    def make(make_face):
        face = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=1))

        @sa.event.listens_for(face.sync_engine, "do_connect")
        def fail(*_):
            raise OSError("no route")

        return face

    return make


# -- what is kept and may be taken ------------------------------------------------------------------------------------------


@some
async def test_a_second_read_needs_no_trip_to_the_pool(make_face):
    """R32: after a read the unit keeps its idle connection until somebody needs it, and its next read uses that."""
    face, trips = make_face(), []
    async with face.unit() as session:  # asks once for the isolation
        await session.scalar(select(User.id).limit(1))
    sa.event.listen(face.sync_engine, "checkin", lambda *_: trips.append(1))
    async with face.unit() as session:
        for _ in range(5):
            await session.scalar(select(User.id).limit(1))
            seen = face.db.status().in_use, [one.takeable for one in face.db.holders()]
        before = len(trips)

    assert (before, len(trips)) == (0, 1)
    assert seen == (0, [True])


@some
async def test_units_that_pause_leave_their_connections_to_others(make_face):
    """R32: units that have read and work on something else never make another wait, whatever they keep."""
    face = make_face(pool_size=2, max_overflow=0, admission=Admission(max_wait=5))
    barrier, go_on = face.barrier(3), face.event()

    async def pauses():
        async with face.unit() as session:
            await session.scalar(select(User.id).limit(1))
            await barrier.wait()
            await go_on.wait()
            return await session.scalar(select(sa.func.count()).select_from(User))

    async def works():
        await barrier.wait()
        for number in range(10):
            async with face.unit() as session:
                session.add(User(name=str(number)))
        go_on.set()
        return 10

    counts = await face.spawn(pauses, pauses, works)

    assert counts == [10, 10, 10]
    assert face.db.status().timed_out == 0
    assert face.out() == 0


@some
async def test_a_connection_that_died_while_it_was_kept(make_face):
    """R32, R38: dispose() takes what is kept as well; the unit's next read takes another."""
    face = make_face()
    async with face.unit() as session:
        await session.scalar(select(User.id).limit(1))
        await _dispose(face)
        await session.scalar(select(User.id).limit(1))

    assert face.out() == 0
    assert face.db.supply.gate.queue.used == 0


async def _dispose(face):
    if face.is_async:
        await face.db.engine.dispose()
    else:
        face.db.engine.dispose()


# -- interleavings ------------------------------------------------------------------------------------------------------------


class _Pair:
    """One unit that has read and reads again, and another that needs the only connection, with the order of the two forced."""

    def __init__(self, face, monkeypatch):
        self.face, self.queue = face, face.db.supply.gate.queue
        self.parked, self.first_done = face.event(), face.event()
        self.patch = monkeypatch

    def before(self, name, act):
        """Have *act* done just before the queue's method *name* is carried out."""
        real = getattr(self.queue, name)

        def method(*args):
            act()
            return real(*args)

        self.patch.setattr(self.queue, name, method)

    def after(self, name, act):
        real = getattr(self.queue, name)

        def method(*args):
            found = real(*args)
            act()
            return found

        self.patch.setattr(self.queue, name, method)

    async def reads_again(self):
        async with self.face.unit() as session:
            await session.scalar(select(User.id))
            self.parked.set()
            return await session.scalar(select(sa.func.count()).select_from(User))

    async def writes(self):
        await self.parked.wait()
        async with self.face.unit() as session:
            session.add(User(name="other"))

    async def run(self):
        await self.face.spawn(self.reads_again, self.writes)
        gate = self.face.db.supply.gate
        return self.face.out(), gate.queue.used, gate.queue.waiting, len(gate.ledger)


@pytest.mark.drivers("sqlite", "psycopg")
async def test_a_kept_connection_is_taken_just_before_its_unit_wants_it(make_face, monkeypatch):
    """R32: the unit that kept a connection finds it taken, and waits in line as everybody does."""
    face = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=5))
    pair, taken = _Pair(face, monkeypatch), threading.Event()
    pair.before("unpark", lambda: taken.wait(10))
    pair.after("join", taken.set)

    assert await pair.run() == (0, 0, 0, 0)
    assert face.db.status().timed_out == 0


@pytest.mark.drivers("sqlite", "psycopg")
async def test_a_kept_connection_is_wanted_just_before_it_is_taken(make_face, monkeypatch):
    """R32: the unit that kept a connection has it again, and who wanted to take it is served when the read is done."""
    face = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=5))
    pair, wanted, joins = _Pair(face, monkeypatch), threading.Event(), threading.Event()
    pair.before("join", lambda: (joins.set(), wanted.wait(10)))
    pair.before("unpark", lambda: joins.wait(10))
    pair.after("unpark", wanted.set)

    assert await pair.run() == (0, 0, 0, 0)
    assert face.db.status().timed_out == 0


@pytest.mark.drivers("sqlite", "psycopg")
async def test_a_kept_connection_that_both_want_at_once(make_face):
    """R32: whoever is first, both are served, 200 times."""
    face = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=5))
    barrier = face.barrier(2)

    async def reads():
        for _ in range(200):
            async with face.unit() as session:
                await session.scalar(select(User.id))
                await barrier.wait()
                await session.scalar(select(User.id))

    async def takes():
        for _ in range(200):
            await barrier.wait()
            async with face.unit(hold="transaction") as session:
                await session.scalar(select(User.id))

    await face.spawn(reads, takes)

    gate = face.db.supply.gate
    assert (face.out(), gate.queue.used, gate.queue.waiting, len(gate.ledger)) == (0, 0, 0, 0)
    assert face.db.status().timed_out == 0


@pytest.mark.drivers("asyncpg", "psycopg_async")
async def test_a_task_cancelled_after_it_was_served_and_before_it_runs(make_face, monkeypatch):
    """R35, R19: given a waiter whose turn has come, when it is cancelled before the loop comes to it, then the next one is served."""
    face, order = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=5)), []
    entered, may_end = face.event(), face.event()
    holder = asyncio.create_task(_use(face, "holder", order, entered, may_end))
    await entered.wait()
    served = asyncio.create_task(_use(face, "served", order))
    await face.until(lambda: face.db.status().waiting == 1)
    (turn,) = face.db.supply.gate.queue.turns()
    after = asyncio.create_task(_use(face, "next", order))
    await face.until(lambda: face.db.status().waiting == 2)
    real = turn.wake

    def wake():
        woken = real()  # the result of its future is set
        served.cancel()
        return woken

    turn.wake = wake
    may_end.set()
    results = await asyncio.gather(holder, served, after, return_exceptions=True)

    gate = face.db.supply.gate
    assert turn.state is State.SERVED
    assert isinstance(results[1], asyncio.CancelledError)
    assert order == ["holder", "next"]
    assert (face.out(), gate.queue.used, gate.queue.waiting, len(gate.ledger)) == (0, 0, 0, 0)


@pytest.mark.drivers("psycopg", "asyncpg", "pymysql")  # on SQLite the two would wait for the file
async def test_a_pool_that_is_disposed_of_while_units_wait(make_face):
    """R36: who waits is served from the new pool at once; who still holds a connection of the old one ends as ever."""
    face, order = make_face(pool_size=1, max_overflow=0, admission=Admission(max_wait=60)), []
    entered, may_end = face.event(), face.event()

    async def holds():
        async with face.unit(hold="transaction") as session:
            await session.execute(text("SELECT 1"))
            entered.set()
            await may_end.wait()
            order.append("holder")

    async def waits():
        await entered.wait()
        async with face.unit(hold="transaction") as session:
            await session.execute(text("SELECT 2"))
            order.append("waiter")
        may_end.set()

    async def disposes():
        await face.until(lambda: face.db.status().waiting == 1)
        await _dispose(face)

    await face.spawn(holds, waits, disposes)

    gate = face.db.supply.gate
    assert order == ["waiter", "holder"]
    assert (face.out(), gate.queue.used, gate.queue.waiting, len(gate.ledger)) == (0, 0, 0, 0)
