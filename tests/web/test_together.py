"""Two databases in one request. The hosts' part is in the contract; here is what the error says, and what may happen around it."""

import contextlib
import gc
import re
import wsgiref.util
from types import SimpleNamespace

import flask
import pytest
from sqlalchemy.exc import IntegrityError

from tenure.core.plan import Outcome
from tenure.exceptions import Overloaded
from tenure.web import together
from tenure.web.answers import refusal
from tenure.web.asgi import UnitMiddleware as OnLoop
from tenure.web.flask import Tenure
from tenure.web.wsgi import UnitMiddleware

from support.asgi import call, run
from support.face import drive
from support.models import Pledge, User

pytestmark = pytest.mark.dialects("postgresql")  # SQLite has one writer

AT = r"\(test_together\.py:\d+\)"
ORDER = pytest.mark.parametrize("outside", [0, 1], ids=["first-outside", "first-inside"])


@pytest.fixture
def pair(make_face):
    """`orders`, whose unit opens first, and `audit`."""
    return make_face(name="orders"), make_face(name="audit")


async def write(pair, *, fails=None):
    for number, face in enumerate(pair):
        session = face.session
        session.add(User(name=face.db.name))
        await session.flush()
        if number == fails:
            session.add(Pledge(user_id=4711))
            await session.flush()


class Site:
    """An application in two boundaries, on either kind of host; ``ask()`` gives the status, or raises what reached the server."""

    def __init__(self, pair, work, outside, *, body=None, between=None):
        self.pair, self.work, self.body = pair, work, body or [b"done"]
        loop = pair[0].is_async
        wrap = OnLoop if loop else UnitMiddleware
        inner, outer = pair[1 - outside].db, pair[outside].db
        app = wrap(self.loop if loop else self.wsgi, inner)
        self.app = wrap(app if between is None else between(app), outer)

    async def loop(self, scope, receive, send):
        status = await self.work()
        await send({"type": "http.response.start", "status": status, "headers": []})
        for part in self.body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def wsgi(self, environ, start_response):
        start_response(f"{drive(self.work())} x", [])
        return self.body

    def ask(self):
        if self.pair[0].is_async:
            return run(self.pair[0], call(self.app))[0]["status"]
        said = []
        environ = {}
        wsgiref.util.setup_testing_defaults(environ)
        body = self.app(environ, lambda status, *_: said.append(int(status.split()[0])))
        with contextlib.closing(body) if hasattr(body, "close") else contextlib.nullcontext():
            list(body)
        return said[0]


@ORDER
@pytest.mark.parametrize("stream", [False, True], ids=["list", "stream"])
def test_they_commit_in_the_order_in_which_they_were_opened(pair, told, stored, outside, stream):
    """R12: whichever boundary is the outer one, the unit that opened first commits first, before the first byte."""
    done = []

    async def work():
        await write(pair)
        for face in pair:
            face.db.on_commit(done.append, face.db.name)
        return 201

    body = (part for part in [b"a", b"b"]) if stream else None

    assert Site(pair, work, outside, body=body).ask() == 201
    assert done == ["orders", "audit"]
    assert stored() == ["audit", "orders"]
    assert {(outcome, reason) for _, outcome, reason in told.closed(2)} == {("committed", "status 201")}


@ORDER
def test_the_error_says_what_the_other_database_has_kept(pair, told, stored, outside):
    """R12: when the second COMMIT fails, its error names the database that is committed, and the one that is not."""

    async def work():
        await write(pair, fails=1)
        return 200

    with pytest.raises(IntegrityError) as failed:
        Site(pair, work, outside).ask()

    assert failed.value.tenure_outcomes == {"orders": Outcome.COMMITTED, "audit": Outcome.ROLLED_BACK}
    (note,) = failed.value.__notes__
    assert re.fullmatch(
        rf"tenure: 2 databases are as many transactions: 'orders' {AT} is committed, 'audit' {AT} is rolled back\. Undo by hand what is"
        r" committed, or have a job repeat the rest\. \[several-databases\]",
        note,
    )
    assert stored() == ["orders"]
    assert {outcome for _, outcome, _ in told.closed(2)} == {"committed", "rolled back"}


@ORDER
def test_when_the_first_fails_the_second_is_not_committed(pair, told, stored, outside):
    """R12: what is not committed yet when one fails is rolled back, and the error says that nothing was stored."""

    async def work():
        await write(pair, fails=0)
        return 200

    with pytest.raises(IntegrityError, match="pledges") as failed:
        Site(pair, work, outside).ask()

    assert re.search(
        rf"'orders' {AT} is rolled back, 'audit' {AT} is rolled back\. Nothing was stored", failed.value.__notes__[0]
    )
    assert (stored(), len(told.closed(2))) == ([], 2)


@ORDER
def test_an_error_of_the_application_undoes_both(pair, told, stored, outside):
    """R12, R15: what the handler raises rolls back both."""

    async def work():
        await write(pair)
        raise LookupError

    with pytest.raises(LookupError):
        Site(pair, work, outside).ask()
    assert (stored(), {outcome for _, outcome, _ in told.closed(2)}) == ([], {"rolled back"})


@pytest.mark.faces("sync")
def test_the_status_that_the_client_gets_counts(pair, told, stored):
    """R12: what stands between two boundaries may still say no: then neither database keeps anything."""

    def between(app):
        def fails(environ, start_response):
            app(environ, lambda *_: None)
            start_response("500 no", [])
            return [b""]

        return fails

    async def work():
        await write(pair)
        return 200

    assert Site(pair, work, 0, between=between).ask() == 500
    assert (stored(), {outcome for _, outcome, _ in told.closed(2)}) == ([], {"rolled back"})


@pytest.mark.faces("sync")
def test_what_another_database_has_kept_must_not_be_sent_again(pair):
    """R12, R37: an `Overloaded` after a COMMIT is no 503, which would make a client repeat what is stored."""
    error = Overloaded("full", retry_after=1.0)
    assert refusal(error) is not None
    error.tenure_outcomes = {"orders": Outcome.COMMITTED}
    assert refusal(error) is None


@pytest.mark.faces("sync")
def test_two_of_one_name_are_told_apart(make_face):
    """R12: databases without names of their own are told apart by their place in line."""
    pair = make_face(), make_face()

    async def work():
        for face, name in zip(pair, ("ada", "bob"), strict=True):
            face.session.add(User(name=name))
        await face.session.flush()
        face.session.add(Pledge(user_id=4711))
        return 200

    with pytest.raises(IntegrityError) as failed:
        Site(pair, work, 0).ask()
    assert failed.value.tenure_outcomes == {"main #1": Outcome.COMMITTED, "main #2": Outcome.ROLLED_BACK}


@pytest.mark.faces("sync")
def test_a_flask_error_handler_sees_the_note(pair, stored):
    """R12, R14: an application of two databases has error handlers for the COMMIT of either."""
    app = flask.Flask("shop")
    Tenure(app, pair[0].db)
    Tenure(app, pair[1].db)

    @app.post("/")
    def view():
        with pair[0].db.unit(), pair[1].db.unit():
            pair[0].db.session.add(User(name="ada"))
            pair[1].db.session.add(Pledge(user_id=4711))
        return "done"

    @app.errorhandler(IntegrityError)
    def handled(error):
        return error.__notes__[-1], 409

    response = app.test_client().post("/")

    assert (response.status_code, stored()) == (409, ["ada"])
    assert re.search(rf"'orders' {AT} is committed, 'audit' {AT} is rolled back", response.text)


def test_databases_that_go_while_a_request_looks_around(face):
    """R12: a request that looks for other databases' units is not disturbed by one that the garbage collector takes at that moment."""

    class Known:
        current_place = face.db.current_place

        def __init__(self):
            self.itself = self
            together.serves(self)

    alike, kept, before = SimpleNamespace(alone=False, awaited=False), [Known() for _ in range(40)], gc.get_threshold()
    try:
        for number in range(100):
            gc.collect()
            Known()
            gc.set_threshold(gc.get_count()[0] + number % 10)  # after that many objects more
            together.join(alike)
            gc.set_threshold(*before)
    finally:
        gc.set_threshold(*before)
        kept.clear()
        gc.collect()
