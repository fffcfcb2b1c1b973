import re

import falcon
import falcon.asgi
import pytest
from falcon import testing
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from tenure import AsyncDatabase, Database
from tenure.exceptions import BadOption, DatabaseClosed, Overloaded
from tenure.web.falcon import in_units

from support.asgi import run
from support.face import drive
from support.models import Pledge, User

pytestmark = pytest.mark.dialects("sqlite", "postgresql")

alone = pytest.mark.drivers("sqlite", "aiosqlite")  # where the database plays no part
wsgi = pytest.mark.drivers("sqlite")


class Site:
    """An application of either kind, whose responders, middleware and error handlers are written once, as coroutines."""

    def __init__(self, face, responder, *, middleware=(), **given):
        self.face = face
        self.app = falcon.asgi.App(middleware=middleware) if face.is_async else falcon.App(middleware=middleware)
        self.app.add_route("/", _resource(face, responder))
        self.served = in_units(self.app, face.db, **given)

    def handle(self, kind, handler):
        async def handled(req, resp, error, params):
            await handler(resp, error)

        self.app.add_error_handler(kind, handled if self.face.is_async else lambda *given: drive(handled(*given)))

    def post(self, path="/"):
        async def post():
            async with testing.ASGIConductor(self.served) as conductor:
                return await conductor.simulate_post(path)

        return run(self.face, post()) if self.face.is_async else testing.simulate_post(self.served, path)


def _resource(face, responder):
    class Async:
        async def on_post(self, req, resp):
            await responder(req, resp)

    class Blocking:
        def on_post(self, req, resp):
            drive(responder(req, resp))

    return Async() if face.is_async else Blocking()


class Writing:
    """Falcon's middleware, which writes a row when it sees an answer."""

    def __init__(self, face, name):
        self.face, self.name = face, name

    def process_response(self, req, resp, resource, succeeded):
        self.face.session.add(User(name=self.name))

    async def process_response_async(self, req, resp, resource, succeeded):
        self.process_response(req, resp, resource, succeeded)


# ------------------------------------------------------------------------------- where the session comes from


@alone
def test_a_decorated_responder_gets_its_session(face, stored):
    """R22: as a parameter of its own beside those of the path; it joins the request's unit."""
    unit = face.db.unit

    if face.is_async:

        class Page:
            @unit
            async def on_post(self, req, resp, session, *, name):
                session.add(User(name=name))
                resp.media = session is face.db.session
    else:

        class Page:
            @unit
            def on_post(self, req, resp, session, *, name):
                session.add(User(name=name))
                resp.media = session is face.db.session

    async def home(req, resp):
        raise NotImplementedError

    site = Site(face, home)
    site.app.add_route("/{name}", Page())

    assert (site.post("/ada").json, stored()) == (True, ["ada"])


# ---------------------------------------------------------------------------------- what the answer means


@pytest.mark.parametrize("how", ["return", "raise", "stream"])
def test_error_handlers_see_what_commit_raises(face, stored, told, how):
    """R14: a handler that makes 409 of an IntegrityError does so for a COMMIT that fails, and nothing of the answer is left."""

    async def parts():
        yield b"a body for nobody"

    async def post(req, resp):
        face.session.add(User(name="ada"))
        await face.session.flush()
        face.session.add(Pledge(user_id=4711))
        if how == "raise":
            raise falcon.HTTPSeeOther("/elsewhere")
        resp.text = "a body for nobody"
        if how == "stream":
            resp.text, resp.stream = None, (parts() if face.is_async else iter([b"a body for nobody"]))

    async def taken(resp, error):
        count = await face.session.scalar(select(func.count()).select_from(User))
        resp.status, resp.text = 409, None if how == "stream" else f"taken, {count}"

    site = Site(face, post)
    site.handle(IntegrityError, taken)
    answer = site.post()

    assert (answer.status_code, answer.text) == (409, "" if how == "stream" else "taken, 0")
    assert (stored(), stored(Pledge.id), face.out()) == ([], [], 0)
    assert told.closed() == [("POST /", "rolled back", "IntegrityError")]


@alone
def test_all_middleware_belongs_to_the_work(face, stored):
    """R14: what a middleware writes when it sees the answer is committed, whether it was added before the units or after."""

    async def post(req, resp):
        face.session.add(User(name="ada"))

    site = Site(face, post, middleware=[Writing(face, "before")])
    site.app.add_middleware(Writing(face, "later"))

    assert site.post().status_code == 200
    assert stored() == ["ada", "before", "later"]


@alone
def test_an_answer_that_cannot_be_rendered_is_no_success(face, stored, told):
    """R14: Falcon renders `resp.media` last of all, but not after the COMMIT."""

    async def post(req, resp):
        face.session.add(User(name="ada"))
        resp.media = object()

    assert Site(face, post).post().status_code == 500
    assert (stored(), told.closed()) == ([], [("POST /", "rolled back", "status 500")])


@alone
@pytest.mark.leaves("tasks")  # below Falcon 4.4 its test client forgets one of its own where the application raises
def test_an_error_that_falcon_lets_through_ends_the_unit(face, stored, told):
    """R1: a handler that raises it again keeps Falcon from seeing an answer; the unit is rolled back, and nothing stays behind."""

    async def post(req, resp):
        face.session.add(User(name="ada"))
        await face.session.flush()
        raise LookupError

    async def raised(resp, error):
        raise error

    site = Site(face, post)
    site.handle(Exception, raised)
    with pytest.raises(LookupError):
        site.post()

    assert (stored(), face.out(), face.db.current_place.here()) == ([], 0, None)
    assert told.closed() == [("POST /", "rolled back", "LookupError")]


@alone
def test_an_application_has_its_own_answer_for_too_many_requests(face, told):
    """R37: the 503 comes from an error handler, and a later one takes its place."""

    async def post(req, resp):
        assert face.session
        raise Overloaded("the waiting room is full", 7)

    async def sorry(resp, error):
        resp.status, resp.text = 429, "sorry"

    site = Site(face, post)
    first = site.post()
    site.handle(Overloaded, sorry)

    assert (first.status_code, first.headers["Retry-After"], site.post().status_code) == (503, "7", 429)
    assert [reason for _, _, reason in told.closed()] == ["Overloaded", "status 429"]


@pytest.mark.drivers("aiosqlite")
def test_a_websocket_has_no_unit(face, stored):
    """R16: each exchange opens its own."""

    class Chat:
        async def on_websocket(self, req, ws):
            await ws.accept()
            async with face.db.unit() as session:
                session.add(User(name=await ws.receive_text()))
            await ws.send_text(f"{face.db.current_place.here()}")

    async def talk():
        app = falcon.asgi.App()
        app.add_route("/", Chat())
        async with (
            testing.ASGIConductor(in_units(app, face.db)) as conductor,
            conductor.simulate_ws() as ws,
        ):
            await ws.send_text("ada")
            return await ws.receive_text()

    assert (run(face, talk()), stored()) == ("None", ["ada"])


# ----------------------------------------------------------------------------------------------- registering


@pytest.mark.drivers("aiosqlite")
def test_the_database_is_closed_with_the_application(face):
    """R31: with `close=True`, when the server ends its lifespan."""

    async def post(req, resp):
        face.session.add(User(name="ada"))

    assert Site(face, post, close=True).post().status_code == 200

    async def ask():
        async with face.db.unit() as session:
            await session.scalar(select(User.name))

    with pytest.raises(DatabaseClosed):
        face.run(ask())


@wsgi
def test_bad_input(face, tmp_path):
    """R22: on something else, twice, with a closed database, or one for asyncio on WSGI: each says what to change."""
    closed = Database("sqlite://")
    closed.close()
    asynchronous = AsyncDatabase(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    app = falcon.App()
    served = in_units(app, face.db)
    cases = [
        (lambda: in_units(object(), face.db), "object is not a Falcon application"),
        (lambda: in_units(served, face.db), "registered with 'main' already. Leave one in_units(app, db) out"),
        (lambda: in_units(app, face.db), "registered with 'main' already"),
        (lambda: in_units(falcon.App(), closed), "'main' is closed"),
        (lambda: in_units(falcon.App(), asynchronous), "AsyncDatabase is not a Database"),
        (lambda: in_units(falcon.App(), face.db, close=True), "close=…: a WSGI server does not tell when it ends"),
        (lambda: in_units(falcon.asgi.App(), face.db, commit="always"), "commit='always'"),
    ]
    for call, message in cases:
        with pytest.raises(BadOption, match=re.escape(message)):
            call()
