# ruff: noqa: N802 - web.py calls its handlers so
import logging
import os
import re
import sys
import threading
import types

import pytest
import sqlalchemy as sa
import web
from sqlalchemy import func, select
from sqlalchemy.orm import Session

import tenure
from tenure.core.current import nobody
from tenure.core.events import WorkLost
from tenure.exceptions import BadOption, NoUnit, Overloaded, UnitEnded
from tenure.web.webpy import processor

from support import http
from support.face import PATIENCE
from support.http import at_once, fetch
from support.models import Order, Pledge, User

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]

alone = pytest.mark.drivers("sqlite")  # where the database plays no part

HERE = r"test_webpy\.py:\d+"


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch):
    monkeypatch.setitem(web.config, "debug", False)


def application(face, *urls, names=None, **boundary):
    """A web.py application with tenure's processor: ``application(face, "/", Page)``."""
    app = web.application(urls, names or {}, autoreload=False)
    app.add_processor(processor(face.db, **boundary))
    return app


def handler(function):
    """A handler class whose every method is *function*."""
    return type("Page", (), dict.fromkeys(("GET", "POST"), function))


def ask(app, path="/", **options):
    """Status and text of the answer that web.py's own test client gets."""
    response = app.request(path, **options)
    return int(response.status[:3]), response.data.decode()


# -------------------------------------------------------------------------- R20 as it is written


def _shop(face, seen):
    """Five ways to answer; each writes a row first and says what it found in its thread's context."""

    def work(self, session, number):
        seen.append((session, face.db.session, face.db.current.name, threading.get_ident()))
        before = session.scalar(select(func.count()).select_from(User))
        session.add(User(name=f"user {number}", balance=before))
        session.flush()
        return number

    class Return:
        def GET(self, session, number):
            return work(self, session, number)

    class Raise:
        def GET(self, session, number):
            raise LookupError(work(self, session, number))

    class Refuse:
        def GET(self, number, session):
            raise web.HTTPError("418 I'm a teapot", data=work(self, session, number))

    class Redirect:
        def GET(self, number, session: Session):
            raise web.seeother(f"/return/{work(self, session, number)}")

    class Stream:
        def GET(self, number, *, session: Session):
            yield work(self, session, number)
            yield f" of {len(session.scalars(select(User.name)).all())}"

    class Nothing:
        def GET(self, number):
            return "nothing"

    return [Return, Raise, Refuse, Redirect, Stream, Nothing]


KEPT = {"return": 200, "redirect": 303, "stream": 200}
LOST = {"raise": 500, "refuse": 418}


def test_two_hundred_requests_on_ten_threads_and_five_connections(make_face, stored, told):
    """R20: each request sees only its own session, rows follow R15, 0 are out and no thread still knows a unit."""
    face = make_face(pool_size=5, max_overflow=0)
    seen, places = [], []
    pages = _shop(face, seen)
    app = application(face, *(part for page in pages for part in (f"/{page.__name__.lower()}/(.*)", page)))
    served = app.wsgifunc()

    def sniffing(environ, start_response):
        places.append((face.db.current_place.var.get(), threading.get_ident()))
        return served(environ, start_response)

    ways = [*KEPT, *LOST]
    with http.cheroot(sniffing, threads=10) as address:
        answers = at_once(200, lambda number: fetch(address, f"/{ways[number % 5]}/{number}").status)
        for number in range(40):
            assert fetch(address, f"/nothing/{number}").text == "nothing"
        told.closed(200)

    assert answers == [{**KEPT, **LOST}[ways[number % 5]] for number in range(200)]
    assert stored() == sorted(f"user {number}" for number in range(200) if ways[number % 5] in KEPT)
    assert all(session is found for session, found, _, _ in seen)
    assert len({id(session) for session, *_ in seen}) == 200
    assert sorted(name for _, _, name, _ in seen) == sorted(f"GET /{ways[n % 5]}/{n}" for n in range(200))
    assert {place for place, _ in places} == {nobody}
    assert len({thread for _, thread in places}) <= 10
    assert len(places) == 240
    outcomes = sorted(outcome for _, outcome, _ in told.closed(200))
    assert outcomes == ["committed"] * 120 + ["rolled back"] * 80
    assert (face.out(), face.db.holders(), face.db.status().peak <= 5) == (0, [], True)


# ------------------------------------------------------------------------------------- injection


def _plain(self, session):
    return f"{session.unit.name}"


def _annotated(self, db_session: Session):
    return f"{db_session.unit.name}"


def _keyword(self, *, session):
    return f"{session.unit.name}"


def _default(self, session=None):
    return f"{session.unit.name}"


@alone
@pytest.mark.parametrize("function", [_plain, _annotated, _keyword, _default])
def test_a_handler_is_given_its_session(face, function):
    """R20: by name or by annotation, positional or keyword."""
    assert ask(application(face, "/", handler(function))) == (200, "GET /")


@alone
def test_the_session_among_the_parts_of_the_path(face):
    """R20: what web.py passes by position goes where it went before, wherever the session stands."""

    def first(self, session, one, two):
        return f"{one} {two} {session.unit.name}"

    def middle(self, one, session, two):
        return f"{one} {two} {session.unit.name}"

    def last(self, one, two, session: Session):
        return f"{one} {two} {session.unit.name}"

    for function in (first, middle, last):
        assert ask(application(face, "/(.)/(.)", handler(function)), "/a/b") == (200, "a b GET /a/b")


@alone
def test_every_method_is_given_its_session(face):
    """R20: whatever HTTP method a handler answers, one of its own invention too; HEAD is answered by GET."""
    page = type("Page", (), dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"), _plain))
    app = application(face, "/", page)

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE", "HEAD"):
        assert ask(app, method=method) == (200, f"{method} /")


@alone
def test_inherited_handlers_are_given_their_session(face):
    """R20: a method may come from a base class, and call the one above it."""

    class Base:
        def GET(self, session):
            return session.unit.name

    class Page(Base):
        pass

    class Above(Base):
        def GET(self):
            return f"above {super().GET()}"

    app = application(face, "/page", Page, "/above", Above)

    assert (ask(app, "/page"), ask(app, "/above")) == ((200, "GET /page"), (200, "above GET /above"))


@alone
def test_a_handler_that_asks_for_nothing_is_left_alone(face, told):
    """R22: a handler without a session parameter is the function it was, and its request opens no unit."""

    def get(self):
        return "nothing"

    page = handler(get)
    assert ask(application(face, "/", page)) == (200, "nothing")
    assert (vars(page)["GET"], told) == (get, [])


def test_a_decorated_handler_joins_the_request(face, stored):
    """R2: `@db.unit` on a handler's method is right too: it works in the request's unit."""

    class Page:
        @face.db.unit
        def GET(self, session):
            session.add(User(name="ada"))
            raise web.notfound(f"{session is face.db.session}")

    assert ask(application(face, "/", Page)) == (404, "True")
    assert stored() == []


@alone
def test_a_handler_may_be_called_with_a_session(face):
    """R2: what the caller gives goes before what would be filled in."""

    class Page:
        def GET(self, session):
            return session.unit.name

    class Other:
        def GET(self):
            with face.db.unit(propagation="new", name="mine") as session:
                return Page().GET(session)

    assert ask(application(face, "/page", Page, "/other", Other), "/other") == (200, "mine")


@alone
def test_handlers_by_name(face, monkeypatch):
    """R20: a handler named in `urls`, alone or with its module, is given its session."""
    module = types.ModuleType("tenure_test_pages")
    module.Page = handler(_plain)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    app = application(face, "/near", "Near", "/far", "tenure_test_pages.Page", names={"Near": handler(_plain)})

    assert (ask(app, "/near"), ask(app, "/far")) == ((200, "GET /near"), (200, "GET /far"))


@alone
def test_a_handler_that_cannot_be_found_breaks_nothing_else(face):
    """R22: web.py looks a name up when its path is asked for; until then it is nobody's trouble."""
    app = application(face, "/gone", "no_such_module.Page", "/lost", "sys.Page", "/none", "Nobody", "/", handler(_plain))

    assert ask(app) == (200, "GET /")
    assert [ask(app, path)[0] for path in ("/gone", "/lost", "/none")] == [500, 500, 500]
    assert ask(app) == (200, "GET /")


@alone
def test_a_redirect_in_the_mapping(face):
    """R20: web.py's own "redirect" lines and functions as handlers work as before."""
    app = application(face, "/old", "redirect /new", "/call", lambda: face.db.current.name)

    response = app.request("/old")
    assert (response.status, response.headers["Location"]) == ("301 Moved Permanently", "http://0.0.0.0:8080/new")
    assert ask(app, "/call") == (200, "GET /call")


@alone
def test_a_mapping_added_later(face):
    """R20: a handler that is added after the first request is given its session too."""
    app = application(face, "/", handler(_plain))
    assert ask(app) == (200, "GET /")
    app.add_mapping("/later", handler(_annotated))
    assert ask(app, "/later") == (200, "GET /later")
    app.init_mapping(("/", handler(_keyword), "/anew", handler(_default)))
    assert (ask(app), ask(app, "/anew")) == ((200, "GET /"), (200, "GET /anew"))


@alone
def test_a_module_that_is_reloaded(face, monkeypatch, tmp_path):
    """R20: with web.py's autoreload a handler that has changed on disk is given its session."""
    page = tmp_path / "tenure_test_reloaded.py"
    source = 'urls = ("/", "Page")\nclass Page:\n    def GET(self, session):\n        return "one"\n'
    source = 'urls = ("/", "Page")\nclass Page:\n    def GET(self, session):\n        return "one"\n'
    page.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import tenure_test_reloaded as module

    app = web.application(module.urls, vars(module), autoreload=True)
    app.add_processor(processor(face.db))
    first = ask(app)
    page.write_text(source.replace("session", "*, session").replace('"one"', 'f"two {session.unit.name}"'))
    os.utime(page, (2_000_000_000, 2_000_000_000))

    assert (first, ask(app)) == ((200, "one"), (200, "two GET /"))
    del sys.modules["tenure_test_reloaded"]


# ---------------------------------------------------------------------------- mounted applications


def _mounted(face, inner, *, outer_has=True, inner_has=False):
    sub = application(face, "/page", handler(inner)) if inner_has else web.application(("/page", handler(inner)), {})
    app = web.application(("/sub", sub), {}, autoreload=False)
    if outer_has:
        app.add_processor(processor(face.db))
    return app


@alone
@pytest.mark.parametrize(("outer", "inner"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("status", ["200 OK", "409 Conflict"])
def test_a_mounted_application(face, stored, told, *, outer, inner, status):
    """R20: one request is one unit, whichever of the applications has the processor, and rows follow its status."""

    def get(self, session):
        session.add(User(name="ada"))
        if status[0] == "4":
            raise web.HTTPError(status, data=session.unit.name)
        return session.unit.name

    assert ask(_mounted(face, get, outer_has=outer, inner_has=inner), "/sub/page") == (int(status[:3]), "GET /sub/page")
    kept = status[0] == "2"
    assert stored() == ["ada"] * kept
    assert told.closed() == [("GET /sub/page", "committed" if kept else "rolled back", f"status {status[:3]}")]


@alone
def test_an_error_in_a_mounted_application(face, stored, told):
    """R15: what the mounted application makes of an error is the request's answer."""

    def get(self, session):
        session.add(User(name="ada"))
        raise LookupError

    assert ask(_mounted(face, get), "/sub/page")[0] == 500
    assert (stored(), [outcome for _, outcome, _ in told.closed()]) == ([], ["rolled back"])


@alone
def test_a_mounted_application_with_a_database_of_its_own(face, watch, tmp_path, stored):
    """R20: its handlers get its own database's session, those around it theirs, and each has its unit."""
    other = watch(tenure.Database(f"sqlite:///{tmp_path}/other.db", name="other"))
    User.metadata.create_all(other.db.engine, tables=[User.__table__])

    def get(self, session):
        session.add(User(name=session.unit.database.name))
        return f"{session.unit.database.name} {session.unit.name}"

    app = application(face, "/sub", application(other, "/page", handler(get)), "/page", handler(get))

    assert (ask(app, "/sub/page"), ask(app, "/page")) == ((200, "other GET /sub/page"), (200, "main GET /page"))
    assert stored() == ["main"]
    with other.db.unit() as session:
        assert session.scalars(select(User.name)).all() == ["other"]


@alone
def test_applications_that_contain_each_other(face):
    """R22: a mapping that leads back to where it came from is walked once."""
    one, two = application(face, "/", handler(_plain)), web.application(autoreload=False)
    one.add_mapping("/two", two)
    two.add_mapping("/one", one)
    two.add_mapping("/page", handler(_plain))

    assert (ask(one), ask(one, "/two/page")) == ((200, "GET /"), (200, "GET /two/page"))


# -------------------------------------------------------------------------------- what is answered


@alone
@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (lambda: web.seeother("/x"), 303), (lambda: web.redirect("/x"), 301), (lambda: web.found("/x"), 302),
        (lambda: web.created("x"), 201), (lambda: web.ok("x"), 200), (web.nocontent, 204),
        (lambda: web.notfound("x"), 404), (lambda: web.badrequest("x"), 400), (lambda: web.forbidden("x"), 403),
        (web.nomethod, 405), (lambda: web.internalerror("x"), 500), (lambda: web.HTTPError("422 No"), 422),
    ],
)  # fmt: skip
def test_raised_answers_count_by_their_status(face, stored, told, raised, status):
    """R15: web.py raises its answers; below 400 they keep the work."""

    def get(self, session):
        session.add(User(name="ada"))
        raise raised()

    assert ask(application(face, "/", handler(get)))[0] == status
    assert stored() == ["ada"] * (status < 400)
    assert told.closed()[0][2] == f"status {status}"


@alone
def test_the_status_that_a_handler_sets(face, stored):
    """R15: `web.ctx.status` set by a handler that returns is the status that counts."""

    def get(self, session):
        session.add(User(name="ada"))
        web.ctx.status = "400 Bad Request"
        return "no"

    assert ask(application(face, "/", handler(get))) == (400, "no")
    assert stored() == []


@pytest.mark.parametrize(("status", "kept"), [("201 Created", True), ("404 Not Found", False)])
def test_the_status_that_a_generator_sets(face, stored, status, kept):
    """R15: web.py reads the status after the first part of a body, and so does tenure."""

    def get(self, session):
        session.add(User(name="ada"))
        web.ctx.status = status
        yield "first"
        yield f" {len(stored())}"

    assert ask(application(face, "/", handler(get))) == (int(status[:3]), f"first {int(kept)}")
    assert stored() == ["ada"] * kept


@alone
@pytest.mark.parametrize("when", ["first", "nothing"])
def test_a_generator_that_raises_an_answer(face, stored, told, when):
    """R15: an answer raised before the first part is the answer; a body without a part is one too."""

    def get(self, session):
        session.add(User(name="ada"))
        if when == "first":
            raise web.notfound("gone")
        return
        yield

    expected = {"first": (404, "gone"), "nothing": (200, "")}[when]
    assert ask(application(face, "/", handler(get))) == expected
    assert stored() == ["ada"] * (when == "nothing")
    assert len(told.closed()) == 1


def test_a_generator_that_fails_at_once(face, stored, told):
    """R15: an error before the first part is a 500, also where web.py alone would have left it to the server."""

    def get(self, session):
        session.add(User(name="ada"))
        yield 1 // 0

    assert ask(application(face, "/", handler(get)))[0] == 500
    assert (stored(), told.closed()) == ([], [("GET /", "rolled back", "ZeroDivisionError")])


@alone
def test_a_body_that_nobody_reads(face, stored, told):
    """R16: where a processor throws the body away, its unit has ended all the same, and the generator is closed."""
    closed = []

    def get(self, session):
        session.add(User(name="ada"))
        try:
            yield "first"
        finally:
            closed.append(session.scalar(select(User.name)))

    app = web.application(("/", handler(get)), {}, autoreload=False)
    app.add_processor(lambda handle: (handle(), "instead")[1])
    app.add_processor(processor(face.db))

    assert ask(app) == (200, "instead")
    assert (stored(), closed, len(told.closed())) == (["ada"], ["ada"], 1)


def test_the_rule_and_explicit_commits(face, stored, told, caplog):
    """R15: `commit_if` and `commit="explicit"`; lost work is told with the handler's line, though no user's code called it."""

    class Page:
        def GET(self, session):
            session.add(User(name="lost"))
            return "fine"

    with http.cheroot(application(face, "/", Page, commit="explicit").wsgifunc()) as address:
        assert fetch(address).text == "fine"
        told.closed(1)
    (warning,) = told.of(WorkLost)
    assert re.search(rf"'GET /' \({HERE}\) answered 200, but 1 object not written yet is lost", warning.message)
    app = application(face, "/", handler(lambda self, session: session.add(User(name="x"))), commit_if=lambda status: False)
    assert (ask(app)[0], stored()) == (200, [])


@alone
def test_bad_options(face):
    """R50: refused when the application is put together."""
    with pytest.raises(BadOption, match="give 'auto' or 'explicit'"):
        processor(face.db, commit="sometimes")
    with pytest.raises(BadOption, match="Engine is not a Database"):
        processor(face.db.engine)


# ------------------------------------------------------------------------------------ what fails


@pytest.mark.parametrize("how", ["return", "seeother", "stream"])
def test_a_failing_commit(face, stored, told, how):
    """R14: it is a 500, and the application's `internalerror` sees the database's own error."""
    seen = []

    def get(self, session):
        session.add(Pledge(user_id=4711))
        if how == "seeother":
            raise web.seeother("/thanks")
        return iter(["fine"]) if how == "stream" else "fine"

    def internalerror():
        seen.append(sys.exc_info()[1])
        return web.HTTPError("500 Internal Server Error", data="sorry")

    app = application(face, "/", handler(get))
    app.internalerror = internalerror

    assert ask(app) == (500, "sorry")
    assert isinstance(seen[0], sa.exc.IntegrityError)
    assert told.closed() == [("GET /", "rolled back", "IntegrityError")]
    assert (stored(Pledge.id), face.out()) == ([], 0)


def test_internalerror_works_in_the_request_while_it_is_not_settled(face, stored):
    """R15: the page for an error may read with the request's session; what it writes is rolled back with the rest."""

    def get(self, session):
        session.add(User(name="ada"))
        session.flush()
        raise LookupError

    def internalerror():
        return web.HTTPError("500 No", data=",".join(face.db.session.scalars(select(User.name))))

    app = application(face, "/", handler(get))
    app.internalerror = internalerror

    assert ask(app) == (500, "ada")
    assert stored() == []


@alone
def test_an_unknown_status_is_an_error(face, stored, told):
    """R15: a status that is none rolls back, and the unit has ended."""

    def get(self, session):
        session.add(User(name="ada"))
        web.ctx.status = "fine"
        raise web.HTTPError("also fine")

    assert ask(application(face, "/", handler(get)))[0] == 500
    assert (stored(), len(told.closed()), face.out()) == ([], 1, 0)


@alone
def test_processors_around_and_within(face, stored):
    """R20: hooks added after tenure's run in the request; those added before see it neither begun nor ended."""
    seen = []

    def current():
        try:
            return face.db.current.name
        except (NoUnit, UnitEnded) as error:
            return type(error).__name__

    app = web.application(("/", handler(_plain)), {}, autoreload=False)
    app.add_processor(web.loadhook(lambda: seen.append(current())))
    app.add_processor(web.unloadhook(lambda: seen.append(current())))
    app.add_processor(processor(face.db))
    app.add_processor(web.loadhook(lambda: seen.append(current())))
    app.add_processor(web.unloadhook(lambda: seen.append(current())))

    assert ask(app) == (200, "GET /")
    assert seen == ["NoUnit", "GET /", "GET /", "NoUnit"]


def test_the_test_client_within_a_unit(face, stored):
    """R20: `app.request()` called by a test that has a unit of its own open is a request of its own."""

    def post(self, session):
        session.add(Order(user=User(name="ada")))
        raise web.seeother("/")

    with face.db.unit() as mine:
        assert ask(application(face, "/", handler(post)), method="POST", data={"a": "b"})[0] == 303
        assert face.db.session is mine
        assert mine.scalars(select(User.name)).all() == ["ada"]


def test_a_client_that_leaves_while_a_generator_waits(face, told):
    """R16: web.py's response has no `close()`; the unit ends all the same, within a moment of the failed write."""
    waiting, go_on = threading.Event(), threading.Event()

    def get(self, session):
        yield "first\n"
        waiting.set()
        assert go_on.wait(PATIENCE)
        while True:
            yield "more\n" * 1000

    with http.cheroot(application(face, "/", handler(get)).wsgifunc(), threads=2) as address:
        talk = http.Talk(address)
        assert (talk.status(), waiting.wait(PATIENCE)) == (200, True)
        talk.leave()
        go_on.set()
        assert told.closed(1) == [("GET /", "read only", "status 200")]
        assert fetch(address, "/none").status == 404


@alone
def test_names_in_the_log(face, caplog):
    """R51: a unit has the method and the full path for its name, that of a mounted application too, whatever it is made of."""
    with caplog.at_level(logging.DEBUG, "tenure"):
        ask(application(face, "/(.*)", handler(lambda self, session, path: "x")), "/a%20b/ü".encode().decode("latin1"))
    assert re.search(r"tenure: 'GET /a%20b/ü' ", caplog.text)


def test_a_stream_that_begins_with_the_first_part_goes_on(make_face):
    """R16: rows that the first part of a body began to read, with a cursor on the server, are all sent, and 0 are out after it."""
    face = make_face()
    with face.db.unit() as session:
        session.add_all([User(name=f"user {n:03}") for n in range(50)])

    class Names:
        def GET(self, session):
            for name in session.scalars(select(User.name).order_by(User.name).execution_options(yield_per=10)):
                yield name + "\n"

    app = web.application(("/names", "Names"), {"Names": Names})
    app.add_processor(processor(face.db))
    lines = app.request("/names").data.decode().splitlines()

    assert len(lines) == 50
    assert face.out() == 0


# ----------------------------------------------------------------------------- the reason of an answer


def _raises(session):
    session.add(User(name="ada"))
    raise LookupError


def _raises_an_answer(session):
    session.add(User(name="ada"))
    try:
        raise LookupError
    except LookupError:
        raise web.internalerror()  # noqa: B904 - as web.py's users do


def _answers(session):
    session.add(User(name="ada"))
    web.ctx.status = "500 Internal Server Error"


@alone
@pytest.mark.parametrize(
    ("work", "reason"), [(_raises, "LookupError"), (_raises_an_answer, "status 500"), (_answers, "status 500")]
)
@pytest.mark.parametrize("mounted", [False, True])
def test_the_reason_of_a_500(face, stored, told, *, work, reason, mounted):
    """R15: the log line of a request whose handler raised names the error, not what web.py made of it."""

    def get(self, session: Session):
        work(session)

    app = application(face, "/x", handler(get))
    if mounted:
        app = application(face, "/in", web.application(("/x", handler(get)), {}, autoreload=False))
    assert ask(app, "/in/x" if mounted else "/x")[0] == 500
    assert (stored(), [one[1:] for one in told.closed()]) == ([], [("rolled back", reason)])


@alone
def test_an_error_rolls_back_whatever_the_rule_says_of_500(face, stored):
    """R15: an exception is no answer; `commit_if` is asked about answers."""
    assert ask(application(face, "/", handler(lambda self, session: _raises(session)), commit_if=lambda status: True))[0] == 500
    assert stored() == []


# ----------------------------------------------------------------------------- functions in urls


@alone
def test_a_function_in_the_urls_gets_its_session(face, stored):
    """R20: what web.py calls gets its session, be it a method or a function; one mapped twice, in two applications, too."""

    def add(session: Session):
        session.add(User(name=f"user {session.scalar(select(func.count(User.id)))}"))
        yield "added"

    class Adding:
        def __call__(self, session):
            session.add(User(name="by an object"))
            return "added"

    app = application(face, "/a", add, "/b", add, "/c", Adding(), "/d", lambda: "nothing")
    again = application(face, "/", add)
    answers = [ask(app, path) for path in ("/a", "/b", "/c", "/d", "/a")] + [ask(again)]

    assert answers == [(200, "added")] * 3 + [(200, "nothing")] + [(200, "added")] * 2
    assert stored() == ["by an object", "user 0", "user 1", "user 3", "user 4"]


# ------------------------------------------------------------------------------- too many requests


def _refuse(self):
    raise Overloaded("full", 1.5)


def _refuse_in_the_first_part(self):
    _refuse(self)
    yield "never"


def _answer_oneself(self):
    try:
        _refuse(self)
    except Overloaded:
        raise web.InternalError("my own") from None


@alone
@pytest.mark.parametrize("page", [_refuse, _refuse_in_the_first_part])
def test_overload_is_a_503_with_the_page_of_the_application(face, page):
    """R37: `internalerror` makes the page as ever; a 500 becomes a 503 that says when to come again."""
    app = application(face, "/", handler(page))
    app.internalerror = lambda: web.InternalError("sorry")
    response = app.request("/")

    assert (response.status, response.data) == ("503 Service Unavailable", b"sorry")
    assert response.headers["Retry-After"] == "2"


@alone
@pytest.mark.parametrize("page", [_refuse, _refuse_in_the_first_part])
def test_an_internalerror_of_ones_own_goes_first(face, page):
    """R37: an application that knows the error answers it as it likes."""
    app = application(face, "/", handler(page))
    app.internalerror = lambda: web.HTTPError("429 Too Many Requests", data="later")

    assert ask(app) == (429, "later")


@alone
def test_a_500_that_a_handler_raises_itself_stays_one(face):
    """R37: a handler that has caught the error decides."""
    assert ask(application(face, "/", handler(_answer_oneself))) == (500, "my own")
