import re

import bottle
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from webob import Request

from tenure import AsyncDatabase, Database
from tenure.exceptions import BadOption, NoUnit, Overloaded
from tenure.web.bottle import Tenure

from support.models import Pledge, User

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]

alone = pytest.mark.drivers("sqlite")  # where the database plays no part


@pytest.fixture
def app(face):
    app = bottle.Bottle()
    app.install(Tenure(face.db))
    return app


def ask(app, path="/", method="GET"):
    return Request.blank(path, method=method, environ={"wsgi.errors": _Nowhere()}).send(app, catch_exc_info=True)


class _Nowhere:
    def write(self, text):
        pass

    def flush(self):
        pass


# ------------------------------------------------------------------------------- where the session comes from


def test_callbacks_get_their_session(face, app, stored):
    """R22: functions, methods, generators and decorated functions; a wildcard of the same name stays the path's."""

    @app.get("/function/<name>")
    def function(name, session: Session):
        session.add(User(name=name))
        return {"same": session is face.db.session}

    class Pages:
        def method(self, session):
            return str(session is face.db.session)

    @app.get("/generator")
    def generator(session):
        session.add(User(name="generator"))
        yield ""
        yield str(session is face.db.session)

    @app.get("/decorated")
    @face.db.unit
    def decorated(session):
        return str(session is face.db.session)

    @app.get("/wildcard/<session>")
    def wildcard(session):
        return session

    app.get("/method", callback=Pages().method)

    assert ask(app, "/function/ada").json == {"same": True}
    assert [ask(app, f"/{path}").text for path in ("method", "generator", "decorated", "wildcard/one")] == ["True"] * 3 + ["one"]
    assert stored() == ["ada", "generator"]


@alone
def test_mounted_applications(face, stored):
    """R22: the units are those of the application that is served; one that is mounted installs the plugin for its callbacks' sake."""
    ours = Tenure(face.db)
    child, parent, bare = bottle.Bottle(), bottle.Bottle(), bottle.Bottle()
    child.install(ours)

    @child.get("/add")
    def add(session):
        session.add(User(name="ada"))
        return "added"

    parent.install(ours)
    parent.mount("/child/", child)
    bare.merge(child.routes)
    bare.catchall = False

    assert ask(parent, "/child/add").text == "added"
    assert stored() == ["ada"]
    with pytest.raises(NoUnit, match="install it there too"):
        ask(bare, "/child/add")


# ---------------------------------------------------------------------------------- what the answer means


@pytest.mark.parametrize("how", ["return", "redirect", "generator"])
def test_error_handlers_see_what_commit_raises(face, app, stored, told, how):
    """R14: a handler that makes 409 of an IntegrityError does so for a COMMIT that fails, that of a redirect or a stream too."""

    def work():
        face.session.add(User(name="ada"))
        face.db.session.flush()
        face.session.add(Pledge(user_id=4711))

    @app.post("/return")
    def returned():
        work()
        return "stored"

    @app.post("/redirect")
    def redirected():
        work()
        bottle.redirect("/elsewhere")

    @app.post("/generator")
    def generator():
        work()
        yield "stored"

    @app.error(500)
    def failed(error):
        assert isinstance(error.exception, IntegrityError)
        bottle.response.status = 409
        return f"taken, {face.db.session.scalar(select(func.count()).select_from(User))}"

    answer = ask(app, f"/{how}", "POST")

    assert (answer.status_code, answer.text) == (409, "taken, 0")
    assert (stored(), stored(Pledge.id), face.out()) == ([], [], 0)
    assert told.closed() == [(f"POST /{how}", "rolled back", "IntegrityError")]


@alone
def test_hooks_belong_to_the_work(face, app, stored):
    """R14: what they write before and after the callback is committed with its work, whenever they were added."""
    app = bottle.Bottle()
    app.add_hook("after_request", lambda: face.session.add(User(name="early")))
    app.install(Tenure(face.db))
    app.add_hook("after_request", lambda: face.session.add(User(name="late")))
    app.add_hook("before_request", lambda: face.session.add(User(name="before")))
    app.get("/", callback=lambda: "done")

    assert ask(app).status_code == 200
    assert stored() == ["before", "early", "late"]


@alone
def test_the_answer_of_an_error_handler_counts(face, app, stored, told):
    """R15: what it makes of an exception or of an abort() is the answer, and decides by its status."""

    @app.get("/<name>")
    def page(name, session):
        session.add(User(name=name))
        if name == "error":
            raise LookupError
        bottle.abort(404)

    @app.error(404)
    @app.error(500)
    def soft(error):
        face.session.add(User(name=f"handler of {error.status_code}"))
        bottle.response.status = 200
        return "as wanted"

    assert [ask(app, f"/{name}").status_code for name in ("abort", "error")] == [200, 200]
    assert {(outcome, reason) for _, outcome, reason in told.closed()} == {("committed", "status 200")}
    assert stored() == ["abort", "error", "handler of 404", "handler of 500"]


@alone
@pytest.mark.parametrize("where", ["callback", "hook"])
def test_an_application_has_its_own_page_for_too_many_requests(face, app, told, where):
    """R37: the 503 goes by Bottle's error handlers, and says when to come again."""

    def refused():
        assert face.session
        raise Overloaded("the waiting room is full", 7)

    app.get("/", callback=refused if where == "callback" else lambda: "done")
    if where == "hook":
        app.add_hook("before_request", refused)
    app.error(503, lambda error: "sorry")
    answer = ask(app)

    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "sorry", "7")
    assert told.closed() == [("GET /", "rolled back", "Overloaded")]


@alone
def test_a_generator_may_answer_by_what_it_yields(face, app, stored):
    """R15: Bottle takes an HTTPResponse that a generator yields first for the whole answer."""

    @app.get("/")
    def page(session):
        session.add(User(name="ada"))
        yield bottle.HTTPResponse("no", 422)

    assert (ask(app).status_code, stored()) == (422, [])


# ----------------------------------------------------------------------------------------------- registering


@alone
def test_installed_late_and_skipped(face, app, stored):
    """R22: from the next request on; a route that skips plugins gets no parameter, but has its unit."""
    late = bottle.Bottle()

    @late.get("/", skip=True)
    def page():
        face.session.add(User(name="ada"))
        return "done"

    assert ask(late).status_code == 500
    late.install(Tenure(face.db))
    assert (ask(late).status_code, stored()) == (200, ["ada"])


@alone
def test_bad_input(face, app, tmp_path):
    """R22: twice, on a route alone, with a closed database, or one for asyncio: each says what to change."""
    closed = Database("sqlite://")
    closed.close()
    asynchronous = AsyncDatabase(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    bare = bottle.Bottle()
    bare.catchall = False
    bare.get("/", apply=Tenure(face.db), callback=lambda session: "")
    cases = [
        (lambda: app.install(Tenure(face.db)), "registered with 'main' already. Leave one app.install(Tenure(db)) out"),
        (lambda: ask(bare), "Tenure(db) stands in apply= of '/'"),
        (lambda: Tenure(closed), "'main' is closed"),
        (lambda: Tenure(asynchronous), "AsyncDatabase is not a Database"),
        (lambda: Tenure(face.db, commit="always"), "commit='always'"),
    ]
    for call, message in cases:
        with pytest.raises(BadOption, match=re.escape(message)):
            call()
