"""Flask-SQLAlchemy applications as they are: ``adopt(app)``, which ``tenure.web.flask`` has too.

``db.session`` of Flask-SQLAlchemy stays the object that the application knows. Behind it, in place of a registry with the addresses
of contexts as its keys, is one that asks which unit is open: that of a ``db.unit`` block, else that of the application context.
A request's context has the request's unit; any other (a command's, the shell's, a test's) has a unit of its own from its first use on.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from flask import Flask, Response, current_app, g, has_app_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from sqlalchemy.util import ScopedRegistry

from tenure.core.base import FINAL
from tenure.core.current import Here
from tenure.core.database import Database
from tenure.core.session import UnitSession
from tenure.core.unit import BaseUnit
from tenure.exceptions import BadOption
from tenure.web.blocking import BlockingBoundary
from tenure.web.boundary import Commit
from tenure.web.flask import register
from tenure.web.request import Request
from tenure.web.scope import BlockingScope

_PLACE = "_tenure_place"  # in flask.g: where the unit of this context is


def adopt(app: Flask, *, commit: Commit = "auto", **options: Any) -> Database:
    """Let the Flask-SQLAlchemy of *app* run on tenure. Call it after ``init_app``; the application stays as it is.

    Args:
        app: The application.
        commit: ``"auto"`` (default) commits a request by its status; the application's own ``commit()`` is a checkpoint.
            ``"explicit"`` stores what the application commits itself, and logs work that is lost at the end of a request.
        options: Of the ``Database``: ``name``, ``isolation``, ``hold``, ``admission``, ``guards``, ``liveness``, ``limits``.

    Returns:
        The database, on the engine that Flask-SQLAlchemy has made for the default bind.

    Raises:
        BadOption: The application has no Flask-SQLAlchemy, or one whose sessions cannot be a unit's.

    """
    extension = getattr(app, "extensions", {}).get("sqlalchemy")
    if not isinstance(extension, SQLAlchemy):
        raise BadOption("adopt(app) finds no Flask-SQLAlchemy in app.extensions. Call it after db.init_app(app).")
    registry = _registry(extension)
    if app in registry.adopted:
        raise BadOption(f"{app.name!r} is adopted already. Leave one of them out.")
    with app.app_context():
        engines = extension.engines
    database = AdoptedDatabase(extension, engines, registry.createfunc, **options)
    contexts = _Contexts(app, database, commit)
    registry.adopted[app] = contexts
    return database


def _registry(extension: SQLAlchemy) -> UnitRegistry:
    """The registry of *extension*, which its applications share; those that are not adopted keep what they had."""
    session: Any = extension.session
    found = session.registry
    if not isinstance(found, UnitRegistry):
        if found.scopefunc.__module__ != SQLAlchemy.__module__.replace(".extension", ".session"):
            raise BadOption("session_options['scopefunc']: a unit belongs to its context. Leave it out.")
        found = session.registry = UnitRegistry(found)
    return found


# ------------------------------------------------------------------------------------------------- sessions


class AdoptedDatabase(Database):
    """A ``Database`` whose sessions are those that Flask-SQLAlchemy would make, and are a unit's."""

    def __init__(self, extension: Any, engines: Any, factory: Any, **options: Any) -> None:
        self.has_default = None in engines
        engine: Engine = engines[None] if self.has_default else next(iter(engines.values()))
        for name, value in factory.kw.items():
            if name in FINAL and value is not None:
                raise BadOption(f"session_options[{name!r}]: tenure sets this itself. Leave it out.")
        self._extension = _Extension(extension, engines)
        self._factory = factory
        super().__init__(engine, **options)
        made: Any = type("AdoptedSession", (AdoptedSession, UnitSession, factory.class_), {"made_by": factory.class_})
        self.session_class = made

    def new_session(self, unit: BaseUnit[Session]) -> tuple[Session, UnitSession]:
        """A session with the options that Flask-SQLAlchemy gives now: ``db.session.configure()`` may have changed them."""
        options = {name: value for name, value in self._factory.kw.items() if name not in FINAL}
        session = self.session_class(unit, **{**options, "db": self._extension})
        if not self.has_default:
            session.bind = None
        return session, session


class _Extension:
    """The extension as the sessions of one application see it, also where no context of that is: they ask it for the engines."""

    def __init__(self, extension: Any, engines: Any) -> None:
        self._extension = extension
        self.engines = engines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extension, name)


class AdoptedSession(Session):
    """Put before a unit's session and that of Flask-SQLAlchemy: the latter chooses the engine, the former how it is used."""

    made_by: type[Session]
    _supply: Any

    def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **more: Any) -> Any:
        """The connection or engine for a statement. Binds besides the default one are SQLAlchemy's business."""
        chosen = bind or self.made_by.get_bind(self, mapper, clause=clause, **more)
        if chosen is not self._supply.engine:
            bind = chosen
        return super().get_bind(mapper, clause=clause, bind=bind, **more)


class UnitRegistry(ScopedRegistry[Session]):
    """Behind ``db.session``: gives the session of the unit that is open, in an application that was adopted."""

    __slots__ = ("adopted", "before")

    def __init__(self, before: ScopedRegistry[Session]) -> None:
        super().__init__(before.createfunc, before.scopefunc)
        self.before = before
        self.adopted: WeakKeyDictionary[Flask, _Contexts] = WeakKeyDictionary()

    def _here(self) -> _Contexts | None:
        app: Any = current_app
        return self.adopted.get(app._get_current_object()) if has_app_context() else None  # noqa: SLF001 - documented

    def __call__(self) -> Session:
        """The session of the unit that is open here, which is opened by this."""
        contexts = self._here()
        return self.before() if contexts is None else contexts.session()

    def has(self) -> bool:
        """Whether ``remove()`` has something to do here."""
        contexts = self._here()
        return self.before.has() if contexts is None else contexts.in_use()

    def set(self, obj: Session) -> None:
        """Refused: a session that was made by hand is nobody's unit."""
        if self._here() is not None:
            raise BadOption("db.session(…) with arguments makes a session besides the unit's. Write it without, or db.unit(…).")
        self.before.set(obj)

    def clear(self) -> None:
        """The unit stays, and with it its session, which ``remove()`` has closed: it begins anew with its next use."""
        if self._here() is None:
            self.before.clear()


# ------------------------------------------------------------------------------------------------- contexts


class _Contexts:
    """The contexts of one application, each with its unit."""

    def __init__(self, app: Flask, database: AdoptedDatabase, commit: Commit) -> None:
        self.app: Any = app  # Flask 3.2 passes its context on: its methods take one argument more
        self.database = database
        self.boundary = BlockingBoundary(database, commit=commit)
        self.explicit = BlockingBoundary(database, commit="explicit")
        self.answer = app.full_dispatch_request
        app.full_dispatch_request = self.full_dispatch_request  # type: ignore[method-assign]
        self.tear_down = app.do_teardown_appcontext
        app.do_teardown_appcontext = self.do_teardown_appcontext  # type: ignore[method-assign,assignment]
        register(app, self.boundary)

    # -- what db.session asks -----------------------------------------------------------------------------------

    def session(self) -> Session:
        """The session of the unit that is open here."""
        var = self.database.current_place.var
        if not isinstance(var.get(), Here):  # else within db.unit
            place = self._place()
            if var.get() is not place:
                place.enter()  # a request that Flask has put into a context which was there before it
        return self.database.session

    def in_use(self) -> bool:
        """Whether a unit was opened here whose work is not settled, nor about to be."""
        place = g.get(_PLACE)
        if not isinstance(place, Request) or place.over or place.settled is not None:
            return False
        return place.unit is not None and not (isinstance(place, BlockingScope) and place.torn_down)

    def _place(self) -> Request:
        known = g.get(_PLACE)
        if isinstance(known, Request) and not known.over:
            return known
        place = self.boundary.here()
        if place is None or place.claimed:  # a context of its own, as within a request's
            place = BlockingScope(self.explicit, "application context")
        place.claimed = True
        setattr(g, _PLACE, place)
        return place

    # -- what Flask does ----------------------------------------------------------------------------------------

    def full_dispatch_request(self, *contexts: Any) -> Response:
        place = self._place()
        if not isinstance(place, BlockingScope) or self.boundary.explicit:
            return self.answer(*contexts)
        # Flask lets a request share the context that is there already, as in tests, and so shares its session.
        try:
            response = self.answer(*contexts)
        except BaseException:
            self.session().rollback()
            raise
        try:
            (self.session().commit if self.boundary.keeps(response.status_code) else self.session().rollback)()
        except Exception as error:
            self.session().rollback()
            response = self.app.finalize_request(*contexts, self.app.handle_user_exception(*contexts, error))
        return response

    def do_teardown_appcontext(self, *args: Any) -> None:
        scope = g.get(_PLACE)
        if not isinstance(scope, BlockingScope) or scope.over:
            self.tear_down(*args)
            return
        scope.torn_down = True
        try:
            self.tear_down(*args)
        finally:  # whatever somebody's callback raises
            scope.end(next((one for one in args if isinstance(one, BaseException)), None))
