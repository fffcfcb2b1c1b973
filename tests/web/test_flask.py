import re

import flask
import pytest
from flask.views import MethodView, View
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tenure import Database
from tenure.exceptions import BadOption, NoUnit
from tenure.web.flask import Tenure

from support.models import Pledge, User

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]

alone = pytest.mark.drivers("sqlite")  # where the database plays no part


@pytest.fixture
def app(face):
    app = flask.Flask("shop")
    Tenure(app, face.db)
    return app


# ------------------------------------------------------------------------------- where the session comes from


def test_views_get_their_session(face, app, stored):
    """R22: function views, class views and views of blueprints take a session; URL variables stay theirs."""
    blueprint = flask.Blueprint("b", "b")

    @app.get("/function/<name>")
    def function(name, session: Session):
        session.add(User(name=name))
        return str(session is face.db.session)

    @blueprint.get("/blueprint/<session>")
    def of_blueprint(session):
        return session

    class Base(MethodView):
        def get(self, session):
            return str(session is face.db.session)

    class Methods(Base):
        def put(self, *, session: Session, name):
            session.add(User(name=name))
            return "put"

    class Classic(View):
        def dispatch_request(self, session: Session):
            return str(session is face.db.session)

    app.register_blueprint(blueprint)
    app.add_url_rule("/methods/<name>", view_func=Methods.as_view("put"), methods=["PUT"])
    app.add_url_rule("/methods", view_func=Methods.as_view("get"), methods=["GET"])
    app.add_url_rule("/classic", view_func=Classic.as_view("classic"))
    client = app.test_client()

    texts = [client.get(path).text for path in ("/function/ada", "/blueprint/text", "/methods", "/classic")]

    assert texts == ["True", "text", "True", "True"]
    assert client.put("/methods/bob").text == "put"
    assert stored() == ["ada", "bob"]


@alone
def test_a_class_of_views_in_two_applications(face, make_face):
    """R22: a class of views that two applications share gets the session of the one that calls."""
    faces = [face, make_face()]

    class Page(MethodView):
        def get(self, session: Session):
            return str([session is one.db.session for one in faces if one.db.current_place.here() or one is asked[0]])

    asked = []
    for one in faces:
        app = flask.Flask("shop")
        Tenure(app, one.db)
        app.add_url_rule("/", view_func=Page.as_view("page"))
        asked[:] = [one]
        assert app.test_client().get("/").text == "[True]"


@alone
def test_outside_of_a_request_there_is_no_unit(face, app, stored):
    """R22: an application context alone, as in the shell and in commands, opens none; a command's is its own."""

    @app.cli.command("add")
    @face.db.unit
    def add(session: Session):
        session.add(User(name="ada"))

    with app.app_context(), pytest.raises(NoUnit, match=r"no unit of 'main' is open"):
        face.db.session  # noqa: B018

    assert app.test_cli_runner().invoke(args=["add"]).exit_code == 0
    assert stored() == ["ada"]


# ---------------------------------------------------------------------------------- what the answer means


def test_error_handlers_see_what_commit_raises(face, app, stored, told):
    """R14: a handler that makes 409 of an IntegrityError does so for a COMMIT that fails, too; callbacks see both answers."""
    seen = []

    @app.post("/")
    def post(session: Session):
        session.add(User(name="ada"))
        session.flush()
        session.add(Pledge(user_id=4711))
        return "stored", 201

    @app.errorhandler(IntegrityError)
    def taken(error):
        count = face.db.session.scalar(select(func.count()).select_from(User))
        return f"taken, {count}", 409

    @app.after_request
    def after(response):
        seen.append(response.status_code)
        return response

    answer = app.test_client().post("/")

    assert (answer.status_code, answer.text, seen) == (409, "taken, 0", [201, 409])
    assert (stored(), stored(Pledge.id), face.out()) == ([], [], 0)
    assert told.closed(1) == [("POST /", "rolled back", "IntegrityError")]


@alone
def test_callbacks_after_the_view_belong_to_the_request(face, app, stored):
    """R14: what a function of after_request writes is committed with the view's work."""

    @app.get("/")
    def page():
        return "done"

    @app.after_request
    def audit(response):
        face.db.session.add(User(name="audit"))
        return response

    assert app.test_client().get("/").status_code == 200
    assert stored() == ["audit"]


@alone
def test_an_error_nobody_handles(face, app, stored, told):
    """R15: it reaches Flask as it is, its page may still read, and the work is rolled back."""

    @app.get("/")
    def page(session: Session):
        session.add(User(name="ada"))
        session.flush()
        raise LookupError

    @app.errorhandler(500)
    def sorry(error):
        session = face.db.session
        session.rollback()
        return f"{session.scalar(select(func.count()).select_from(User))}", 500

    answer = app.test_client().get("/")

    assert (answer.status_code, answer.text, stored()) == (500, "0", [])
    assert told.closed(1) == [("GET /", "rolled back", "LookupError")]


# ----------------------------------------------------------------------------------------------- how it ends


@alone
def test_a_teardown_that_raises_leaves_no_unit(face, app, stored, told):
    """R21: the unit ends with the answer, not in Flask's teardown, and nothing of it is found by the next request."""

    @app.get("/<name>")
    def page(name, session: Session):
        session.add(User(name=name))
        return "done"

    @app.teardown_appcontext
    def teardown(error):
        raise LookupError("teardown")

    client = app.test_client()
    for name in ("ada", "bob"):
        with pytest.raises(LookupError, match="teardown"):
            client.get(f"/{name}")

    assert [outcome for _, outcome, _ in told.closed(2)] == ["committed"] * 2
    assert (face.out(), face.db.current_place.here()) == (0, None)
    assert stored() == ["ada", "bob"]


@alone
def test_a_whole_answer_ends_the_unit_at_once(face, app, told):
    """R16: nobody has to read or close an answer whose body is there already."""

    @app.get("/")
    def page(session: Session):
        return str(session.scalar(select(func.count()).select_from(User)))

    @app.get("/none")
    def none(session: Session):
        flask.abort(404 if session.get(User, 1) is None else 500)

    answers = [app.test_client().get(path, buffered=False) for path in ("/", "/none")]

    assert told.closed() == [("GET /", "read only", "status 200"), ("GET /none", "rolled back", "status 404")]
    assert (answers[0].text, answers[1].status_code) == ("0", 404)


@alone
def test_a_stream_without_a_context(face, app, stored, told):
    """R16: a stream reads in the request's unit also without stream_with_context, until the client closes it."""

    @app.get("/")
    def page(session: Session):
        session.add(User(name="ada"))

        def parts():
            yield from face.db.session.scalars(select(User.name))
            yield "more"

        return parts()

    with app.test_client().get("/") as answer:
        first = next(answer.iter_encoded())
        assert (first, stored(), told.closed()) == (b"ada", ["ada"], [])

    assert told.closed(1) == [("GET /", "committed", "status 200")]


def test_two_databases_in_one_request(face, make_face, app, stored, told):
    """R12: each has its own unit and its own outcome; the views get the session of the one registered first."""
    other = make_face()
    Tenure(app, other.db)

    @app.get("/<int:status>")
    def page(status, session: Session):
        session.add(User(name=f"first {status}"))
        assert session is face.db.session
        assert other.db.session.scalar(select(func.count()).select_from(User)) is not None
        return "done", status

    client = app.test_client()

    assert [client.get(path).status_code for path in ("/200", "/400")] == [200, 400]
    assert stored() == ["first 200"]
    assert len(told.closed(4)) == 4


# ------------------------------------------------------------------------------------------------ bad input


@alone
def test_bad_input(face, app):
    """R22: registered twice, on something else, without a database, too late, or closed: each says what to change."""
    cases = [
        (lambda: Tenure(app, face.db), "registered with 'main' already. Leave one Tenure(app, db) out"),
        (lambda: Tenure(object(), face.db), "object is not a Flask application"),
        (lambda: Tenure(app), "Tenure has no database"),
        (lambda: Tenure(app, "sqlite://"), "str is not a Database"),
        (lambda: Tenure(app, face.db, commit="always"), "commit='always'"),
    ]
    closed = Database("sqlite://")
    closed.close()
    cases.append((lambda: Tenure(app, closed), "'main' is closed"))
    for call, message in cases:
        with pytest.raises(BadOption, match=re.escape(message)):
            call()
    app.test_client().get("/")
    other = Database("sqlite://")
    with pytest.raises(BadOption, match="'shop' is at work already"):
        Tenure(app, other)
    other.close()


@alone
def test_init_app(face, stored):
    """R22: an application factory registers later."""
    ours = Tenure(database=face.db)
    app = flask.Flask("shop")
    ours.init_app(app)

    @app.get("/")
    def page(session: Session):
        session.add(User(name="ada"))
        return "done"

    assert app.test_client().get("/").status_code == 200
    assert stored() == ["ada"]
