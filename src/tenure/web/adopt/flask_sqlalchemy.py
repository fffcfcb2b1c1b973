"""Flask-SQLAlchemy: ``db.session`` stays the object that the application knows, and asks which unit is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session
from sqlalchemy.util import ScopedRegistry

from tenure.exceptions import BadOption
from tenure.web.adopt.contexts import Contexts, adopted, refuse_twice
from tenure.web.adopt.sessions import AdoptedDatabase
from tenure.web.boundary import Commit


def adopt(app: Flask, extension: SQLAlchemy, commit: Commit, options: Mapping[str, Any]) -> AdoptedDatabase:
    """Let *extension* run on tenure in *app*."""
    refuse_twice(app, extension)
    session: Any = extension.session
    before: ScopedRegistry[Session] = session.registry
    with app.app_context():
        engines = extension.engines
    database = AdoptedDatabase(before.createfunc, engines, None, {"db": _Extension(extension, engines)}, options)
    Contexts(app, extension, database, commit)
    if not isinstance(before, UnitRegistry):
        session.registry = UnitRegistry(extension, before)
    return database


class _Extension:
    """The extension as the sessions of one application see it, also where no context of that is: they ask it for the engines."""

    def __init__(self, extension: SQLAlchemy, engines: Any) -> None:
        self._extension = extension
        self.engines = engines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extension, name)


class UnitRegistry(ScopedRegistry[Session]):
    """Behind ``db.session``: gives the session of the unit that is open, in an application that was adopted; others keep theirs."""

    __slots__ = ("before", "extension")

    def __init__(self, extension: SQLAlchemy, before: ScopedRegistry[Session]) -> None:
        super().__init__(before.createfunc, before.scopefunc)
        self.extension = extension
        self.before = before

    def __call__(self) -> Session:
        """The session of the unit that is open here, which is opened by this."""
        contexts = adopted(self.extension)
        if contexts is None:
            return self.before()
        return contexts.session() if self._is_plain() else contexts.scoped(self.scopefunc())

    def _is_plain(self) -> bool:
        """Whether sessions belong to contexts; with a ``scopefunc`` of the application's own a context has one for each key."""
        return self.scopefunc.__module__ == SQLAlchemy.__module__.replace(".extension", ".session")

    def has(self) -> bool:
        """Whether ``remove()`` has something to do here."""
        contexts = adopted(self.extension)
        if contexts is None:
            return self.before.has()
        return contexts.in_use(None if self._is_plain() else self.scopefunc())

    def set(self, obj: Session) -> None:
        """Refused: a session that was made by hand is nobody's unit."""
        if adopted(self.extension) is not None:
            raise BadOption("db.session(…) with arguments makes a session besides the unit's. Write it without, or db.unit(…).")
        self.before.set(obj)

    def clear(self) -> None:
        """The unit stays, and with it its session, which ``remove()`` has closed: it begins anew with its next use."""
        if adopted(self.extension) is None:
            self.before.clear()
