"""A client that has written sees its write in its next requests, although a replica serves them."""

# ruff: noqa: N802 - web.py calls its handlers so
import re
import wsgiref.util

import pytest
import web
from sqlalchemy import select, text

import tenure
from tenure import Replicas
from tenure.exceptions import BadOption
from tenure.web.webpy import processor
from tenure.web.wsgi import UnitMiddleware

from support import servers
from support.models import User
from support.servers import DRIVERS

pytestmark = [pytest.mark.faces("sync"), pytest.mark.drivers("psycopg", "sqlite")]
COOKIE = re.compile(r"seen=([pt][0-9a-f]+); Path=/; Max-Age=600; HttpOnly; SameSite=Lax")


@pytest.fixture
def face(driver, url, tmp_path, watch):
    """A database with a replica that has come to a standstill."""
    standby = None
    if DRIVERS[driver].dialect == "postgresql":
        standby = servers.found("standby")
        standby.renew()
        standby.pause()
    replica = servers.url(driver, tmp_path) if standby is None else standby.base.set(drivername=DRIVERS[driver].drivername)
    yield watch(tenure.Database(url, replicas=Replicas([replica], wait=0.01, sticky=60)), driver)
    if standby is not None:
        standby.renew()


def answer(face, path):
    """What the application does: ``/write`` stores a row, all else reads on a replica."""
    if path == "/write":
        face.db.session.add(User(name="ada"))
        return "written"
    with face.db.unit(readonly=True, propagation="new") as session:
        return ",".join(session.scalars(select(User.name)))


def wsgi(face, **options):
    """``ask(path, cookie)`` of a WSGI application: the body, and the Set-Cookie headers."""

    def app(environ, start_response):
        status = "500 no" if environ.get("QUERY_STRING") == "fail" else "200 OK"
        body = answer(face, environ["PATH_INFO"])
        start_response(status, [("Content-Type", "text/plain")])
        return [body.encode()]

    served = UnitMiddleware(app, face.db, **options)

    def ask(path, cookie="", query="", scheme="http"):
        environ = {"PATH_INFO": path, "HTTP_COOKIE": cookie, "QUERY_STRING": query, "wsgi.url_scheme": scheme}
        wsgiref.util.setup_testing_defaults(environ)
        said = []
        body = b"".join(served(environ, lambda _status, headers, *_: said.extend(headers)))
        return body.decode(), [value for name, value in said if name == "Set-Cookie"]

    return ask


def webpy(face, **options):
    """The same of a web.py application."""

    class Page:
        def GET(self, path):
            body = answer(face, path)
            if web.input(fail=None).fail is not None:
                raise web.HTTPError("500 no", data=body)
            if web.input(go=None).go is not None:
                raise web.seeother("/")
            return body

    app = web.application(("(.*)", Page), {}, autoreload=False)
    app.add_processor(processor(face.db, **options))

    def ask(path, cookie="", query="", scheme="http"):
        if query == "fail":
            path = f"{path}?fail=1"
        response = app.request(path, env={"HTTP_COOKIE": cookie, "wsgi.url_scheme": scheme}, https=scheme == "https")
        return response.data.decode(), [value for name, value in response.header_items if name == "Set-Cookie"]

    return ask


@pytest.fixture(params=[wsgi, webpy], ids=["wsgi", "webpy"])
def host(request):
    return request.param


def test_a_client_sees_its_write_in_its_next_request(face, host):
    """R41: a client that writes in one request and reads in the next sees its write; one that wrote nothing reads from the replica."""
    ask = host(face, position_cookie="seen")
    body, cookies = ask("/write")
    assert body == "written"
    assert len(cookies) == 1
    token = COOKIE.fullmatch(cookies[0]).group(1)

    assert ask("/", f"other=1; seen={token}; last=x") == ("ada", [])
    assert ask("/") == ("", [])
    assert ask("/", f"unseen={token}") == ("", [])


def test_garbage_in_the_cookie_is_ignored(face, host):
    """R41: the cookie comes from a client: what is no token counts as none."""
    ask = host(face, position_cookie="seen")
    for garbage in ("seen", "seen=", "seen=x'; DROP TABLE users", ";;=;", "seen=0/16B3748"):
        assert ask("/", garbage) == ("", [])


def test_only_what_was_stored_is_remembered(face, host):
    """R41: a request that was rolled back, or had its write elsewhere, sets no cookie; over HTTPS the cookie is secure."""
    ask = host(face, position_cookie="seen")
    assert ask("/write", query="fail")[1] == []
    assert ask("/")[1] == []
    assert ask("/write", scheme="https")[1][0].endswith("; SameSite=Lax; Secure")


def test_without_the_option_there_is_no_cookie(face, host):
    """R41: a plain option; requests served by one thread are clients of their own all the same."""
    ask = host(face)
    assert ask("/write") == ("written", [])
    assert ask("/") == ("", [])
    assert face.db.position() == ""


@pytest.mark.drivers("sqlite")
def test_what_was_written_outside_is_kept(face):
    """R41: a request in a thread that has written before leaves that thread what it knew."""
    with face.db.unit() as session:
        session.execute(text("UPDATE users SET name = name"))
    before = face.db.position()
    assert before
    assert wsgi(face)("/") == ("", [])
    assert face.db.position() == before


def test_a_redirect_has_the_cookie(face):
    """R41: web.py raises its redirects; the cookie goes with them."""
    ask = webpy(face, position_cookie="seen")
    assert COOKIE.fullmatch(ask("/write?go=1")[1][0])


@pytest.mark.drivers("sqlite")
def test_without_replicas_the_option_does_nothing(url, watch):
    """R41: the same application runs with one server."""
    face = watch(tenure.Database(url))
    assert wsgi(face, position_cookie="seen")("/write") == ("written", [])
    with pytest.raises(BadOption, match="name of a cookie"):
        UnitMiddleware(lambda *_: [], face.db, position_cookie="a b")
