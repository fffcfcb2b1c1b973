"""What one request means, on every host: the probes are written once and know no framework."""

import itertools
import logging
import re
import time

import pytest
import sqlalchemy as sa
from sqlalchemy import func, insert, select, text

from contract.host import Answer, Gate, Mistaken, Raised, Stream
from tenure import Admission
from tenure.core.events import HookFailed, WorkLost
from tenure.exceptions import NoUnit, Overloaded, ReadOnlyUnit, UnitEnded

from support.face import PATIENCE, settle
from support.http import at_once
from support.models import Order, Pledge, User
from support.probe import stored as stored_in

pytestmark = pytest.mark.dialects("sqlite", "postgresql")

HERE = re.escape(__file__.rpartition("/")[2]) + r":\d+"


# ------------------------------------------------------------------------------- the first byte


def test_the_row_is_there_with_the_status_line(face, serve, stored, gate):
    """R14: the moment a client has the status, another connection sees what the request stored."""

    async def parts():
        yield "first\n"
        await gate.passed()
        yield "last\n"

    async def post():
        face.session.add(User(name="ada"))
        return Stream(parts(), 201)

    talk = serve(face, {"/": post}).talk(method="POST")

    assert talk.status() == 201
    assert stored() == ["ada"]
    gate.open()
    talk.headers()
    assert talk.rest() == "first\nlast\n"


async def _pledge_for_nobody(face, hooks):
    face.session.add(User(name="ada"))
    await face.session.flush()
    face.session.add(Pledge(user_id=4711))
    face.db.on_commit(hooks.append, "committed")
    face.db.on_rollback(hooks.append, "rolled back")


@pytest.mark.parametrize("ending", ["return", "redirect", "stream"])
def test_a_failing_commit_is_a_500(face, serve, stored, told, ending):
    """R14: when COMMIT fails the client gets a 500, nothing is stored, no body is sent and no hook for a commit runs."""
    hooks, closed = [], []

    async def parts():
        try:
            yield "a body for nobody"
        finally:
            closed.append(True)

    async def post():
        await _pledge_for_nobody(face, hooks)
        if ending == "redirect":
            raise Raised(303, "/elsewhere")
        return Answer(text="a body for nobody") if ending == "return" else Stream(parts())

    async def count():
        return Answer(text=str(await face.session.scalar(select(func.count()).select_from(User))))

    site = serve(face, {"/": post, "/count": count})
    response = site.get(method="POST")

    assert (response.status, "nobody" in response.text) == (500, False)
    assert (stored(), stored(Pledge.id), hooks) == ([], [], ["rolled back"])
    assert told.closed(1) == [("POST /", "rolled back", "IntegrityError")]
    assert (site.get("/count").text, face.out()) == ("0", 0)


def test_the_databases_own_error_is_not_wrapped(face, serve, told, caplog):
    """R50: what the framework reports for a failing COMMIT is the database's IntegrityError."""

    async def post():
        await _pledge_for_nobody(face, [])
        return Answer()

    with caplog.at_level(logging.DEBUG, "tenure"):
        serve(face, {"/": post}).get()
        told.closed(1)

    assert "IntegrityError" in caplog.text
    assert "tenure.exceptions" not in caplog.text


@pytest.mark.dialects("postgresql")
def test_two_databases_end_in_order_and_never_look_like_one(make_face, serve, told):
    """R12: they commit in the order in which their units opened; when one fails, the client gets a 500 and later ones keep nothing."""
    pair = [make_face(name=name) for name in ("orders", "audit")]
    hooks = []

    def probe(*names, fails=None):
        async def work():
            for face in sorted(pair, key=lambda face: names.index(face.db.name)):
                face.session.add(User(name=f"{face.db.name} {fails}"))
                await face.session.flush()
                if face.db.name == fails:
                    face.session.add(Pledge(user_id=4711))
                    await face.session.flush()
                face.db.on_commit(hooks.append, face.db.name)
            return Answer()

        return work

    ways = {"/both": probe("orders", "audit"), "/swapped": probe("audit", "orders", fails="")}
    ways |= {f"/{name}": probe("orders", "audit", fails=name) for name in ("orders", "audit")}
    site = serve(pair[0], ways, second=pair[1].db)

    seen = {}
    for path in ways:
        status = site.get(path).status
        seen[path] = (status, hooks[:])
        hooks.clear()

    assert seen == {
        "/both": (200, ["orders", "audit"]), "/swapped": (200, ["audit", "orders"]),
        "/orders": (500, []), "/audit": (500, ["orders"]),
    }  # fmt: skip
    assert stored_in(pair[0]) == ["audit ", "audit None", "orders ", "orders None", "orders audit"]
    assert (len(told.closed(8)), [face.out() for face in pair]) == (8, [0, 0])


# ------------------------------------------------------------------------------- too many requests


@pytest.fixture
def full(make_face, serve, gate):
    """``full(admission, **probes)`` serves probes of *face* on a pool of one connection, which another request holds."""

    def start(admission, probes):
        face = make_face(pool_size=1, max_overflow=0, admission=admission)

        async def hold():
            await face.session.execute(insert(User).values(name="holder"))
            await gate.passed()
            return Answer()

        site = serve(face, {"/hold": hold, **{f"/{name}": probe(face) for name, probe in probes.items()}})
        talk = site.talk("/hold")
        gate.reached()
        started.append(talk)
        return face, site

    started = []
    yield start
    for talk in started:
        gate.open()
        talk.status()
        talk.headers()
        talk.rest()


def _asking(face):
    async def ask():
        await face.session.execute(select(User.name))
        return Answer()

    return ask


def _adding(face):
    async def add():
        face.session.add(User(name="ada"))
        return Answer()

    return add


def _catching(face):
    async def catch():
        try:
            await face.session.execute(select(User.name))
        except Overloaded:
            return Answer(429)
        return Answer()

    return catch


@pytest.mark.parametrize("where", [_asking, _adding], ids=["handler", "commit"])
def test_too_many_requests_are_a_503(full, told, caplog, where):
    """R37: a request for which no connection can be had in time is answered at once by a 503 that says when to come again."""
    with caplog.at_level(logging.DEBUG, "tenure"):
        face, site = full(Admission(max_waiting=0), {"ask": where})
        response = site.get("/ask")
        closed = told.closed(1)

    assert (response.status, response.headers.get("retry-after")) == (503, "1")
    assert closed == [("GET /ask", "rolled back", "Overloaded")]
    assert re.search(r"'GET /ask' .*: rolled back, Overloaded, ", caplog.text)
    assert face.db.status().refused == 1


def test_an_application_that_catches_overloaded_decides_itself(full):
    """R37: the 503 is for what nobody has caught."""
    _, site = full(Admission(max_waiting=0), {"ask": _catching})
    response = site.get("/ask")

    assert (response.status, "retry-after" in response.headers) == (429, False)


def test_a_drained_database_is_a_503(face, serve):
    """R31: a request that comes while its process is at its end is sent elsewhere."""
    site = serve(face, {"/ask": _asking(face)})
    face.run(settle(face.db.drain(0.0)))
    response = site.get("/ask")

    assert (response.status, response.headers.get("retry-after")) == (503, "1")


def test_an_exhausted_pool_is_a_500(full):
    """R36: one that has waited for the whole time in vain is not asked to do it again."""
    _, site = full(Admission(max_wait=0.05), {"ask": _asking})
    response = site.get("/ask")

    assert (response.status, "retry-after" in response.headers) == (500, False)


# ---------------------------------------------------------------------------- what an answer means


def _table(face):
    """Each way to answer, as a probe; the path says which user it would store."""

    async def write(name):
        face.session.add(User(name=name))
        await face.session.flush()

    def returns(status):
        async def probe():
            await write(f"return {status}")
            return Answer(status)

        return probe

    def raises(error, name):
        async def probe():
            await write(name)
            raise error

        return probe

    return {
        "/200": returns(200),
        "/201": returns(201),
        "/302": returns(302),
        "/400": returns(400),
        "/404": returns(404),
        "/500": returns(500),
        "/redirect": raises(Raised(303, "/200"), "redirect"),
        "/raise-404": raises(Raised(404), "raise 404"),
        "/raise-200": raises(Raised(200), "raise 200"),
        "/handled": raises(Mistaken(), "handled"),
        "/error": raises(LookupError("a plain error"), "error"),
    }


def test_the_table_of_outcomes(face, serve, stored, told):
    """R15: an exception or a status of 400 and more rolls back, all else commits, however the status came about."""
    table = _table(face)
    site = serve(face, table)

    statuses = {path: site.get(path).status for path in table}

    assert statuses == {
        "/200": 200, "/201": 201, "/302": 302, "/400": 400, "/404": 404, "/500": 500,
        "/redirect": 303, "/raise-404": 404, "/raise-200": 200, "/handled": 409, "/error": 500,
    }  # fmt: skip
    assert stored() == ["raise 200", "redirect", "return 200", "return 201", "return 302"]
    outcomes = {name.removeprefix("GET "): outcome for name, outcome, _ in told.closed(len(table))}
    kept = {"/200", "/201", "/302", "/redirect", "/raise-200"}
    assert outcomes == {path: "committed" if path in kept else "rolled back" for path in table}
    assert face.out() == 0


def test_the_log_line_names_outcome_and_reason(face, serve, told, caplog):
    """R15: one line for each request says what became of its work, and why."""
    site = serve(face, _table(face))
    with caplog.at_level(logging.DEBUG, "tenure"):
        for path in ("/201", "/404"):
            site.get(path)
        told.closed(2)

    lines = [record.getMessage() for record in caplog.records if record.name == "tenure"]
    assert re.match(rf"tenure: 'GET /201' \({HERE}\) on 'main': committed, status 201, [\d.]+ ms", lines[0])
    assert re.match(rf"tenure: 'GET /404' \({HERE}\) on 'main': rolled back, status 404, [\d.]+ ms", lines[1])
    assert len(lines) == 2


def test_the_rule_can_be_replaced(face, serve, stored):
    """R15: `commit_if` is the one place where an application says otherwise."""
    site = serve(face, _table(face), commit_if=lambda status: status in (400, 404))

    for path in ("/200", "/400", "/404", "/raise-404", "/error", "/redirect"):
        site.get(path)

    assert stored() == ["raise 404", "return 400", "return 404"]


def test_commits_of_the_applications_own(face, serve, stored, told):
    """R15: with `commit="explicit"` what was not committed is rolled back; where the answer promised success that is told."""

    async def saved():
        face.session.add(User(name="saved"))
        await face.session.commit()
        return Answer()

    async def lost():
        face.session.add(User(name="lost"))
        return Answer()

    async def refused():
        face.session.add(User(name="refused"))
        await face.session.flush()
        return Answer(400)

    site = serve(face, {"/saved": saved, "/lost": lost, "/refused": refused}, commit="explicit")

    assert [site.get(path).status for path in ("/saved", "/lost", "/refused")] == [200, 200, 400]
    assert stored() == ["saved"]
    (warning,) = told.of(WorkLost)
    assert re.search(rf"'GET /lost' \({HERE}\) answered 200, but 1 object .* \[lost-work\]", warning.message)


def test_a_swallowed_failure_is_not_a_success(face, serve, stored, told):
    """R7: a handler that catches an error of the database without undoing it, and answers 200, gets a 500."""

    async def twice():
        face.session.add(User(name="ada"))
        await face.session.flush()
        face.session.add(User(name="ada"))
        try:
            await face.session.flush()
        except sa.exc.IntegrityError:
            pass
        return Answer()

    assert serve(face, {"/": twice}).get().status == 500
    assert stored() == []
    assert told.closed(1) == [("GET /", "rolled back", "RollbackOnly")]


def test_functions_below_join_the_request(face, serve, stored):
    """R22: a decorated function in a request works in the request's unit, and its failure undoes the request."""

    async def store(session, name):
        session.add(User(name=name))
        return session.raw is face.db.session

    store = face.decorated(store)

    async def kept():
        return Answer(text=f"{await store('kept')}")

    async def undone():
        await store("undone")
        return Answer(422)

    site = serve(face, {"/kept": kept, "/undone": undone})

    assert (site.get("/kept").text, site.get("/undone").status) == ("True", 422)
    assert stored() == ["kept"]


def test_hooks_run_once_the_outcome_is_known(face, serve, stored, told):
    """R8: a hook sees the row, no connection is held and no unit is current; one that raises changes nothing."""
    seen = []

    def hook(name):
        try:
            current = face.db.current
        except NoUnit:
            current = None
        seen.append((name, stored(), face.out(), current))

    async def probe():
        face.session.add(User(name="ada"))
        face.db.on_commit(hook, "first")
        face.db.on_commit(lambda: 1 / 0)
        face.db.on_commit(hook, "third")
        face.db.on_rollback(hook, "never")
        return Answer(text=str(len(seen)))

    response = serve(face, {"/": probe}).get()

    assert (response.status, response.text) == (200, "0")
    assert seen == [("first", ["ada"], 0, None), ("third", ["ada"], 0, None)]
    assert [type(failed.error) for failed in told.of(HookFailed)] == [ZeroDivisionError]


@pytest.mark.dialects("postgresql")
def test_the_options_of_the_requests_units(face, serve):
    """R15: the units open with the application's options, which may go by what the host knows of the request."""
    asked = []

    def settings(request):
        asked.append(request)
        return {"app.who": "ada"}

    async def probe():
        try:
            await face.session.execute(insert(User).values(name="ada"))
        except ReadOnlyUnit:
            return Answer(text=await face.session.scalar(text("SELECT current_setting('app.who')")))
        return Answer(500)

    response = serve(face, {"/": probe}, readonly=True, timeout=PATIENCE, settings=settings).get()

    assert (response.status, response.text) == (200, "ada")
    assert [one is None for one in asked] == [False]


# ------------------------------------------------------------------------------------- the body


def test_a_body_that_reads_holds_nothing_in_between(make_face, host, serve, told):
    """R16: 50 streams on a pool of 5 read between their parts, hold 0 connections while they wait, and others are served."""
    face = make_face(pool_size=5, max_overflow=0)
    gates = [Gate(is_async=face.is_async) for _ in range(2)]
    count = 50 if face.is_async or host.faces == ("sync",) else 20  # where each takes one of the 40 threads of a loop

    async def parts():
        for gate in gates:
            yield f"{await face.session.scalar(select(func.count()).select_from(User))}\n"
            await gate.passed()

    async def stream():
        await face.session.scalar(select(func.count()).select_from(User))
        return Stream(parts())

    async def quick():
        face.session.add(User(name=f"number {await face.session.scalar(select(func.count()).select_from(User))}"))
        return Answer()

    site = serve(face, {"/stream": stream, "/quick": quick}, threads=count + 4)
    talks = [site.talk("/stream") for _ in range(count)]

    for gate in gates:
        gate.reached(count)
        assert face.out() == 0
        assert site.get("/quick").status == 200
        gate.open(count)
    assert [(talk.status(), talk.headers(), talk.rest())[::2] for talk in talks] == [(200, "0\n1\n")] * count
    assert len(told.closed(count + 2)) == count + 2


@pytest.mark.parametrize("how", ["flush", "insert", "text"])
def test_a_body_that_writes_raises_at_its_own_line(face, serve, stored, told, how):
    """R16: a write while the body is sent would be lost in silence, so it raises where it stands."""

    async def write():
        if how == "flush":
            face.session.add(User(name="late"))
            await face.session.flush()
        elif how == "insert":
            await face.session.execute(insert(User).values(name="late"))
        else:
            await face.session.execute(text("INSERT INTO users (name, balance) VALUES ('late', 0)"))

    async def parts():
        yield "first\n"
        try:
            await write()
        except ReadOnlyUnit as error:
            face.session.expunge_all()
            yield f"{error}\n"
        yield f"{await face.session.scalar(select(User.name))}\n"

    async def probe():
        face.session.add(User(name="ada"))
        return Stream(parts())

    _, message, name = serve(face, {"/": probe}).get().text.splitlines()

    assert re.search(rf"{HERE} after the answer of 'GET /' \({HERE}\) had been settled: .*\[read-only-unit\]", message)
    assert (name, stored()) == ("ada", ["ada"])
    assert [outcome for _, outcome, _ in told.closed(1)] == ["committed"]
    assert face.out() == 0


def test_a_body_that_opens_the_unit_late_may_not_write_either(face, serve, stored, told):
    """R16: where the handler did not touch the database, the body's unit says the same."""

    async def parts():
        yield "first\n"
        try:
            await face.session.execute(insert(User).values(name="late"))
        except ReadOnlyUnit as error:
            yield str(error)

    async def probe():
        return Stream(parts())

    message = serve(face, {"/": probe}).get().text

    assert re.search(rf"INSERT at {HERE} after the answer of 'GET /' \({HERE}\) had been settled", message)
    assert (stored(), told.closed(1)) == ([], [("GET /", "read only", "status 200")])


def test_a_body_may_write_in_a_unit_of_its_own(face, serve, stored):
    """R16: work that belongs to the body has its own unit, and is stored whatever became of the request."""

    async def parts():
        async with face.unit(propagation="new") as session:
            session.add(User(name="own"))
        yield "sent"

    async def probe():
        face.session.add(User(name="undone"))
        return Stream(parts(), 400)

    assert serve(face, {"/": probe}).get().text == "sent"
    assert stored() == ["own"]


def test_what_a_body_leaves_unwritten_is_told(face, serve, stored, told):
    """R16: an object that was added while the body was sent, and never flushed, is not lost in silence."""

    async def parts():
        yield "sent"
        face.session.add(User(name="late"))

    async def probe():
        await face.session.scalar(select(User.name))
        return Stream(parts())

    assert serve(face, {"/": probe}).get().text == "sent"
    told.closed(1)
    (warning,) = told.of(WorkLost)
    assert re.search(r"1 object not written yet came while the body was sent", warning.message)
    assert stored() == []


def left_out(face):
    """How many connections stay out; a stream's own thread may still be in its last read when the unit has ended."""
    ends = time.monotonic() + PATIENCE
    while face.out() and time.monotonic() < ends:
        time.sleep(0.01)
    return face.out()


def test_a_client_that_leaves_ends_the_unit(face, serve, stored, told, gate):
    """R16, R19: when the client has gone the body is closed, with its session still readable, and its unit ends once."""
    seen = []

    async def parts():
        try:
            yield "first\n"
            await gate.passed()
            for _ in itertools.count() if serve.ends_bodies else range(10):
                await face.session.scalar(select(User.name))
                yield "more\n" * 1000
        finally:
            if serve.closes_bodies:
                seen.append(await face.session.scalar(select(User.name)))

    async def probe():
        face.session.add(User(name="ada"))
        return Stream(parts())

    talk = serve(face, {"/": probe}).talk()
    assert talk.status() == 200
    gate.reached()
    talk.leave()
    gate.open()

    assert [outcome for _, outcome, _ in told.closed(1)] == ["committed"]
    assert (seen, stored(), left_out(face)) == (["ada"] * serve.closes_bodies, ["ada"], 0)


def test_a_body_that_raises_ends_the_unit(face, serve, stored, told):
    """R16: an error in the middle of the body cannot undo what was committed before it, and leaves nothing open."""

    async def parts():
        yield "first\n"
        await face.session.scalar(select(User.name))
        raise LookupError("too late")

    async def probe():
        face.session.add(User(name="ada"))
        return Stream(parts())

    response = serve(face, {"/": probe}).get()

    assert (response.status, response.text[:5]) == (200, "first")
    assert [outcome for _, outcome, _ in told.closed(1)] == ["committed"]
    assert (stored(), face.out()) == (["ada"], 0)


# ---------------------------------------------------------------------------------- afterwards


def test_work_after_the_response(face, serve, stored, told, gate):
    """R17: the request's session has ended at the line of the background task; its own unit stores its row."""
    seen = []

    async def store(session):
        session.add(User(name="later"))

    async def probe():
        session = face.session
        session.add(User(name="ada"))

        async def after():
            await gate.passed()
            for use in (lambda: session.scalar(select(User.name)), lambda: face.session.scalar(select(User.name))):
                try:
                    await use()
                except UnitEnded as error:
                    seen.append(str(error))
            await face.decorated(store)()
            gate._reached.release()

        return Answer(after=after)

    assert serve(face, {"/": probe}).get().status == 200
    told.closed(1)
    gate.open()
    gate.reached(2)

    assert len(seen) == 2
    for message in seen:
        assert re.search(rf"the session of 'GET /' \({HERE}\) ended, committed, .* used again at {HERE}\.", message)
    assert (stored(), face.out()) == (["ada", "later"], 0)


def test_a_request_without_sql_opens_nothing(make_face, serve, told):
    """R22, R32: no unit, no session, no connection."""
    face = make_face()
    connected = []
    sa.event.listen(face.sync_engine, "connect", lambda *_: connected.append(True))

    async def parts():
        yield "streamed"

    async def stream():
        return Stream(parts())

    async def plain():
        return Answer()

    async def refuse():
        raise Raised(404)

    site = serve(face, {"/plain": plain, "/stream": stream, "/refuse": refuse})

    assert [site.get(path).status for path in ("/plain", "/stream", "/refuse")] == [200, 200, 404]
    assert (told.closed(), connected) == ([], [])


def test_a_session_without_sql_takes_no_connection(make_face, serve, told):
    """R32: asking for the session opens a unit, but nothing reaches the database."""
    face = make_face()
    connected = []
    sa.event.listen(face.sync_engine, "connect", lambda *_: connected.append(True))

    async def probe():
        return Answer(text=str(face.session.in_transaction()))

    assert serve(face, {"/": probe}).get().text == "False"
    assert told.closed(1) == [("GET /", "read only", "status 200")]
    assert connected == []


def test_a_hundred_at_once_on_a_pool_of_5(make_face, serve, stored, told):
    """R22, R36: all are answered, each in its own session, every row is there, and at most 5 connections were out."""
    face = make_face(pool_size=5, max_overflow=0)
    sessions = []

    async def probe():
        session = face.session
        sessions.append(session.raw)
        count = await session.scalar(select(func.count()).select_from(User))
        session.add(Order(user=User(name=f"number {id(session.raw)}"), note=str(count)))
        await session.flush()
        return Answer(200 if face.db.session is session.raw else 500)

    site = serve(face, {"/": probe}, threads=20)
    statuses = [getattr(one, "status", one) for one in at_once(100, lambda _: site.get())]

    assert statuses == [200] * 100
    assert (len(set(map(id, sessions))), len(stored()), len(stored(Order.note))) == (100, 100, 100)
    assert {outcome for _, outcome, _ in told.closed(100)} == {"committed"}
    assert (face.out(), face.db.status().peak <= 5) == (0, True)
