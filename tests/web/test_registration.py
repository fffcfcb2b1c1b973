"""Registering wrongly, on every host: each mistake is told when it can first be known, with the line to change."""

import asyncio
import inspect
import itertools
import re
from types import SimpleNamespace

import aiohttp.web
import bottle
import falcon
import falcon.asgi
import fastapi
import flask
import litestar
import pytest
import quart
import sanic
import web
from aiohttp.test_utils import make_mocked_request
from pyramid.config import Configurator
from starlette.applications import Starlette

import tenure
from tenure.exceptions import BadOption, NoUnit
from tenure.web import aiohttp as on_aiohttp
from tenure.web import asgi, wsgi
from tenure.web import bottle as on_bottle
from tenure.web import falcon as on_falcon
from tenure.web import fastapi as on_fastapi
from tenure.web import flask as on_flask
from tenure.web import litestar as on_litestar
from tenure.web import quart as on_quart
from tenure.web import sanic as on_sanic
from tenure.web import starlette as on_starlette
from tenure.web import webpy as on_webpy

_NUMBERS = itertools.count()  # no two applications of Sanic may have one name


@pytest.fixture
def make(tmp_path):
    """``make(is_async)`` is a database, closed when the test ends."""
    made = []

    def one(is_async=False):
        kind, driver = (tenure.AsyncDatabase, "sqlite+aiosqlite") if is_async else (tenure.Database, "sqlite")
        made.append(kind(f"{driver}:///{tmp_path / f'{len(made)}.db'}"))
        return made[-1]

    yield one
    for db in made:
        _closed(db)


def _closed(db):
    if db.is_async:
        asyncio.run(db.close())
    else:
        db.close()
    return db


def _wsgi(environ, start_response):
    start_response("200 OK", [])
    return []


async def _asgi(scope, receive, send): ...


def _stacked(app, middleware, *databases):
    """Starlette makes its middleware when it answers first."""
    for db in databases:
        app.add_middleware(middleware, db)
    app.build_middleware_stack()


def _plain(app, kind, *databases):
    for db in databases:
        app = kind(app, db)


def _extended(app, kind, *databases):
    for db in databases:
        kind(app, db)


def _bottled(*databases):
    app = bottle.Bottle()
    for db in databases:
        app.install(on_bottle.Tenure(db))


def _falcons(app, *databases):
    for db in databases:
        on_falcon.in_units(app, db)


def _pyramid(*databases):
    config = Configurator(settings={"tenure.db": databases[0]})
    config.include("tenure.web.pyramid")
    for db in databases[1:]:
        config.add_units(db, "more")


def _aiohttp(*databases):
    """Before the first request its middlewares know of no application."""
    middlewares = [on_aiohttp.middleware(db) for db in databases]
    app = aiohttp.web.Application(middlewares=middlewares)

    async def answer():
        async def handler(request):
            for one in reversed(middlewares[1:]):
                return await one(request, page)
            return await page(request)

        async def page(request):
            return aiohttp.web.Response()

        request = make_mocked_request("GET", "/", app=app)
        await middlewares[0](request, handler)

    asyncio.run(answer())


def _webpy(*databases):
    """Nor here."""
    app = web.application(("/", "x"), {"x": type("x", (), {"GET": lambda self: ""})}, autoreload=False)
    app.internalerror = web.InternalError
    raised = []
    for db in databases:
        process = on_webpy.processor(db)
        app.add_processor(_seeing(process, raised))
        app.processors[-1].database = db
    app.request("/")
    for error in raised:
        raise error


def _seeing(process, raised):
    def seen(handle):
        try:
            return process(handle)
        except Exception as error:
            raised.append(error)
            raise

    return seen


def _sanic():
    return sanic.Sanic(f"registered-{next(_NUMBERS)}", configure_logging=False)


# How each is registered with the databases given; what to write once; and what is given in place of an application.
HOSTS = {
    "aiohttp": (_aiohttp, "middleware(db)", None, True),
    "asgi": (lambda *db: _plain(_asgi, asgi.UnitMiddleware, *db), "UnitMiddleware(app, db)", asgi.UnitMiddleware, True),
    "bottle": (_bottled, "app.install(Tenure(db))", None, False),
    "falcon-asgi": (lambda *db: _falcons(falcon.asgi.App(), *db), "in_units(app, db)", on_falcon.in_units, True),
    "falcon-wsgi": (lambda *db: _falcons(falcon.App(), *db), "in_units(app, db)", on_falcon.in_units, False),
    "fastapi": (
        lambda *db: _stacked(fastapi.FastAPI(), on_fastapi.UnitMiddleware, *db),
        "UnitMiddleware(app, db)",
        on_fastapi.UnitMiddleware,
        True,
    ),
    "flask": (lambda *db: _extended(flask.Flask("app"), on_flask.Tenure, *db), "Tenure(app, db)", on_flask.Tenure, False),
    "litestar": (
        lambda *db: litestar.Litestar(
            plugins=[on_litestar.TenurePlugin(one, session_name=f"s{n}") for n, one in enumerate(db)], logging_config=None
        ),
        "TenurePlugin(db)",
        None,
        True,
    ),
    "pyramid": (_pyramid, "config.add_units()", None, False),
    "quart": (lambda *db: _extended(quart.Quart("app"), on_quart.Tenure, *db), "Tenure(app, db)", on_quart.Tenure, True),
    "sanic": (lambda *db: _extended(_sanic(), on_sanic.Tenure, *db), "Tenure(app, db)", on_sanic.Tenure, True),
    "starlette": (
        lambda *db: _stacked(Starlette(), on_starlette.UnitMiddleware, *db),
        "UnitMiddleware(app, db)",
        on_starlette.UnitMiddleware,
        True,
    ),
    "webpy": (_webpy, "app.add_processor(processor(db))", None, False),
    "wsgi": (lambda *db: _plain(_wsgi, wsgi.UnitMiddleware, *db), "UnitMiddleware(app, db)", wsgi.UnitMiddleware, False),
}


@pytest.fixture(params=HOSTS.values(), ids=HOSTS.keys())
def host(request):
    return SimpleNamespace(**dict(zip(("register", "line", "swapped", "waits"), request.param, strict=True)))


def test_every_host_is_here():
    """R51: a host to come is asked the same."""
    folder = inspect.getfile(tenure).rpartition("/")[0]
    assert {name.partition("-")[0] for name in HOSTS} == _adapters(folder)


def _adapters(folder):
    from pathlib import Path

    shared = {"aio", "answering", "answers", "blocking", "boundary", "filling", "lifespan", "options", "registration", "request"}
    shared |= {"scope", "together", "webpy_handlers", "__init__"}
    return {file.stem for file in Path(folder, "web").glob("*.py")} - shared


def test_twice(host, make):
    """R51: one database twice would be one unit, and hide which of the two lines counts; a second database is none of that."""
    first = make()
    with pytest.raises(BadOption, match=rf"registered with 'main' already\. Leave one .*{re.escape(host.line)}") as caught:
        host.register(first, first)
    assert caught.value.slug == "bad-option"
    host.register(first, make())


def test_on_the_wrong_kind_of_application(host, make):
    """R51: something else, nothing, or the two arguments the other way round."""
    if host.swapped is None:
        return
    db = make()
    for app in (object(), "app"):
        with pytest.raises(BadOption, match=rf"{type(app).__name__} is not an? .*[Aa]pplication.*Give .*\(app, db\)"):
            host.swapped(app, db)
    with pytest.raises(BadOption, match=r"Give .*\(app, db\) the|The application comes first"):
        host.swapped(db, _asgi if host.waits else _wsgi)


@pytest.mark.parametrize(
    ("middleware", "app"), [(wsgi.UnitMiddleware, _asgi), (asgi.UnitMiddleware, _wsgi)], ids=["wsgi", "asgi"]
)
def test_for_the_other_kind_of_server(middleware, app, make):
    """R51: a WSGI application in the middleware for ASGI, and the other way round, is known by what it is called with."""
    with pytest.raises(BadOption, match=r"is called with \(.*\), not with \(.*\)\. Give UnitMiddleware\(app, db\) another kind"):
        middleware(app, make())


def test_with_no_database_a_closed_one_or_another_kind(host, make):
    """R51: what has no units, none any more, or would need a loop that a WSGI server has not."""
    for wrong in ("sqlite://", None) if host.swapped is not on_flask.Tenure else ("sqlite://",):
        with pytest.raises(BadOption, match=r"is not a Database|has no database|is missing|URL") as caught:
            host.register(wrong) if wrong is None or host.register is not _pyramid else host.register(object())
        assert "Give" in str(caught.value) or "Write" in str(caught.value) or "Set it" in str(caught.value)
    with pytest.raises(BadOption, match=r"'main' is closed\. Give the requests one that is open"):
        host.register(_closed(make()))
    if not host.waits:
        with pytest.raises(BadOption, match=r"AsyncDatabase is not a Database: .* Give a Database on a driver that blocks"):
            host.register(make(is_async=True))
    else:
        host.register(make(is_async=True))


def _answered():
    app = flask.Flask("app")
    app.test_client().get("/")
    return app


def _made():
    config = Configurator(settings={"tenure.db": "sqlite://"})
    config.make_wsgi_app()
    return config


def _started():
    app = Starlette()
    app.build_middleware_stack()
    app.middleware_stack = app.build_middleware_stack()
    return app


def _frozen():
    app = aiohttp.web.Application()
    app.freeze()
    return app


LATE = {
    "flask": (
        lambda db: on_flask.Tenure(_answered(), db),
        BadOption,
        r"'app' is at work already\. Register it where it is made, before",
    ),
    "pyramid": (lambda db: _made().include("tenure.web.pyramid"), BadOption, "the application is at work already"),
    "starlette": (
        lambda db: _started().add_middleware(on_starlette.UnitMiddleware, db),
        RuntimeError,
        "after an application has started",
    ),
    "aiohttp": (lambda db: _frozen().middlewares.append(on_aiohttp.middleware(db)), RuntimeError, "frozen"),
}


@pytest.mark.parametrize("name", LATE)
def test_when_it_is_at_work_already(name, make):
    """R51: tenure says so where the framework does not. On hosts that are not here it counts from the next request on (Sanic: its tests)."""
    register, error, says = LATE[name]
    with pytest.raises(error, match=says):
        register(make())


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_none_is_registered(make, is_async):
    """R51: what a handler is told that asks for a session, wherever it is: no unit, and the two lines that would make one."""
    db = make(is_async)
    with pytest.raises(NoUnit, match=r"no unit of 'main' is open.*Decorate the function with @db\.unit, or open one") as caught:
        _ = db.session
    assert "where the database is registered with it" in str(caught.value)
