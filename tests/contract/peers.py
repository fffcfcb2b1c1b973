"""Integrations of others, under the same probes. They are no hosts of ours: only ``make hosts`` runs them, and they may fail."""

import contextlib
import contextvars
import logging
from types import SimpleNamespace
from unittest.mock import ANY

import flask
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from starlette.requests import Request
from werkzeug.exceptions import HTTPException

from contract.host import Mistaken, Raised, Stream, driven
from contract.hosts import starlette
from contract.hosts.flask import Flask

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
                if raised.location:
                    flask.abort(flask.redirect(raised.location, raised.status))
                if raised.status < 400:
                    raise HTTPException(response=flask.Response("raised", raised.status)) from None
                flask.abort(raised.status)
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
                    answer.parts = self._within(session, answer.parts)
                return drive(starlette._response(face, answer))

        return waits if face.is_async else blocks

    async def _within(self, session, parts):
        """Each part of a body is made in another thread, whose context does not know the endpoint's session."""
        with contextlib.suppress(StopAsyncIteration):
            while True:
                self.current.set(session)
                yield await anext(parts)


PEERS = {one.name: one for one in (FlaskSQLAlchemy("flask-sqlalchemy", http.cheroot), FastAPIYield())}
