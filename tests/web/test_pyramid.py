import re

import pytest
from pyramid.config import Configurator
from pyramid.events import NewRequest
from pyramid.httpexceptions import HTTPSeeOther, HTTPServerError
from pyramid.request import Request
from pyramid.response import FileIter, FileResponse, Response
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from tenure import AsyncDatabase, Database
from tenure.exceptions import BadOption, NoUnit, Overloaded, ReadOnlyUnit

from support.models import Pledge, User

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]

alone = pytest.mark.drivers("sqlite")  # where the database plays no part


@pytest.fixture
def config(face):
    config = Configurator(settings={"tenure.db": face.db})
    config.include("tenure.web.pyramid")
    return config


def site(config, *views, **named):
    """The application, with its views at / and each path that is named, and what asks it for an answer."""
    for path, view in [*(("", view) for view in views), *named.items()]:
        config.add_route(path or "home", f"/{path}")
        config.add_view(view, route_name=path or "home", renderer="json")
    app = config.make_wsgi_app()
    return lambda path="/", **given: Request.blank(path, **given).send(app, catch_exc_info=True)


def names(request):
    return ",".join(request.dbsession.scalars(select(User.name).order_by(User.id)))


# ------------------------------------------------------------------------------- where the session comes from


def test_views_and_what_is_around_them(face, config, stored):
    """R22: functions, classes, decorated functions, subscribers and helpers have the request's session."""

    def seen(event):
        event.request.dbsession.add(User(name=event.request.path_info))

    class Page:
        def __init__(self, request):
            self.request = request

        def __call__(self):
            return self.request.dbsession is face.db.session

    @face.db.unit
    def decorated(request, session: Session):
        return session is request.dbsession

    config.add_subscriber(seen, NewRequest)
    ask = site(config, function=lambda context, request: request.dbsession is face.db.session, page=Page, decorated=decorated)

    assert [ask(f"/{path}").json for path in ("function", "page", "decorated")] == [True] * 3
    assert stored() == ["/decorated", "/function", "/page"]


def looked_at(environ):
    return environ["REQUEST_METHOD"] == "GET"


@alone
def test_settings_that_are_text(face):
    """R22: an .ini file can name the database and what requests are to be, and the application finds what was made of it."""
    texts = {"db": str(face.db.engine.url), "timeout": "2.5", "readonly": f"{__name__}:looked_at", "commit": "auto"}
    config = Configurator(settings={f"tenure.{name}": text for name, text in texts.items()})
    config.include("tenure.web.pyramid")
    db = config.registry["tenure.db"]

    def page(request):
        options = request.dbsession.unit.options
        return [request.dbsession is db.session, options.timeout, options.readonly]

    ask = site(config, page)
    assert [ask(method=method).json for method in ("GET", "POST")] == [[True, 2.5, True], [True, 2.5, False]]
    db.close()


@alone
def test_a_subrequest_is_a_part_of_its_request(config, stored, told):
    """R22: what it answers decides nothing; the request around it does."""

    def home(request):
        request.dbsession.add(User(name="ada"))
        inner = request.invoke_subrequest(Request.blank("/inner"), use_tweens=True)
        return [inner.status_code, inner.text]

    def inner(request):
        request.response.status = 404
        return names(request)

    assert site(config, home, inner=inner)().json == [404, '"ada"']
    assert told.closed() == [("GET /", "committed", "status 200")]
    assert stored() == ["ada"]


# ---------------------------------------------------------------------------------- what the answer means


@pytest.mark.parametrize("how", ["return", "raise"])
def test_exception_views_see_what_commit_raises(face, config, stored, told, how):
    """R14: a view that makes 409 of an IntegrityError does so for a COMMIT that fails, that of a raised redirect too."""
    seen = []

    def post(request):
        request.add_response_callback(lambda request, response: seen.append((response.status_code, type(request.exception))))
        request.dbsession.add(User(name="ada"))
        request.dbsession.flush()
        request.dbsession.add(Pledge(user_id=4711))
        if how == "raise":
            raise HTTPSeeOther("/elsewhere")
        return "stored"

    def taken(error, request):
        count = request.dbsession.scalar(select(func.count()).select_from(User))
        return Response(f"taken, {count}", 409)

    config.add_exception_view(taken, context=IntegrityError)
    answer = site(config, post)(method="POST")

    assert (answer.status_code, answer.text, seen) == (409, "taken, 0", [(409, IntegrityError)])
    assert (stored(), stored(Pledge.id), face.out()) == ([], [], 0)
    assert told.closed() == [("POST /", "rolled back", "IntegrityError")]


@alone
def test_the_answer_of_an_exception_view_counts(config, stored, told):
    """R15: what a view makes of another view's exception is the answer, and decides by its status."""

    def page(request):
        request.dbsession.add(User(name=request.params["name"]))
        raise {"kept": LookupError, "lost": KeyError}[request.params["name"]]

    config.add_exception_view(lambda error, request: Response("as wanted"), context=LookupError)
    config.add_exception_view(lambda error, request: Response("no", 422), context=KeyError)
    ask = site(config, page)

    assert [ask(f"/?name={name}").status_code for name in ("kept", "lost")] == [200, 422]
    assert [reason for _, _, reason in told.closed()] == ["status 200", "status 422"]
    assert stored() == ["kept"]


@alone
def test_an_application_has_its_own_page_for_too_many_requests(config, told):
    """R37: the 503 is rendered as any other of Pyramid's answers, and says when to come again."""

    def page(request):
        assert request.dbsession
        raise Overloaded("the waiting room is full", 7)

    config.add_exception_view(lambda error, request: Response("sorry", error.code), context=HTTPServerError)
    answer = site(config, page)()

    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "sorry", "7")
    assert told.closed() == [("GET /", "rolled back", "Overloaded")]


@alone
def test_response_callbacks_may_read(config, stored):
    """R14: they come after COMMIT, so they find the session and cannot write in it."""
    seen = []

    def callback(request, response):
        seen.append(names(request))
        with pytest.raises(ReadOnlyUnit):
            request.dbsession.execute(User.__table__.insert().values(name="late"))

    def over(request):
        with pytest.raises(NoUnit):
            names(request)
        seen.append("over")

    def page(request):
        request.add_response_callback(callback)
        request.add_finished_callback(over)
        request.dbsession.add(User(name="ada"))
        return "done"

    assert site(config, page)().status_code == 200
    assert (seen, stored()) == (["ada", "over"], ["ada"])


@alone
def test_each_attempt_is_a_unit(face, stored, told):
    """R22: an execution policy that runs a request again, as pyramid_retry does, begins with a new session."""
    sessions = []

    def policy(environ, router):
        try:
            with router.request_context(environ) as request:
                return router.invoke_request(request)
        except OperationalError:
            with router.request_context(environ) as request:
                return router.invoke_request(request)

    def page(request):
        sessions.append(request.dbsession)
        request.dbsession.add(User(name="ada"))
        request.dbsession.flush()
        if len(sessions) == 1:
            raise OperationalError("", {}, Exception("deadlock"))
        return "done"

    config = Configurator(settings={"tenure.db": face.db})
    config.include("tenure.web.pyramid")
    config.set_execution_policy(policy)

    assert site(config, page)().json == "done"
    assert [outcome for _, outcome, _ in told.closed()] == ["rolled back", "committed"]
    assert (sessions[0] is sessions[1], stored()) == (False, ["ada"])


# -------------------------------------------------------------------------------------------------- bodies


@alone
def test_files_are_left_to_the_server(config, told, tmp_path):
    """R16: a file is sent as Pyramid sends it, with its length, in ranges, or not at all for a HEAD; a stream's length is kept."""
    path = tmp_path / "page.txt"
    path.write_text("0123456789")

    def page(request):
        assert request.dbsession
        return FileResponse(str(path), request)

    def stream(request):
        response = Response(content_length=3)
        response.app_iter = (letter.encode() for letter in names(request) or "abc")
        response.content_length = 3
        return response

    ask = site(config, page, stream=stream)
    wrapped = ask(environ={"wsgi.file_wrapper": FileIter})

    assert (wrapped.content_length, type(wrapped.app_iter)) == (10, FileIter)
    wrapped.app_iter.close()
    answers = [ask(), ask(headers={"Range": "bytes=2-4"}), ask(method="HEAD"), ask("/stream")]
    assert [(one.status_code, one.content_length, one.text) for one in answers] == [
        (200, 10, "0123456789"), (206, 3, "234"), (200, 10, ""), (200, 3, "abc"),
    ]  # fmt: skip
    assert len(told.closed()) == 5


# ----------------------------------------------------------------------------------------------- registering


@alone
def test_bad_input(face, config, tmp_path):
    """R22: without a database, with a wrong or closed one, twice, too late, or left out: each says what to change."""
    closed = Database("sqlite://")
    closed.close()
    asynchronous = AsyncDatabase(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    cases = [
        ({}, "the setting 'tenure.db' is missing"),
        ({"tenure.db": object()}, "object is not a Database"),
        ({"tenure.db": asynchronous}, "AsyncDatabase is not a Database"),
        ({"tenure.db": closed}, "'main' is closed"),
        ({"tenure.db": face.db, "tenure.commit": "always"}, "commit='always'"),
        (
            {"tenure.db": face.db, "tenure.comit": "explicit"},
            "the setting 'tenure.comit' is none of tenure.commit, tenure.commit_if",
        ),
        ({"tenure.db": face.db, "tenure.timeout": "-1"}, "timeout=-1.0"),
    ]
    for settings, message in cases:
        with pytest.raises(BadOption, match=re.escape(message)):
            Configurator(settings=settings).include("tenure.web.pyramid")

    config.include("tenure.web.pyramid")  # Pyramid sees to it that the same is included once
    config.commit()
    with pytest.raises(BadOption, match="registered with 'main' already"):
        config.include("tenure.web.pyramid")
    config.make_wsgi_app()
    with pytest.raises(BadOption, match="is at work already"):
        config.include("tenure.web.pyramid")

    chosen = Configurator(settings={"tenure.db": face.db, "pyramid.tweens": "pyramid.tweens.excview_tween_factory"})
    chosen.include("tenure.web.pyramid")
    with pytest.raises(BadOption, match=r"'pyramid.tweens' leaves tenure.web.pyramid.tween out"):
        chosen.make_wsgi_app()


@alone
def test_outside_of_a_request_there_is_no_unit(config):
    """R22: a request that came by no tween, as one made for the shell, opens none."""
    app = config.make_wsgi_app()
    with app.request_context(Request.blank("/").environ) as request, pytest.raises(NoUnit, match="no unit of 'main' is open"):
        request.dbsession  # noqa: B018
