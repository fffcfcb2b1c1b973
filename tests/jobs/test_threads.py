import contextvars
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from greenlet import getcurrent
from sqlalchemy import select

from tenure.core.current import nobody
from tenure.core.events import UnitLeaked
from tenure.exceptions import ConcurrentUse, ForeignContext, NotOwner, NoUnit, UnitEnded
from tenure.jobs.threads import hand_over

from support import probe
from support.face import PATIENCE
from support.models import User
from support.probe import line

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]


def run(function, *args, **thread):
    """Run *function* in a thread, to its end; what it returned or raised."""
    results = []

    def work():
        try:
            results.append(function(*args))
        except BaseException as error:
            results.append(error)

    started = threading.Thread(target=work, **thread)
    started.start()
    started.join()
    return results[0]


def place(face):
    return face.db.current_place.var.get()


# ------------------------------------------------------------------------- R23 as it is written


def test_an_executor_of_4_after_100_jobs(make_face, stored, told):
    """R23: its threads are idle but alive: 0 are out, none is idle in transaction, and each of them knows no unit."""
    face = make_face(pool_size=4, max_overflow=0)

    @face.db.unit
    def job(session, number):
        session.scalars(select(User.name)).all()
        session.add(User(name=f"user {number}"))
        session.flush()
        if number % 2:
            raise LookupError(number)

    def ask(barrier):
        barrier.wait(PATIENCE)
        with pytest.raises(NoUnit, match="no unit of 'main' is open in thread 'ThreadPool"):
            _ = face.db.session
        return threading.get_ident(), place(face)

    with ThreadPoolExecutor(4) as executor:
        errors = [one.exception() for one in [executor.submit(job, number) for number in range(100)]]
        assert face.out() == 0
        if face.dialect == "postgresql":
            idle = "SELECT state FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            assert set(probe.outside(face, idle)) == {"idle"}
        barrier = threading.Barrier(4)
        found = {one.result() for one in [executor.submit(ask, barrier) for _ in range(4)]}

    assert [error is not None for error in errors] == [False, True] * 50
    assert stored() == sorted(f"user {number}" for number in range(0, 100, 2))
    assert ({found_place for _, found_place in found}, len(found)) == ({nobody}, 4)
    assert [one[1] for one in told.closed()].count("committed") == 50
    assert face.db.holders() == []


def test_a_thread_with_a_unit_of_its_own(face, stored, told):
    """R23: `threading.Thread(target=db.unit(function))`, with arguments, is all that a thread needs."""

    def store(session, name, *, twice=False):
        session.add_all([User(name=name)] + [User(name=f"{name} again")] * twice)

    thread = threading.Thread(target=face.db.unit(store), args=("ada",), kwargs={"twice": True})
    thread.start()
    thread.join()

    assert (stored(), face.out()) == (["ada", "ada again"], 0)
    assert [(name, outcome) for name, outcome, _ in told.closed()] == [("store", "committed")]


def test_a_timer(face, stored):
    """R23: so is `threading.Timer`."""

    def store(session):
        session.add(User(name="ada"))

    timer = threading.Timer(0, face.db.unit(store))
    timer.start()
    timer.join()

    assert stored() == ["ada"]


def test_a_thread_of_the_units_own_code_has_its_own_unit(face, stored):
    """R23: begun within a unit, a thread still has a unit of its own, which is kept whatever becomes of the other."""

    def store(session):
        session.add(User(name="kept"))

    with pytest.raises(LookupError), face.db.unit() as session:
        session.scalar(select(User.name))
        run(face.db.unit(store))
        raise LookupError
    assert stored() == ["kept"]


def test_a_thread_without_a_unit(face):
    """R4: what it finds says where it was asked and what to do."""

    def ask():
        _ = face.db.session

    error = run(ask, name="mailer")

    assert isinstance(error, NoUnit)
    assert f"no unit of 'main' is open in thread 'mailer' (test_threads.py:{ask.__code__.co_firstlineno + 1})" in str(error)


# --------------------------------------------------------------------------------- hand over


def test_handed_over_in_turn(face, stored, told):
    """R23, R46: another thread works in the unit while its owner waits; its context is afterwards as it was."""
    mine = contextvars.ContextVar("mine", default="nothing")
    mine.set("the owner's")
    places = []

    def store(name):
        face.db.session.add(User(name=name))
        face.db.session.flush()
        mine.set("the helper's")
        return face.db.current.name

    with ThreadPoolExecutor(1) as executor, face.db.unit(name="work") as session:
        assert executor.submit(hand_over(store), "ada").result() == "work"
        assert [one.name for one in session.scalars(select(User))] == ["ada"]
        assert executor.submit(hand_over(store), "bob").result() == "work"
        places.append(executor.submit(lambda: (place(face), mine.get())).result())
        assert stored() == []

    assert (stored(), places, mine.get()) == (["ada", "bob"], [(nobody, "nothing")], "the owner's")
    assert len(told.closed()) == 1


def test_handed_over_with_the_session(face, stored):
    """R46: a session that is passed along may be used where the unit was handed over, and nowhere else."""

    def store(session):
        session.add(User(name="ada"))
        session.flush()

    with face.db.unit() as session:
        assert isinstance(run(store, session, name="stranger"), ForeignContext)
        assert run(hand_over(store), session) is None
    assert stored() == ["ada"]


def test_a_decorated_function_handed_over_joins(face, stored):
    """R5: a function with a unit of its own joins the one that was handed over, and may not end it."""

    @face.db.unit
    def store(session, *, commit=False):
        session.add(User(name="ada"))
        if commit:
            session.commit()

    with pytest.raises(LookupError), face.db.unit():
        assert run(hand_over(store)) is None
        assert isinstance(run(hand_over(lambda: store(commit=True))), NotOwner)
        raise LookupError
    assert stored() == []


def test_handed_over_and_used_at_once(face, stored):
    """R44: overlap raises in the second, with both lines; the first goes on unharmed."""
    inside, go_on = threading.Event(), threading.Event()

    def wait_inside(*_):
        inside.set()
        assert go_on.wait(PATIENCE)

    def slow():
        sa.event.listen(face.sync_engine, "before_cursor_execute", wait_inside, once=True)
        return face.db.session.scalars(select(User.name)).all()

    with ThreadPoolExecutor(1, thread_name_prefix="helper") as executor, face.db.unit() as session:
        session.add(User(name="ada"))
        session.flush()
        first = executor.submit(hand_over(slow))
        assert inside.wait(PATIENCE)
        with pytest.raises(ConcurrentUse) as caught:
            session.scalar(select(User.balance))
        second = line(-1)
        go_on.set()
        assert first.result() == ["ada"]

    for said in (f"began scalar() at {second}", "thread 'helper_0' is still in scalars()", "test_threads.py:"):
        assert said in str(caught.value)
    assert stored() == ["ada"]


def test_handed_over_and_used_after_the_end(face):
    """R45: the session has ended, wherever it is used, and the message says where."""

    def use(session):
        return session.scalars(select(User.name)).all()

    def ask():
        return face.db.session

    with face.db.unit(name="work") as session:
        late, later = hand_over(use), hand_over(ask)
        unit = face.db.current
    for error in (run(late, session), run(later)):
        assert isinstance(error, UnitEnded)
        assert "the session of 'work' (test_threads.py:" in str(error)
    assert (unit.ended, face.out()) == (True, 0)


def test_a_thread_that_asks_after_the_end_of_a_unit_that_nobody_keeps(face):
    """R45: with the unit gone from memory there is no unit here, and nothing is opened in its place."""
    with face.db.unit():
        later = hand_over(lambda: face.db.session)
    assert isinstance(run(later), (UnitEnded, NoUnit))
    assert face.out() == 0


def test_handed_over_to_a_thread_that_ends(make_face, stored, told):
    """R47: a unit whose helper has ended is still its owner's: no other that needs a connection may take it for a leak."""
    face = make_face(pool_size=1, max_overflow=0, pool_timeout=0.1)

    def store(session):
        session.add(User(name="ada"))
        session.flush()

    with face.db.unit() as session:
        run(hand_over(store), session)
        assert isinstance(run(face.db.unit(lambda session: session.scalar(select(User.name)))), sa.exc.TimeoutError)
        session.add(User(name="bob"))
    assert (stored(), told.of(UnitLeaked)) == (["ada", "bob"], [])


def test_a_unit_whose_opener_and_helper_have_ended(make_face, stored, told):
    """R47: when nobody is left who could end it, it is rolled back for whoever needs its connection."""
    face = make_face(pool_size=1, max_overflow=0, pool_timeout=5)
    kept = []

    def leave_open():
        block = face.db.unit(name="forgotten")
        session = block.__enter__()
        session.add(User(name="ada"))
        session.flush()
        kept.extend([block, session, face.db.current])

    run(leave_open)
    with face.db.unit() as session:
        assert session.scalars(select(User.name)).all() == []
    assert (stored(), [leak.unit for leak in told.of(UnitLeaked)]) == ([], ["forgotten"])


def test_a_session_that_is_kept_keeps_nothing_of_its_thread(face):
    """R49: where a thread's greenlet outlives it, greenlet looks through all objects for whoever keeps it: 10 ms and more."""
    kept = []

    def work():
        with face.db.unit() as session:
            session.scalar(select(User.name))
            kept.append(session)
        return weakref.ref(getcurrent())

    alive = run(work)
    deadline = time.monotonic() + PATIENCE
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.001)  # greenlet clears up in the main thread, when that has a moment
    assert (alive(), len(kept)) == (None, 1)


def test_one_handing_over_is_for_one_call(face):
    """R46: a context cannot be in two threads at once; each call gets its own."""
    with face.db.unit() as session:
        name = hand_over(lambda: face.db.current.name)
        assert [run(name), run(name)] == [session.unit.name] * 2
        nested = hand_over(name)
        assert nested() == session.unit.name


def test_without_a_unit_there_is_nothing_to_hand_over(face):
    """R23: the function runs all the same; what it finds is what its caller would."""
    assert isinstance(run(hand_over(lambda: face.db.session)), NoUnit)
    assert run(hand_over(lambda: 3)) == 3
