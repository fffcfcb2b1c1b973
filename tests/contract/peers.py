"""Integrations of others, under the same probes. They are no hosts of ours: only ``make hosts`` runs them, and they may fail."""

import contextlib
import contextvars
import logging
import time
from types import SimpleNamespace
from unittest.mock import ANY

import flask
import litestar
import pyramid_tm
import sqlalchemy as sa
import zope.sqlalchemy
from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin, SQLAlchemySyncConfig
from context_async_sqlalchemy import DBConnect, db_session
from context_async_sqlalchemy.fastapi_utils import add_fastapi_http_db_session_middleware
from fastapi import Depends, FastAPI
from fastapi_async_sqlalchemy import middleware as of_fastapi_async_sqlalchemy
from flask_sqlalchemy import SQLAlchemy
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.threadlocal import get_current_request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import Request

from contract.host import Mistaken, Raised, Stream, driven
from contract.hosts import litestar as on_litestar
from contract.hosts import pyramid as on_pyramid
from contract.hosts import starlette
from contract.hosts.flask import Flask, answer_raised

from support import http
from support.face import Face, SessionFace, drive
from support.servers import DRIVERS

POOL = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 2}


class PeerFace(Face):
    """The probes' view of an engine and of the session that an integration has given them."""

    def __init__(self, engine, driver, session):
        super().__init__(SimpleNamespace(on_commit=self._on("after_commit"), on_rollback=self._on("after_rollback")), driver)
        self.dialect = DRIVERS[driver].dialect
        self.is_async = DRIVERS[driver].is_async
        self.engine = engine
        self._session = session

    def _on(self, name):
        """As one does it with SQLAlchemy alone."""

        def add(function, *args):
            session = self._session()
            sa.event.listen(getattr(session, "sync_session", session), name, lambda _: function(*args), once=True)

        return add

    @property
    def session(self):
        return SessionFace(self._session())

    @property
    def sync_engine(self):
        return getattr(self.engine, "sync_engine", self.engine)

    def out(self):
        """How many are out; one that is on its way home has a second, since nobody tells when a peer's session has ended."""
        ends = time.monotonic() + 1
        while self.sync_engine.pool.checkedout() and time.monotonic() < ends:
            time.sleep(0.01)
        return self.sync_engine.pool.checkedout()


class Untold:
    """In place of what tenure would tell: it is never wrong."""

    def closed(self, count=0):
        return [(ANY, ANY, ANY)] * count


class FlaskSQLAlchemy(Flask):
    """Each view ends with ``db.session.commit()``."""

    def make_face(self, url, driver, **options):
        self.app, self.db = flask.Flask("peer"), SQLAlchemy()
        self.app.config |= {"SQLALCHEMY_DATABASE_URI": url, "SQLALCHEMY_ENGINE_OPTIONS": {**POOL, **options}}
        self.db.init_app(self.app)
        with self.app.app_context():
            return PeerFace(self.db.engine, driver, self.db.session)

    def application(self, face, probes, **boundary):
        def page():
            try:
                answer = drive(probes[flask.request.path]())
            except Raised as raised:
                answer_raised(raised)
            self.db.session.commit()
            if isinstance(answer, Stream):
                return flask.stream_with_context(driven(answer.parts)), answer.status
            return answer.text, answer.status

        for path in probes:
            self.app.add_url_rule(path, path, page, methods=["GET", "POST"])
        self.app.register_error_handler(Mistaken, lambda error: ("handled", 409))
        self.app.logger.setLevel(logging.CRITICAL + 1)
        return self.app


class FastAPIYield(starlette.OnStarlette):
    """A dependency that yields a session within its transaction, as FastAPI's documentation has it."""

    name = "fastapi-yield"

    def make_face(self, url, driver, **options):
        self.current = contextvars.ContextVar("session")
        make = create_async_engine if DRIVERS[driver].is_async else sa.create_engine
        return PeerFace(make(url, **{**POOL, **options}), driver, self.current.get)

    def application(self, face, probes, **boundary):
        @contextlib.asynccontextmanager
        async def lifespan(app):
            yield
            await face.engine.dispose() if face.is_async else face.engine.dispose()

        app = FastAPI(exception_handlers={Mistaken: starlette.handled}, lifespan=lifespan)
        for path, probe in probes.items():
            app.add_api_route(path, self._endpoint(face, probe), methods=starlette.METHODS, response_model=None)
        return app

    def _endpoint(self, face, probe):
        def session_of():
            with Session(face.engine) as session, session.begin():
                yield session

        async def async_session_of():
            async with AsyncSession(face.engine) as session, session.begin():
                yield session

        async def waits(request: Request, session=Depends(async_session_of)):  # noqa: B008 - as FastAPI wants it
            self.current.set(session)
            with starlette._raising():
                return await starlette._response(face, await probe())

        def blocks(request: Request, session=Depends(session_of)):  # noqa: B008 - as FastAPI wants it
            self.current.set(session)
            with starlette._raising():
                answer = drive(probe())
                if isinstance(answer, Stream):
                    answer.parts = _within(self.current, session, answer.parts)
                return drive(starlette._response(face, answer))

        return waits if face.is_async else blocks


async def _within(current, session, parts):
    """Each part of a body is made in another thread, whose context does not know the endpoint's session."""
    with contextlib.suppress(StopAsyncIteration):
        while True:
            current.set(session)
            yield await anext(parts)


class OnFastAPI(starlette.OnStarlette):
    """FastAPI with a middleware of others, whose session comes by `found`."""

    faces = ("async",)

    def make_face(self, url, driver, **options):
        self.current = contextvars.ContextVar("session")
        self.engine = create_async_engine(url, **{**POOL, **options})
        return PeerFace(self.engine, driver, self.current.get)

    def application(self, face, probes, **boundary):
        @contextlib.asynccontextmanager
        async def lifespan(app):
            yield
            await self.engine.dispose()

        app = FastAPI(exception_handlers={Mistaken: starlette.handled}, lifespan=lifespan)
        for path, probe in probes.items():
            app.add_api_route(path, self._endpoint(face, probe), methods=starlette.METHODS, response_model=None)
        self.register(app)
        return app

    def _endpoint(self, face, probe):
        async def waits(request: Request):
            self.current.set(await self.found())
            with starlette._raising():
                return await starlette._response(face, await probe())

        return waits


class FastAPIAsync(OnFastAPI):
    """``commit_on_exit`` in place of a commit in each endpoint."""

    name = "fastapi-async-sqlalchemy"

    def register(self, app):
        middleware, self.proxy = of_fastapi_async_sqlalchemy.create_middleware_and_session_proxy()
        app.add_middleware(middleware, custom_engine=self.engine, commit_on_exit=True)

    async def found(self):
        return self.proxy.session


class ContextAsync(OnFastAPI):
    """Its middleware for FastAPI commits by the status."""

    name = "context-async-sqlalchemy"

    def register(self, app):
        self.connect = DBConnect(
            lambda host: self.engine, lambda engine: async_sessionmaker(engine, expire_on_commit=False), "here"
        )
        add_fastapi_http_db_session_middleware(app)

    async def found(self):
        return await db_session(self.connect)


class AdvancedAlchemy(on_litestar.OnLitestar):
    """``before_send_handler="autocommit"``: a status of 2xx commits."""

    name = "advanced-alchemy"

    def make_face(self, url, driver, **options):
        self.current = contextvars.ContextVar("session")
        waits = DRIVERS[driver].is_async
        make, config = (create_async_engine, SQLAlchemyAsyncConfig) if waits else (sa.create_engine, SQLAlchemySyncConfig)
        self.config = config(engine_instance=make(url, **{**POOL, **options}), before_send_handler="autocommit")
        return PeerFace(self.config.engine_instance, driver, self.current.get)

    def application(self, face, probes, **boundary):
        return litestar.Litestar(
            [self._handler(face, path, probe) for path, probe in probes.items()],
            plugins=[SQLAlchemyPlugin(self.config)],
            exception_handlers={Mistaken: on_litestar._mistaken},
            on_startup=[on_litestar._threads],
            logging_config=None,
            openapi_config=None,
        )

    def _handler(self, face, path, probe):
        async def waits(db_session: AsyncSession) -> litestar.Response:
            self.current.set(db_session)
            with on_litestar._raising():
                return await on_litestar._response(face, await probe())

        def blocks(db_session: Session) -> litestar.Response:
            self.current.set(db_session)
            with on_litestar._raising():
                answer = drive(probe())
                if isinstance(answer, Stream):
                    answer.parts = _within(self.current, db_session, answer.parts)
                return drive(on_litestar._response(face, answer))

        more = {} if face.is_async else {"sync_to_thread": True}
        return litestar.route(path, http_method=["GET", "POST"], status_code=200, **more)(waits if face.is_async else blocks)


class Zope(on_pyramid.Pyramid):
    """``pyramid_tm`` and ``zope.sqlalchemy``, as Pyramid's cookiecutter joins them."""

    name = "zope.sqlalchemy"

    def make_face(self, url, driver, **options):
        self.current = contextvars.ContextVar("session")
        self.make = sessionmaker(sa.create_engine(url, **{**POOL, **options}))
        return PeerFace(self.make.kw["bind"], driver, self.current.get)

    def configured(self, face, probes, **boundary):
        def session_of(request):
            session = self.make(info={"request": request})
            zope.sqlalchemy.register(session, transaction_manager=request.tm)
            self.current.set(session)
            return session

        config = Configurator(settings={"tm.manager_hook": pyramid_tm.explicit_manager})
        config.include("pyramid_tm")
        config.add_request_method(session_of, "dbsession", reify=True)
        self.routed(config, {path: _asked_first(probe) for path, probe in probes.items()})
        config.add_exception_view(lambda error, request: Response("handled", 409), context=Mistaken)
        return config


def _asked_first(probe):
    """A view that takes its session before anything else."""

    async def first():
        get_current_request().dbsession  # noqa: B018 - it is made by being looked at
        return await probe()

    return first


_ALL = (
    FlaskSQLAlchemy("flask-sqlalchemy", http.cheroot),
    FastAPIYield(),
    FastAPIAsync(),
    ContextAsync(),
    AdvancedAlchemy(),
    Zope(),
)
PEERS = {one.name: one for one in _ALL}
