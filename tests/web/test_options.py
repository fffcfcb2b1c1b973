"""The options of the units of requests. That every host passes on what it knows of a request is in the contract."""

import contextlib

import pytest
from sqlalchemy import insert, select, text

from tenure.exceptions import BadOption, DeadlineExceeded, ReadOnlyUnit
from tenure.web.blocking import BlockingBoundary, BlockingRequest

from support.models import User

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]
TENANT = text("SELECT current_setting('app.tenant', true)")


@contextlib.contextmanager
def request(face, given=None, **boundary):
    begun = BlockingRequest(BlockingBoundary(face.db, **boundary), "GET /", given)
    try:
        yield begun
    finally:
        begun.finish()
        begun.leave(begun.token)


def test_a_request_that_may_only_read(face, stored, told):
    """R15, R38: with `readonly=` the requests for which it holds cannot write, and say so at the line that tries."""
    boundary = {"readonly": lambda environ: environ["REQUEST_METHOD"] == "GET"}
    with request(face, {"REQUEST_METHOD": "GET"}, **boundary) as begun:
        with pytest.raises(ReadOnlyUnit, match=r"INSERT at test_options\.py:"):
            face.db.session.execute(insert(User).values(name="ada"))
        assert face.db.session.scalars(select(User.name)).all() == []
        begun.settle(200)
    with request(face, {"REQUEST_METHOD": "POST"}, **boundary) as begun:
        face.db.session.add(User(name="bob"))
        begun.settle(201)

    assert stored() == ["bob"]
    assert [outcome for _, outcome, _ in told.closed()] == ["read only", "committed"]


@pytest.mark.drivers("psycopg")
def test_settings_of_the_request(face):
    """R15: `settings=` are asked for once, when the unit opens, and hold for each of its transactions and for the body."""
    asked = []

    def settings(scope):
        asked.append(scope)
        return {"app.tenant": scope["tenant"]} if scope["tenant"] else None

    with request(face, {"tenant": "a"}, settings=settings) as begun:
        assert asked == []
        session = face.db.session
        assert session.scalar(TENANT) == "a"
        session.add(User(name="ada"))
        session.commit()
        assert session.scalar(TENANT) == "a"
        begun.settle(200)
        assert session.scalar(select(text("current_setting('app.tenant', true)"))) == "a"
    with request(face, {"tenant": "b"}, settings=settings) as begun:
        begun.settle(200)
        assert face.db.session.scalar(select(text("current_setting('app.tenant', true)"))) == "b"
    with request(face, {"tenant": None}, settings=settings) as begun:
        assert face.db.session.scalar(TENANT) in ("", None)
        begun.settle(200)

    assert asked == [{"tenant": "a"}, {"tenant": "b"}, {"tenant": None}]


@pytest.mark.drivers("psycopg")
def test_a_deadline_of_the_request(face, stored):
    """R15, R40: `timeout=` ends the statement of a request that takes too long, and nothing is stored."""
    with request(face, timeout=0.1) as begun:
        face.db.session.add(User(name="ada"))
        with pytest.raises(DeadlineExceeded, match="'GET /'"):
            face.db.session.execute(text("SELECT pg_sleep(5)"))
        begun.settle(500)
    assert stored() == []


@pytest.mark.drivers("sqlite")
@pytest.mark.parametrize("given", [{"readonly": "yes"}, {"timeout": 0}, {"settings": ["a"]}, {"settings": {"app.tenant": "a"}}])
def test_what_cannot_hold_is_refused_when_it_is_registered(face, given):
    """R15: a value that the option does not take, or the database cannot keep, is no surprise of the first request."""
    with pytest.raises(BadOption, match=next(iter(given))):
        BlockingBoundary(face.db, **given)


@pytest.mark.drivers("sqlite")
def test_a_function_that_gives_what_the_option_does_not_take(face):
    """R15: what a function of the application gives is held to the same rules."""
    with request(face, readonly=lambda _: "yes"), pytest.raises(BadOption, match="readonly='yes'"):
        _ = face.db.session
