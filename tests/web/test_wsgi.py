import gc
import io
import sys
import threading
import weakref
import wsgiref.util
from wsgiref.validate import validator

import pytest
import sqlalchemy as sa
from sqlalchemy import func, select

import tenure
from tenure.core.current import nobody
from tenure.exceptions import BadOption, Overloaded, ReadOnlyUnit
from tenure.web.blocking import BlockingBody
from tenure.web.wsgi import UnitMiddleware

from support import http
from support.face import PATIENCE
from support.http import at_once, fetch
from support.models import Pledge, User

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]

alone = pytest.mark.drivers("sqlite")  # where the database plays no part

TEXT = (("Content-Type", "text/plain"),)


class Server:
    """A WSGI server in this thread, as the standard asks for one: it writes down all that it is told, in order."""

    def __init__(self, app, *, reads=None, closes=True, strict=True):
        self.said = []
        self.sent = b""
        self.begun = False
        self.strict = strict
        environ = {"wsgi.file_wrapper": wsgiref.util.FileWrapper}
        wsgiref.util.setup_testing_defaults(environ)
        body = app(environ, self.start_response)
        self.body = body
        try:
            for number, chunk in enumerate(body):
                self.write(chunk)
                if number + 1 == reads:
                    break
        finally:
            if closes and hasattr(body, "close"):
                body.close()

    def start_response(self, status, headers, exc_info=None):
        if exc_info is not None and self.sent:
            raise exc_info[1].with_traceback(exc_info[2])
        if self.begun and exc_info is None:
            raise AssertionError("start_response was called twice")
        self.begun = True
        self.said.append(status if exc_info is None else f"{status} ({exc_info[0].__name__})")
        return self.write

    def write(self, chunk):
        if not self.begun:
            raise AssertionError("a body came before start_response")
        self.sent += chunk


def write(face, name="ada"):
    face.db.session.add(User(name=name))


class Closing:
    """An iterable that counts how often it is closed."""

    def __init__(self, parts, error=None):
        self.parts, self.error, self.closed = iter(parts), error, 0

    def __iter__(self):
        yield from self.parts
        if self.error:
            raise self.error

    def close(self):
        self.closed += 1


# ------------------------------------------------------------------------------ start_response


@pytest.mark.parametrize("kind", ["list", "tuple", "iterator", "generator", "late generator", "class"])
@pytest.mark.parametrize(("status", "kept"), [("200 OK", True), ("404 Not Found", False)])
def test_every_kind_of_application(face, stored, told, *, kind, status, kept):
    """R14: whenever `start_response` is called, the work is settled before the server hears of it."""
    seen = []

    def early(environ, start_response):
        write(face)
        start_response(status, [*TEXT])
        return {"list": [b"a", b"b"], "tuple": (b"a", b"b"), "iterator": iter([b"a", b"b"])}[kind]

    def generator(environ, start_response):
        write(face)
        start_response(status, [*TEXT])
        yield b"a"
        seen.append(stored())
        yield b"b"

    def late(environ, start_response):
        yield b""
        write(face)
        start_response(status, [*TEXT])
        yield b"a"
        seen.append(stored())
        yield b"b"

    class Page:
        def __init__(self, environ, start_response):
            self.start_response = start_response

        def __iter__(self):
            write(face)
            self.start_response(status, [*TEXT])
            return iter([b"a", b"b"])

    app = {"generator": generator, "late generator": late, "class": Page}.get(kind, early)
    server = Server(UnitMiddleware(app, face.db))

    assert (server.said, server.sent) == ([status], b"ab")
    assert stored() == ["ada"] * kept
    assert seen in ([], [stored()])
    assert told.closed() == [("GET /", "committed" if kept else "rolled back", f"status {status[:3]}")]
    assert face.db.current_place.var.get() is nobody


@pytest.mark.parametrize("how", ["called", "generator"])
def test_an_error_page_replaces_the_answer(face, stored, told, how):
    """R15: called again with `exc_info` before anything was sent, the later status counts."""

    def app(environ, start_response):
        start_response("200 OK", [*TEXT])
        try:
            write(face)
            raise LookupError
        except LookupError:
            start_response("503 Sorry", [*TEXT], sys.exc_info())
        return [b"sorry"]

    def generator(environ, start_response):
        yield from app(environ, start_response)

    server = Server(UnitMiddleware(app if how == "called" else generator, face.db))

    assert (server.said, server.sent, stored()) == (["503 Sorry (LookupError)"], b"sorry", [])
    assert told.closed() == [("GET /", "rolled back", "status 503")]


@alone
def test_an_error_page_that_comes_too_late(face, stored):
    """R15: with `exc_info` after the first byte the server raises the error, and what was committed stays."""

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        yield b"a"
        try:
            raise LookupError("late")
        except LookupError:
            start_response("500 Sorry", [*TEXT], sys.exc_info())

    with pytest.raises(LookupError, match="late"):
        Server(UnitMiddleware(app, face.db))
    assert stored() == ["ada"]


@alone
def test_called_twice_without_an_error(face, stored, told):
    """R14: the standard forbids it, and so the application learns of it here as it would from its server."""

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        start_response("201 Created", [*TEXT])
        return [b""]

    with pytest.raises(AssertionError, match="called start_response again"):
        Server(UnitMiddleware(app, face.db))
    assert (stored(), [outcome for _, outcome, _ in told.closed()]) == ([], ["rolled back"])


@alone
@pytest.mark.parametrize("body", [[b"a"], iter([b"a"]), [], iter([])])
def test_never_called(face, stored, told, body):
    """R14: a body without a status is an error, and nothing is kept."""

    def app(environ, start_response):
        write(face)
        return body

    with pytest.raises(AssertionError, match="without calling start_response"):
        Server(UnitMiddleware(app, face.db))
    assert (stored(), len(told.closed()), face.out()) == ([], 1, 0)


@alone
@pytest.mark.parametrize("status", ["", "fine", "OK 200"])
def test_a_status_that_is_none(face, stored, told, status):
    """R15: what cannot be read as a status is an error, and nothing is kept."""

    def app(environ, start_response):
        write(face)
        start_response(status, [*TEXT])
        return [b""]

    with pytest.raises((ValueError, IndexError)):
        Server(UnitMiddleware(app, face.db))
    assert (stored(), len(told.closed())) == ([], 1)


@alone
def test_a_server_whose_start_response_gives_nothing(face, stored):
    """R22: test clients often give no `write`; they are told the status once."""
    said = []

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        yield b"a"
        yield b"b"

    environ = {}
    wsgiref.util.setup_testing_defaults(environ)
    body = UnitMiddleware(app, face.db)(environ, lambda *answer: said.append(answer[0]))

    assert (b"".join(body), said, stored()) == (b"ab", ["200 OK"], ["ada"])


@alone
def test_nothing_of_an_error_is_kept(face):
    """R47: `exc_info` leads to the frames of the request; the middleware lets go of it with the answer."""

    class Page:
        pass

    page = Page()
    alive = weakref.ref(page)

    def app(environ, start_response):
        held = environ.pop("page")
        try:
            raise LookupError(held)
        except LookupError:
            start_response("500 Sorry", [*TEXT], sys.exc_info())
        return [b"sorry"]

    gc.disable()
    try:
        environ = {"page": page}
        wsgiref.util.setup_testing_defaults(environ)
        UnitMiddleware(app, face.db)(environ, lambda *answer: None)
        del page
        assert alive() is None
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------- write()


def test_the_legacy_write(face, stored, told):
    """R14: `write()` sends at once, so the work is settled by it; afterwards only reading is left."""
    seen = []

    def app(environ, start_response):
        write(face)
        send = start_response("201 Created", [*TEXT])
        assert stored() == []
        send(b"written ")
        seen.append(stored())
        with pytest.raises(ReadOnlyUnit):
            write(face, "late") or face.db.session.flush()
        face.db.session.expunge_all()
        return [face.db.session.scalar(select(User.name)).encode()]

    server = Server(UnitMiddleware(app, face.db))

    assert (server.said, server.sent, seen, stored()) == (["201 Created"], b"written ada", [["ada"]], ["ada"])
    assert told.closed() == [("GET /", "committed", "status 201")]


def test_a_failing_commit_at_write(face, stored, told):
    """R14: nothing was sent, so the server can still answer 500."""

    def app(environ, start_response):
        face.db.session.add(Pledge(user_id=4711))
        start_response("200 OK", [*TEXT])(b"written")
        return []

    said = []
    environ = {}
    wsgiref.util.setup_testing_defaults(environ)
    with pytest.raises(sa.exc.IntegrityError):
        UnitMiddleware(app, face.db)(environ, lambda *answer: said.append(answer))
    assert (said, stored(Pledge.id), told.closed()) == ([], [], [("GET /", "rolled back", "IntegrityError")])


@alone
def test_an_error_after_write(face, stored, told):
    """R16: what was settled stays; the error goes to the server; the unit has ended."""

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])(b"written")
        raise LookupError("late")

    with pytest.raises(LookupError, match="late"):
        Server(UnitMiddleware(app, face.db))
    assert (stored(), told.closed()) == (["ada"], [("GET /", "committed", "status 200")])


# ----------------------------------------------------------------------------------- the body


@alone
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("end", ["sent", "left", "raised", "unread", "no close", "failed"])
def test_the_iterable_is_closed_once(face, told, end, early):
    """R16: in every path, also where the server never calls `close()`."""
    iterable = Closing([b"a", b"b"], LookupError("late") if end == "raised" else None)

    def app(environ, start_response):
        if early:
            write(face)
            start_response("200 OK" if end != "failed" else "no status", [*TEXT])
            return iterable
        return Late(iterable, start_response)

    class Late(Closing):
        def __init__(self, inner, start_response):
            self.inner, self.start_response = inner, start_response

        def __iter__(self):
            write(face)
            self.start_response("200 OK" if end != "failed" else "no status", [*TEXT])
            yield from self.inner

        def close(self):
            self.inner.close()

    def serve():
        return Server(UnitMiddleware(app, face.db), reads={"left": 1, "unread": 1}.get(end), closes=end != "no close")

    if end in {"raised", "failed"}:
        with pytest.raises((LookupError, ValueError)):
            serve()
    else:
        serve()
    gc.collect()
    assert (iterable.closed, len(told.closed()), face.out()) == (1, 1, 0)


@alone
def test_a_body_of_which_nothing_was_read(face, told):
    """R16: a server may close a body without a look at it, as for HEAD."""
    iterable = Closing([b"a"])

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        return iterable

    environ = {}
    wsgiref.util.setup_testing_defaults(environ)
    body = UnitMiddleware(app, face.db)(environ, lambda *answer: None)
    assert told.closed() == []
    body.close()
    assert (iterable.closed, told.closed()) == (1, [("GET /", "committed", "status 200")])


@alone
def test_a_list_goes_through_as_it_is(face, told):
    """R22: the server sees the list itself, so that it can count it; the unit has ended by then."""
    parts = [b"a", b"b"]

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        return parts

    environ = {}
    wsgiref.util.setup_testing_defaults(environ)
    assert UnitMiddleware(app, face.db)(environ, lambda *answer: None) is parts
    assert len(told.closed()) == 1
    with http.wsgiref(UnitMiddleware(lambda environ, start: (start("200 OK", [*TEXT]), [b"four"])[1], face.db)) as address:
        assert fetch(address).headers["content-length"] == "4"


@alone
def test_a_file(face, tmp_path, told):
    """R16: a download through the server's own file wrapper is sent whole, and the file is closed."""
    path = tmp_path / "download"
    path.write_bytes(b"x" * 100_000)
    opened = []

    def app(environ, start_response):
        write(face, f"download {len(opened)}")
        start_response("200 OK", [*TEXT])
        opened.append(path.open("rb"))
        return environ["wsgi.file_wrapper"](opened[-1])

    server = Server(UnitMiddleware(app, face.db))
    assert (len(server.sent), opened[0].closed, len(told.closed())) == (100_000, True, 1)
    with http.wsgiref(UnitMiddleware(app, face.db)) as address:
        assert len(fetch(address).text) == 100_000
    assert (opened[1].closed, len(told.closed(2))) == (True, 2)


@alone
def test_parts_are_made_in_whatever_thread_sends_them(face, stored, told):
    """R16, R23: a server may send each part from another thread; none of them knows the request afterwards."""

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        for _ in range(3):
            yield str(face.db.session.scalar(select(func.count()).select_from(User))).encode()

    environ, parts, places = {}, [], []
    wsgiref.util.setup_testing_defaults(environ)
    body = UnitMiddleware(app, face.db)(environ, lambda *answer: None)

    def send():
        parts.append(next(body, b"end"))
        places.append(face.db.current_place.var.get())

    for _ in range(4):
        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
    assert (parts, places) == ([b"1", b"1", b"1", b"end"], [nobody] * 4)
    assert len(told.closed()) == 1
    body.close()


# ------------------------------------------------------------------------------- one in another


def test_the_same_middleware_around_a_mounted_application(face, stored, told):
    """R22: one request is still one unit."""

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        yield face.db.current.name.encode()

    inner = UnitMiddleware(app, face.db)

    def mount(environ, start_response):
        return inner(environ, start_response)

    server = Server(UnitMiddleware(mount, face.db))

    assert (server.sent, stored(), told.closed()) == (b"GET /", ["ada"], [("GET /", "committed", "status 200")])


def test_two_databases(face, stored, told, watch, tmp_path):
    """R12: each has its unit in one request, and both are settled before the first byte."""
    other = watch(tenure.Database(f"sqlite:///{tmp_path}/other.db", name="other"))
    User.metadata.create_all(other.db.engine, tables=[User.__table__])
    seen = []

    def app(environ, start_response):
        write(face)
        write(other, "bob")
        start_response("200 OK", [*TEXT])
        yield b"a"
        seen.append((stored(), face.db.session.scalar(select(User.name)), other.db.session.scalar(select(User.name))))

    Server(UnitMiddleware(UnitMiddleware(app, other.db), face.db))

    assert seen == [(["ada"], "ada", "bob")]
    assert [outcome for _, outcome, _ in told.closed()] == ["committed", "committed"]


@pytest.mark.parametrize("where", ["around", "within", "both"])
@pytest.mark.parametrize("kind", ["list", "generator", "error"])
def test_the_standards_own_validator(face, stored, told, where, kind):
    """R22: the middleware keeps to the standard towards the application, and towards the server."""

    @validator
    def within(environ, start_response):
        return app(environ, start_response)

    def app(environ, start_response):
        write(face)
        if kind == "error":
            start_response("500 Sorry", [*TEXT], (LookupError, LookupError(), None))
            return [b"a"]
        start_response("200 OK", [*TEXT])
        return [b"a"] if kind == "list" else (part for part in [b"a", face.db.current.name.encode()])

    inner = within if where in {"within", "both"} else app
    served = UnitMiddleware(inner, face.db)
    if where in {"around", "both"}:
        served = validator(served)
    errors = io.StringIO()
    environ = {"wsgi.errors": errors, "QUERY_STRING": ""}
    wsgiref.util.setup_testing_defaults(environ)
    body = served(environ, lambda status, headers, exc_info=None: lambda data: None)
    parts = list(body)
    body.close() if hasattr(body, "close") else None

    assert parts == ([b"a", b"GET /"] if kind == "generator" else [b"a"])
    assert stored() == ["ada"] * (kind != "error")
    assert (len(told.closed()), errors.getvalue()) == (1, "")


# -------------------------------------------------------------------------------------- servers


def test_threads_that_are_used_again(make_face, stored):
    """R23: on a server that reuses its threads no request finds anything of the one before, whatever became of that."""
    face = make_face(pool_size=3, max_overflow=0)
    places = []

    def app(environ, start_response):
        way = int(environ["PATH_INFO"][1:]) % 4
        write(face, environ["PATH_INFO"])
        if way == 0:
            raise LookupError
        start_response("200 OK" if way == 1 else "400 Bad", [*TEXT])
        return [b"a"] if way < 3 else iter([b"a", b"b"])

    served = UnitMiddleware(app, face.db)

    def sniffing(environ, start_response):
        places.append(face.db.current_place.var.get())
        return served(environ, start_response)

    with http.cheroot(sniffing, threads=4) as address:
        statuses = at_once(40, lambda number: fetch(address, f"/{number}").status)

    assert statuses == [[500, 200, 400, 400][number % 4] for number in range(40)]
    assert (set(places), len(places)) == ({nobody}, 40)
    assert stored() == sorted(f"/{number}" for number in range(1, 40, 4))
    assert face.out() == 0


@alone
def test_a_stuck_client_holds_no_connection(face, told):
    """R16: while a part waits to be sent nothing is held, though the unit is open."""
    waiting, go_on = threading.Event(), threading.Event()

    def app(environ, start_response):
        write(face)
        start_response("200 OK", [*TEXT])
        yield b"first\n"
        face.db.session.scalars(select(User)).all()
        waiting.set()
        assert go_on.wait(PATIENCE)
        yield b"last\n"

    with http.cheroot(UnitMiddleware(app, face.db)) as address, http.Talk(address) as talk:
        assert waiting.wait(PATIENCE)
        assert (face.out(), told.closed()) == (0, [])
        go_on.set()
        assert (talk.status(), talk.headers(), talk.rest())[::2] == (200, "first\nlast\n")
        told.closed(1)


@alone
def test_bad_options(face):
    """R50: refused when the application is put together."""
    with pytest.raises(BadOption, match="commit_if= has no say"):
        UnitMiddleware(lambda environ, start_response: [], face.db, commit_if=bool, commit="explicit")
    with pytest.raises(BadOption, match="str is not a Database"):
        UnitMiddleware(lambda environ, start_response: [], "sqlite://")


@alone
def test_a_body_is_that_of_the_boundary(face):
    """R22: what decides about a body stands in one place for all hosts that block."""

    def app(environ, start_response):
        start_response("200 OK", [*TEXT])
        return iter([b"a"])

    assert isinstance(Server(UnitMiddleware(app, face.db)).body, BlockingBody)


# ------------------------------------------------------------------------------- too many requests


@alone
def test_a_generator_that_is_refused_before_its_first_part_is_a_503(face):
    """R37: as long as nothing was sent the answer may still be a 503, whatever status the application had in mind."""

    def app(environ, start_response):
        start_response("200 OK", list(TEXT))
        start_response("200 OK", list(TEXT), (Overloaded, Overloaded("first"), None))
        raise Overloaded("full", 1.5)
        yield b""

    server = Server(UnitMiddleware(app, face.db))

    assert server.said == ["503 Service Unavailable"]
    assert server.sent == b"503 Service Unavailable\n"


@alone
def test_overload_in_the_body_is_left_to_the_server(face):
    """R37: what has begun as a 200 ends as the server ends it."""

    def app(environ, start_response):
        start_response("200 OK", list(TEXT))
        yield b"first"
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        Server(UnitMiddleware(app, face.db))
