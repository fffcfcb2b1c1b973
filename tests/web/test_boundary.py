import contextlib
import contextvars
import gc
import logging
import re
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, select, text

import tenure
from tenure.core.current import nobody
from tenure.core.events import WorkLost
from tenure.exceptions import BadOption, NotOwner, NoUnit, OutcomeSettled, ReadOnlyUnit, RollbackOnly, UnitEnded
from tenure.web.answers import keeps
from tenure.web.blocking import BlockingBody, BlockingBoundary, BlockingRequest
from tenure.web.boundary import Boundary

from support.face import PATIENCE
from support.http import at_once
from support.models import Pledge, User
from support.probe import line

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]


alone = pytest.mark.drivers("sqlite")  # where the database plays no part


@contextlib.contextmanager
def request(face, name="GET /", **boundary):
    """A request as a host has it, current until the block ends."""
    begun = BlockingRequest(BlockingBoundary(face.db, **boundary), name)
    try:
        yield begun
    finally:
        begun.finish()
        begun.leave(begun.token)


def place(face):
    return face.db.current_place.var.get()


# ------------------------------------------------------------------------------------- phases


def test_the_phases_of_a_request(face, stored, told):
    """R16: it works until it is settled, then it may read until it is finished, and then it is over."""
    with request(face, "POST /users") as begun:
        assert begun() is None
        session = face.db.session
        assert begun() is face.db.current is session.unit
        session.add(User(name="ada"))
        assert stored() == []

        begun.settle(201)
        assert (stored(), face.out(), told.closed()) == (["ada"], 0, [])
        assert session.scalar(select(User.name)) == "ada"
        assert face.out() == 0
        with pytest.raises(ReadOnlyUnit):
            session.execute(insert(User).values(name="late"))

        begun.finish()
        assert told.closed() == [("POST /users", "committed", "status 201")]
        for use in (lambda: session.scalar(select(User.name)), lambda: face.db.session):
            with pytest.raises(UnitEnded, match="'POST /users'"):
                use()
    assert place(face) is nobody
    with pytest.raises(NoUnit):
        _ = face.db.session


@alone
def test_a_request_that_asks_for_nothing(face, told):
    """R22: no unit is opened, whatever is asked of the boundary."""
    with request(face) as begun:
        begun.settle(200)
        begun.finish()
        assert begun() is None
        with pytest.raises(NoUnit):
            _ = face.db.session
    assert told == []


@alone
def test_settling_twice_changes_nothing(face, stored):
    """R14: the first status decides."""
    with request(face) as begun:
        face.db.session.add(User(name="ada"))
        begun.settle(200)
        begun.settle(500, LookupError("too late"))
    assert stored() == ["ada"]


@pytest.mark.parametrize(("status", "kept"), [(100, True), (200, True), (399, True), (400, False), (599, False)])
def test_the_rule(status, kept):
    """R15: below 400 the work is kept."""
    assert keeps(status) is kept


@alone
def test_an_error_rolls_back_whatever_the_status(face, stored, told):
    """R15: what the handler raised counts before the status, and is named as the reason."""
    error = LookupError("mine")
    with request(face) as begun:
        face.db.session.add(User(name="ada"))
        begun.settle(200, error)
        begun.finish(error)
    assert (stored(), told.closed()) == ([], [("GET /", "rolled back", "LookupError")])


@alone
def test_a_host_that_gives_up(face, stored, told):
    """R16: a request that is finished before it has a status is rolled back."""
    with request(face):
        face.db.session.add(User(name="ada"))
    with request(face) as begun:
        face.db.session.add(User(name="bob"))
        begun.finish(GeneratorExit())
    assert stored() == []
    assert [outcome for _, outcome, _ in told.closed()] == ["rolled back", "rolled back"]
    assert told.closed()[1][2] == "GeneratorExit"


# --------------------------------------------------------------------------------- commit_if


@alone
def test_the_rule_sees_the_status(face, stored):
    """R15: `commit_if` is asked once for each request that used the database, with the status."""
    asked = []
    for status in (200, 404):
        with request(face, commit_if=lambda status: not asked.append(status) and status == 404) as begun:
            face.db.session.add(User(name=f"user {status}"))
            begun.settle(status)
    with request(face, commit_if=asked.append) as begun:
        begun.settle(204)
    assert (asked, stored()) == ([200, 404], ["user 404"])


@alone
def test_a_rule_that_raises_rolls_back(face, stored, told):
    """R15: an error in `commit_if` is the application's own, and nothing is kept."""
    hooks = []
    with request(face, commit_if=lambda status: 1 // 0) as begun:
        face.db.session.add(User(name="ada"))
        face.db.on_commit(hooks.append, "committed")
        face.db.on_rollback(hooks.append, "rolled back")
        with pytest.raises(ZeroDivisionError) as caught:
            begun.settle(200)
        begun.finish(caught.value)
    assert (stored(), hooks) == ([], ["rolled back"])
    assert told.closed() == [("GET /", "rolled back", "ZeroDivisionError")]


# ------------------------------------------------------------------------------ commit="explicit"


def _unflushed(session):
    session.add(User(name="ada"))


def _flushed(session):
    session.add(User(name="ada"))
    session.flush()


def _committed_before(session):
    session.add(User(name="ada"))
    session.commit()
    session.add(User(name="bob"))


def _sql(session):
    session.execute(text("INSERT INTO users (name, balance) VALUES ('ada', 0)"))


def _sql_and_more(session):
    session.execute(insert(User).values(name="ada"))
    session.scalars(select(User.name)).all()


def _unknown(session):
    session.connection()


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (_unflushed, r"1 object not written yet"),
        (_flushed, rf"work not committed, since flush\(\) at test_boundary.py:{_flushed.__code__.co_firstlineno + 2},"),
        (_committed_before, r"1 object not written yet"),
        (
            _sql_and_more,
            rf"work not committed, since execute\(\) at test_boundary.py:{_sql_and_more.__code__.co_firstlineno + 1},",
        ),
        (_unknown, rf"work not committed, since connection\(\) at test_boundary.py:{_unknown.__code__.co_firstlineno + 1},"),
        (_sql, rf"work not committed, since execute\(\) at test_boundary.py:{_sql.__code__.co_firstlineno + 1},"),
    ],
)
def test_lost_work_is_told_with_its_line(face, stored, told, caplog, *, work, said):
    """R15: with `commit="explicit"` a success that would lose work is a warning, and the work is rolled back."""
    with caplog.at_level(logging.WARNING, "tenure"), request(face, "POST /x", commit="explicit") as begun:
        work(face.db.session), (opened := line())
        begun.settle(200)
    assert stored() == (["ada"] if work is _committed_before else [])
    (warning,) = told.of(WorkLost)
    assert (warning.database, warning.unit) == ("main", "POST /x")
    assert re.fullmatch(
        rf"'POST /x' \({opened}\) answered 200, but {said} is lost. Call commit\(\). \[lost-work\]",
        warning.message,
    )
    assert warning.message in caplog.text


def _commits(session):
    _flushed(session)
    session.commit()


def _rolls_back(session):
    _flushed(session)
    session.rollback()


def _reads(session):
    session.scalars(select(User.name)).all()


def _asks(session):
    session.execute(text("SELECT 1"))


def _locks(session):
    session.scalars(select(User.name).with_for_update()).all()


def _reads_in_a_savepoint(session):
    with session.begin_nested():
        session.scalars(select(User.name)).all()


@pytest.mark.parametrize("work", [_commits, _rolls_back, _reads, _asks, _locks, _reads_in_a_savepoint])
def test_no_warning_where_nothing_is_lost(face, stored, told, work):
    """R15: what was committed, undone or only read is no lost work."""
    with request(face, commit="explicit") as begun:
        work(face.db.session)
        begun.settle(200)
    assert (told.of(WorkLost), stored()) == ([], ["ada"] if work is _commits else [])


@alone
def test_no_warning_for_an_answer_that_says_no(face, stored, told):
    """R15: with `commit="explicit"` a status of 400 and more, or an error, loses its work as it should."""
    for status, error in ((404, None), (500, LookupError())):
        with request(face, commit="explicit") as begun:
            _flushed(face.db.session)
            begun.settle(status, error)
    assert (told.of(WorkLost), stored()) == ([], [])


def test_a_failed_commit_that_was_handled(face, stored, told):
    """R15: code that calls `commit()` itself may catch its error and answer as it likes."""
    with request(face, commit="explicit") as begun:
        session = face.db.session
        session.add(User(name="ada"))
        session.flush()
        session.add(Pledge(user_id=4711))
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()
        session.rollback()
        begun.settle(200)
    assert (stored(), told.of(WorkLost)) == ([], [])
    assert told.closed() == [("GET /", "read only", "status 200")]


# -------------------------------------------------------------------------------- the end of it


def test_a_failing_commit_is_raised_and_the_request_goes_on_to_its_end(face, stored, told):
    """R14: `settle` raises the database's error; the session can still be read, and the unit ends once."""
    with request(face) as begun:
        session = face.db.session
        session.add(Pledge(user_id=4711))
        with pytest.raises(sa.exc.IntegrityError) as caught:
            begun.settle(200)
        assert face.out() == 0
        assert session.scalars(select(Pledge)).all() == []
        begun.settle(500)
        begun.finish(caught.value)
    assert told.closed() == [("GET /", "rolled back", "IntegrityError")]
    assert (stored(Pledge.id), face.out()) == ([], 0)


def test_a_swallowed_failure_raises(face, told):
    """R7: a failed flush that was caught and not undone cannot become a success."""
    with request(face) as begun:
        session = face.db.session
        session.add_all([User(name="ada"), User(name="ada")])
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
        with pytest.raises(RollbackOnly, match="'GET /'"):
            begun.settle(200)
    assert told.closed() == [("GET /", "rolled back", "RollbackOnly")]


def test_a_swallowed_failure_with_an_answer_that_says_so(face, told):
    """R7: caught, not undone, and answered with 409 is no contradiction."""
    with request(face) as begun:
        face.db.session.add_all([User(name="ada"), User(name="ada")])
        with pytest.raises(sa.exc.IntegrityError):
            face.db.session.flush()
        begun.settle(409)
    assert told.closed() == [("GET /", "rolled back", "status 409")]


def test_an_interrupted_hook_hides_no_commit(face, stored, told):
    """R8: an interruption in a hook goes on as what it is, and the outcome stays what it was."""

    def interrupt():
        raise KeyboardInterrupt

    hooks = []
    with request(face) as begun:
        face.db.session.add(User(name="ada"))
        face.db.on_commit(interrupt)
        face.db.on_commit(hooks.append, "second")
        face.db.on_rollback(hooks.append, "never")
        with pytest.raises(KeyboardInterrupt):
            begun.settle(200)
        begun.finish()
    assert (stored(), hooks) == (["ada"], ["second"])
    assert [outcome for _, outcome, _ in told.closed()] == ["committed"]


@alone
def test_finishing_again_does_nothing_from_whatever_thread(face, told):
    """R16: several threads may end one request at once; it ends once."""
    for _ in range(20):
        with request(face) as begun:
            face.db.session.add(User(name="ada"))
            begun.settle(400)
            assert at_once(8, lambda _, begun=begun: begun.finish()) == [None] * 8
    assert len(told.closed()) == 20


def test_a_request_is_settled_in_another_thread(face, stored):
    """R23: a host may settle and finish in a thread that knows nothing of the request."""
    with request(face) as begun:
        face.db.session.add(User(name="ada"))
        for step in (lambda: begun.settle(200), begun.finish):
            thread = threading.Thread(target=step)
            thread.start()
            thread.join()
        with pytest.raises(UnitEnded):
            _ = face.db.session
    assert stored() == ["ada"]


@alone
def test_left_in_another_context_nothing_is_current(face):
    """R23: where a server ends a request in a context other than the one it began in, nothing stays behind there."""
    begun = BlockingRequest(BlockingBoundary(face.db), "GET /")
    begun.finish()
    context = contextvars.copy_context()
    context.run(begun.leave, begun.token)
    assert context[face.db.current_place.var] is nobody
    face.db.current_place.var.set(nobody)


@alone
def test_a_rollback_asked_for_too_late(face, stored, told):
    """R15: once the answer is settled its outcome stays what it was, and whoever asks for another is told."""
    with request(face) as begun:
        face.db.session.add(User(name="ada")), (opened := line())
        begun.settle(200)
        with pytest.raises(OutcomeSettled) as caught:
            (asked := line()), face.db.current.rollback_only()
    assert str(caught.value) == (
        f"rollback_only() at {asked} comes too late: 'GET /' ({opened}) was settled before the response began, with the outcome"
        " 'committed'. Decide before the first byte. [outcome-settled]"
    )
    assert (stored(), told.closed()) == (["ada"], [("GET /", "committed", "status 200")])


@alone
@pytest.mark.parametrize("opened", ["before", "in the body"])
def test_a_rollback_asked_for_where_nothing_is_stored(face, told, opened):
    """R15: in the body of an answer that kept nothing, there is nothing left to ask for."""
    with request(face) as begun:
        if opened == "before":
            face.db.session.add(User(name="ada"))
        begun.settle(404)
        face.db.current.rollback_only("a dry run")
        with face.db.unit(propagation="nested") as session:
            assert session.scalars(select(User.name)).all() == []
            face.db.current.rollback_only()
    assert told.closed() == [("GET /", "rolled back", "status 404")]


@alone
@pytest.mark.parametrize("boundary", [{}, {"commit": "explicit"}, {"commit_if": lambda status: status == 404}])
@pytest.mark.parametrize(("status", "error"), [(200, None), (404, None), (500, LookupError())])
def test_hooks_of_a_unit_that_opens_in_the_body(face, told, boundary, status, error):
    """R8, R15: they follow the answer as those of a handler that has only read do."""
    hooks = []
    for opens in ("before", "in the body"):
        with request(face, **boundary) as begun:
            if opens == "before":
                face.db.session.scalars(select(User.name)).all()
            begun.settle(status, error)
            face.db.on_commit(hooks.append, (opens, True))
            face.db.on_rollback(hooks.append, (opens, False))
            face.db.session.scalars(select(User.name)).all()
    kept = hooks[0][1]
    assert hooks == [("before", kept), ("in the body", kept)]
    assert told.closed()[0] == told.closed()[1]


def test_hooks_do_not_follow_what_ends_a_read_in_the_body(face):
    """R8: commit() and rollback() in the body end a transaction of reads, and say nothing about the request's work."""
    for status, end in ((200, "rollback"), (404, "commit"), (200, "close")):
        hooks = []
        with request(face) as begun:
            face.db.session.add(User(name=f"{end}"))
            begun.settle(status)
            face.db.on_commit(hooks.append, "committed")
            face.db.on_rollback(hooks.append, "rolled back")
            face.db.session.begin()
            face.db.session.scalars(select(User.name)).all()
            getattr(face.db.session, end)()
            assert (hooks, face.out()) == ([], 0)
        assert hooks == ["committed" if status == 200 else "rolled back"]


@alone
def test_hooks_registered_in_the_body(face, stored):
    """R8: a hook that comes while the body is sent runs at the end, if the request's work was kept."""
    for status in (200, 404):
        hooks = []
        with request(face) as begun:
            face.db.session.add(User(name=f"user {status}"))
            begun.settle(status)
            face.db.on_commit(hooks.append, "committed")
            face.db.on_rollback(hooks.append, "rolled back")
            assert hooks == []
        assert hooks == ["committed" if status == 200 else "rolled back"]


# --------------------------------------------------------------------------- opened in time, or late


class Held:
    """Holds up the making of units until it is told to go on."""

    def __init__(self, face, monkeypatch):
        self.made = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        unit_class = face.db.unit_class

        def make(*args, **options):
            self.begun.set()
            assert self.go_on.wait(PATIENCE)
            self.made.append(unit_class(*args, **options))
            return self.made[-1]

        monkeypatch.setattr(face.db, "unit_class", make)


def _in_copies(count, call):
    """Threads that *call* in a copy of this context, and where their results will be."""
    results = []
    context = contextvars.copy_context()
    threads = [threading.Thread(target=lambda: results.append(context.copy().run(call))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


@alone
def test_two_threads_that_ask_first_at_the_same_time(face, monkeypatch):
    """R16, R46: helpers of one request that ask for its unit at once get the same one."""
    held = Held(face, monkeypatch)
    with request(face):
        threads, results = _in_copies(2, lambda: face.db.current)
        held.begun.wait(PATIENCE)
        held.go_on.set()
        for thread in threads:
            thread.join()
        assert results == held.made * 2
        assert results[0] is face.db.current


@alone
def test_a_unit_that_opens_while_the_request_is_settled_may_write(face, stored, monkeypatch, told):
    """R14: a helper that asks first before the outcome is decided has its work decided with it."""
    held = Held(face, monkeypatch)
    with request(face) as begun:
        threads, results = _in_copies(1, lambda: face.db.current)
        held.begun.wait(PATIENCE)
        settling, _ = _in_copies(1, lambda: begun.settle(200))
        held.go_on.set()
        for thread in threads + settling:
            thread.join()
        assert (results[0].settled, results[0].reason) == (True, "status 200")
    assert told.closed() == [("GET /", "read only", "status 200")]


@alone
def test_a_unit_that_opens_while_the_request_is_finished_ends_with_it(face, monkeypatch, told):
    """R16: no unit is left open by a helper that asks as the request ends."""
    held = Held(face, monkeypatch)
    with request(face) as begun:
        begun.settle(200)
        threads, results = _in_copies(1, lambda: face.db.current)
        held.begun.wait(PATIENCE)
        finishing, _ = _in_copies(1, begun.finish)
        held.go_on.set()
        for thread in threads + finishing:
            thread.join()
    assert held.made[0].ended
    assert [unit for unit in results if unit is not None and not unit.ended] == []
    assert len(told.closed()) == 1


@pytest.mark.parametrize("how", ["flush", "insert", "text", "bulk"])
def test_a_late_unit_only_reads(face, stored, told, how):
    """R16: a unit that is opened while the body is sent refuses writes, and says why."""
    write = {
        "flush": lambda session: (session.add(User(name="late")), session.flush()),
        "insert": lambda session: session.execute(insert(User).values(name="late")),
        "text": lambda session: session.execute(text("INSERT INTO users (name, balance) VALUES ('late', 0)")),
        "bulk": lambda session: session.bulk_save_objects([User(name="late")]),
    }[how]
    with request(face, "GET /stream") as begun:
        begun.settle(200)
        session, opened = face.db.session, line()
        assert session.scalars(select(User.name)).all() == []
        with pytest.raises(ReadOnlyUnit) as caught:
            write(session)
        assert "readonly=True" not in str(caught.value)
        assert f"after the answer of 'GET /stream' ({opened}) had been settled" in str(caught.value)
        session.expunge_all()
    assert (stored(), face.out(), told.of(WorkLost)) == ([], 0, [])
    assert told.closed() == [("GET /stream", "read only", "status 200")]


def _first(function):
    return function.__wrapped__.__code__.co_firstlineno


def test_decorated_functions_in_the_body(face, stored):
    """R16: one that joins reads and may not write; one with a unit of its own writes, and keeps what it wrote."""

    @face.db.unit
    def count(session):
        return len(session.scalars(select(User.name)).all())

    @face.db.unit
    def write(session):
        session.add(User(name="joined"))
        session.flush()

    @face.db.unit(propagation="new")
    def write_own(session):
        session.add(User(name="own"))

    with request(face) as begun:
        face.db.session.add(User(name="ada"))
        begun.settle(200)
        assert count() == 1
        with pytest.raises(ReadOnlyUnit, match=rf"test_boundary.py:{_first(write) + 3} after the answer of 'GET /' "):
            write()
        face.db.session.expunge_all()
        write_own()
        assert count() == 2
    assert stored() == ["ada", "own"]


@alone
@pytest.mark.parametrize("call", ["commit", "rollback", "close"])
def test_joined_functions_cannot_end_the_request(face, stored, call):
    """R6: the request's work is not a helper's to commit."""

    @face.db.unit
    def helper(session):
        getattr(session, call)()

    with request(face) as begun:
        face.db.session.add(User(name="ada"))
        with pytest.raises(NotOwner, match="'GET /'"):
            helper()
        begun.settle(500)
    assert stored() == []


def test_text_that_reads_in_the_body_is_no_lost_work(face, told):
    """R16: a statement that is not surely a read gives its connection back as well, and nobody is alarmed."""
    with request(face) as begun:
        face.db.session.add(User(name="ada"))
        begun.settle(200)
        assert face.db.session.execute(text("SELECT name FROM users")).scalars().all() == ["ada"]
        assert face.out() == 0
        assert face.db.session.scalar(text("SELECT count(*) FROM users")) == 1
    assert (told.of(WorkLost), face.out()) == ([], 0)


@pytest.mark.parametrize("query", ["SELECT name FROM users", "SELECT current_timestamp"])
def test_many_streams_on_a_small_pool(make_face, query):
    """R16: 50 streams on a pool of 5 hold nothing between their reads, whatever they read."""
    face = make_face(pool_size=5, max_overflow=0, pool_timeout=2)
    with face.db.unit() as session:
        session.add(User(name="ada"))

    def events():
        for _ in range(3):
            yield face.db.session.scalar(text(query))

    def begin():
        begun = BlockingRequest(BlockingBoundary(face.db), "GET /events")
        begun.settle(200)
        begun.leave(begun.token)
        return BlockingBody(begun, events())

    streams = [begin() for _ in range(50)]
    for _ in range(3):
        for stream in streams:
            assert next(stream)
            assert face.out() == 0
    assert [list(stream) for stream in streams] == [[]] * 50


# -------------------------------------------------------------------------------- within another


@alone
def test_inside_is_known(face):
    """R22: a mounted application finds out that a request of its database is under way."""
    boundary = BlockingBoundary(face.db)
    other = BlockingBoundary(tenure.Database("sqlite://"))
    assert not boundary.inside()
    with request(face) as begun:
        assert boundary.inside()
        assert not other.inside()
        begun.finish()
        assert not boundary.inside()
    other.database.close()


def test_another_request_within_a_unit_has_its_own(face, stored):
    """R22: a request that a test client makes within a unit is a request of its own, and leaves the unit as it was."""
    with face.db.unit() as outer:
        name = outer.scalar(select(User.name))
        with request(face) as begun:
            assert face.db.session is not outer
            face.db.session.add(User(name="ada"))
            begun.settle(200)
        assert face.db.session is outer
        assert (name, outer.scalar(select(User.name))) == (None, "ada")
    assert stored() == ["ada"]


# ----------------------------------------------------------------------------------- the body


class Parts:
    """A body as an application may give it: it knows in which unit each part was made, and counts its closings."""

    def __init__(self, face, count=3, error=None):
        self.face, self.count, self.error = face, count, error
        self.closed = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.count == 0:
            raise self.error or StopIteration
        self.count -= 1
        return self.face.db.current.name

    def close(self):
        self.closed += 1


def _body(face, begun, parts):
    face.db.session.add(User(name="ada"))
    begun.settle(200)
    begun.leave(begun.token)
    begun.token = None
    return BlockingBody(begun, parts)


@alone
def test_each_part_is_made_within_the_request(face, told):
    """R16, R23: the thread that sends the body knows the request while a part is made, and not in between."""
    with request(face) as begun:
        body = _body(face, begun, Parts(face, 100))
        places = []

        def send():
            for part in body:
                assert part == "GET /"
                places.append(place(face))

        threading.Thread(target=send).start()
        told.closed(1)
    assert places == [nobody] * 100


@alone
@pytest.mark.parametrize("end", ["sent", "left", "dropped", "raised", "never begun"])
def test_a_body_is_closed_once_and_its_unit_ends_once(face, told, end):
    """R16: whatever becomes of the body."""
    parts = Parts(face, 2, LookupError("too late") if end == "raised" else None)
    with request(face) as begun:
        body = _body(face, begun, parts)
        if end == "raised":
            with pytest.raises(LookupError):
                list(body)
        elif end == "sent":
            assert list(body) == ["GET /"] * 2
        elif end != "never begun":
            next(body)
        if end == "dropped":
            del body
            gc.collect()
        else:
            body.close()
            body.close()
    assert (parts.closed, len(told.closed())) == (1, 1)


@alone
def test_a_body_whose_closing_fails(face, told):
    """R16: an error of the application's `close()` is its own; the unit has ended all the same, and nothing is current."""

    class Bad(Parts):
        def close(self):
            raise LookupError("mine")

    with request(face) as begun:
        body = _body(face, begun, Bad(face))
        next(body)
        with pytest.raises(LookupError, match="mine"):
            body.close()
        assert len(told.closed()) == 1
        assert place(face) is nobody


@alone
def test_a_part_made_ahead_comes_first(face):
    """R14: where only the first part brings the status, it is made before the work is settled."""
    with request(face) as begun:
        body = BlockingBody(begun, iter(["a", "b"]))
        assert body.ahead()
        assert list(body) == ["a", "b"]
    with request(face) as begun:
        assert not BlockingBody(begun, iter([])).ahead()


# ------------------------------------------------------------------------------------ bad input


@alone
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"commit": "maybe"}, "commit='maybe': give 'auto' or 'explicit'"),
        ({"commit": None}, "commit=None: give 'auto' or 'explicit'"),
        ({"commit_if": 400}, "commit_if=400: give a function of the status"),
        ({"commit_if": bool, "commit": "explicit"}, "commit_if= has no say with commit='explicit'"),
    ],
)
def test_bad_options(face, arguments, said):
    """R50: what cannot be meant is refused when the application is put together."""
    with pytest.raises(BadOption, match=re.escape(said)):
        BlockingBoundary(face.db, **arguments)


@alone
def test_a_rule_that_does_not_exist_is_refused(make_face):
    """R14: a misspelt rule is named with those that there are, and not taken for none."""
    face = make_face()
    with pytest.raises(BadOption, match=r"comit=…: there is no such rule\. The rules are commit, commit_if, position_cookie"):
        Boundary(face.db, comit="explicit")


def test_the_wrong_database(face):
    """R50: something else than a `Database` is refused by name."""
    for wrong in (face.db.engine, None, face.db.unit, "sqlite://"):
        with pytest.raises(BadOption, match=f"{type(wrong).__name__} is not a Database"):
            BlockingBoundary(wrong)
        with pytest.raises(BadOption, match=f"{type(wrong).__name__} is not a Database or AsyncDatabase"):
            Boundary(wrong)


@alone
def test_a_database_for_asyncio_on_a_host_that_blocks(face):
    """R50: its COMMIT could not be awaited there."""
    with pytest.raises(BadOption, match="AsyncDatabase is not a Database"):
        BlockingBoundary(tenure.AsyncDatabase("sqlite+aiosqlite://"))
