"""One request with one read, and one with one write, on four frameworks: in their usual integration's hands and in tenure's.

The requests are made in process, so that no server and no client is measured. Each pair of applications differs in who makes, ends and
commits the session; that of Starlette has no database at all.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import models
from benchmarks.bench import Bench
from benchmarks.models import KEY, User
from benchmarks.rounds import Timed, measure, measure_async

READ, WRITE = "/read", "/write"
USUAL = {
    "Flask": "Flask-SQLAlchemy",
    "Pyramid": "pyramid_tm, zope.sqlalchemy",
    "FastAPI": "a yield dependency",
    "Litestar": "SQLAlchemyPlugin of advanced-alchemy",
}
OURS = "tenure"


@dataclass
class Pair:
    """The same two pages twice."""

    usual: Any
    ours: Any
    close: Callable[[], Any]
    open: Callable[[], Any] | None = None


# ------------------------------------------------------------------------------------------- blocking


def flask(url: URL) -> Pair:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from tenure import Database
    from tenure.web.flask import Tenure

    usual, ours = Flask("usual"), Flask("ours")
    usual.config["SQLALCHEMY_DATABASE_URI"] = url
    theirs, database = SQLAlchemy(usual), Database(url)
    Tenure(ours, database)

    @usual.get(READ)
    def usual_read() -> str:
        user = theirs.session.get(User, KEY)
        assert user is not None
        return user.name

    @usual.get(WRITE)
    def usual_write() -> str:
        theirs.session.add(User(name="new"))
        theirs.session.commit()
        return "stored"

    @ours.get(READ)
    def read(session: Session) -> str:
        user = session.get(User, KEY)
        assert user is not None
        return user.name

    @ours.get(WRITE)
    def write(session: Session) -> str:
        session.add(User(name="new"))
        return "stored"

    with usual.app_context():
        engine = theirs.engine
    return Pair(usual, ours, lambda: (engine.dispose(), database.close()))


def pyramid(url: URL) -> Pair:
    import pyramid_tm
    import zope.sqlalchemy
    from pyramid.config import Configurator
    from pyramid.response import Response

    from tenure import Database

    make, database = sessionmaker(create_engine(url)), Database(url)

    def read(request: Any) -> Any:
        return Response(request.dbsession.get(User, KEY).name)

    def write(request: Any) -> Any:
        request.dbsession.add(User(name="new"))
        return Response("stored")

    def session_of(request: Any) -> Any:  # as Pyramid's cookiecutter has it
        session = make(info={"request": request})
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    def application(config: Any) -> Any:
        for path, view in ((READ, read), (WRITE, write)):
            config.add_route(path, path)
            config.add_view(view, route_name=path)
        return config.make_wsgi_app()

    usual = Configurator(settings={"tm.manager_hook": pyramid_tm.explicit_manager})
    usual.include("pyramid_tm")
    usual.add_request_method(session_of, "dbsession", reify=True)
    ours = Configurator(settings={"tenure.db": database})
    ours.include("tenure.web.pyramid")
    return Pair(application(usual), application(ours), lambda: (make.kw["bind"].dispose(), database.close()))


def _start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    assert status.startswith("200"), status


def _called(app: Any, environ: dict[str, Any]) -> None:
    body: Iterable[bytes] = app({**environ}, _start)
    b"".join(body)
    if hasattr(body, "close"):
        body.close()


# -------------------------------------------------------------------------------------- on an event loop


def fastapi(url: URL) -> Pair:
    from fastapi import Depends, FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    from tenure import AsyncDatabase
    from tenure.web.fastapi import UnitMiddleware
    from tenure.web.fastapi import session_of as ours_of

    engine, database = create_async_engine(url), AsyncDatabase(url)

    async def usual_of() -> AsyncIterator[Any]:
        async with AsyncSession(engine) as session:
            yield session

    def application(session_of: Any, *, commits: bool) -> Any:
        app, given = FastAPI(), Depends(session_of)

        @app.get(READ)
        async def read(session: Any = given) -> str:
            name: str = (await session.get(User, KEY)).name
            return name

        @app.get(WRITE)
        async def write(session: Any = given) -> str:
            session.add(User(name="new"))
            if commits:
                await session.commit()
            return "stored"

        return app

    ours = application(ours_of(database), commits=False)
    ours.add_middleware(UnitMiddleware, database)

    async def close() -> None:
        await engine.dispose()
        await database.close()

    return Pair(application(usual_of, commits=True), ours, close)


def litestar(url: URL) -> Pair:
    from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin
    from litestar import Litestar, get
    from sqlalchemy.ext.asyncio import AsyncSession

    from tenure import AsyncDatabase
    from tenure.web.litestar import TenurePlugin

    async def read(db_session: AsyncSession) -> str:
        user = await db_session.get(User, KEY)
        assert user is not None
        return user.name

    async def write(db_session: AsyncSession) -> str:
        db_session.add(User(name="new"))
        return "stored"

    text = url.render_as_string(hide_password=False)
    config, database = SQLAlchemyAsyncConfig(connection_string=text, before_send_handler="autocommit"), AsyncDatabase(url)

    def application(plugin: Any) -> Any:
        handlers = [
            get(path, media_type="text/plain", signature_namespace={"AsyncSession": AsyncSession})(handler)
            for path, handler in ((READ, read), (WRITE, write))
        ]
        return Litestar(handlers, plugins=[plugin], logging_config=None, openapi_config=None)

    usual, ours = application(SQLAlchemyPlugin(config)), application(TenurePlugin(database, close=True))
    opened, ended = asyncio.Event(), asyncio.Event()
    lives: list[asyncio.Task[None]] = []

    async def live() -> None:  # a lifespan ends in the task in which it began
        async with usual.lifespan(), ours.lifespan():
            opened.set()
            await ended.wait()

    async def open_() -> None:
        lives.append(asyncio.create_task(live()))
        await opened.wait()

    async def close() -> None:
        ended.set()
        await lives[0]

    return Pair(usual, ours, close, open_)


async def _asked(app: Any, path: str) -> None:
    """One request without a body, whose client stays."""
    coming = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop()

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200, message

    await app(
        {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": path,
            "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": [(b"host", b"bench")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        },
        receive, send,
    )  # fmt: skip


def starlette_pages() -> dict[str, Callable[[], Any]]:
    """A page without SQL, on Starlette alone and with tenure."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from tenure import AsyncDatabase
    from tenure.web.starlette import UnitMiddleware

    async def page(request: Any) -> Any:
        return PlainTextResponse("hello")

    plain, wrapped = (Starlette(routes=[Route("/", page)]) for _ in range(2))
    wrapped.add_middleware(UnitMiddleware, AsyncDatabase("sqlite+aiosqlite://"))
    return {"a page of Starlette without SQL": partial(_asked, plain, "/"), "the same with tenure": partial(_asked, wrapped, "/")}


# ------------------------------------------------------------------------------------------- the rows


def requests(bench: Bench) -> None:
    """One read and one write on each framework, and a page without either on Starlette."""
    models.create(create_engine(bench.on("psycopg")))
    for make in (flask, pyramid):
        if make is pyramid and importlib.util.find_spec("pyramid_tm") is None:
            bench.report.console.print("Pyramid is left out: pyramid_tm is not installed", style="bold red")
            continue
        _blocking(bench, make.__name__.title(), make(bench.on("psycopg")))
    with asyncio.Runner() as runner:
        found = measure_async(starlette_pages(), bench.rounds, runner)
        bench.report.timed("A page of Starlette without SQL", found)
        bench.report.target("a page without SQL, with tenure / Starlette alone", 1.10, list(found.values())[1].median)
        for name, make in (("FastAPI", fastapi), ("Litestar", litestar)):
            _waiting(bench, name, make(bench.on("asyncpg")), runner)


def _blocking(bench: Bench, framework: str, pair: Pair) -> None:
    from werkzeug.test import EnvironBuilder

    for what in (READ, WRITE):
        environ = EnvironBuilder(path=what).get_environ()
        both = {USUAL[framework]: partial(_called, pair.usual, environ), OURS: partial(_called, pair.ours, environ)}
        _found(bench, framework, what, measure(both, bench.rounds))
    pair.close()


def _waiting(bench: Bench, framework: str, pair: Pair, runner: asyncio.Runner) -> None:
    if pair.open is not None:
        runner.run(pair.open())
    for what in (READ, WRITE):
        both = {USUAL[framework]: partial(_asked, pair.usual, what), OURS: partial(_asked, pair.ours, what)}
        _found(bench, framework, what, measure_async(both, bench.rounds, runner))
    runner.run(pair.close())


def _found(bench: Bench, framework: str, what: str, found: dict[str, Timed]) -> None:
    work = "one read" if what == READ else "one write"
    bench.report.timed(f"A request with {work} on {framework}, PostgreSQL", found)
    bench.report.target(f"a request with {work}, {framework} / {USUAL[framework]}", 1.00, found[OURS].median)
