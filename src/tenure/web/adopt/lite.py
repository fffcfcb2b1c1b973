"""Flask-SQLAlchemy-Lite: ``db.session`` is the session of the context's unit, ``db.get_session(name)`` a further one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Flask
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy.orm import Session

from tenure.exceptions import BadOption
from tenure.web.adopt.contexts import Contexts, adopted, refuse_twice
from tenure.web.adopt.sessions import AdoptedDatabase
from tenure.web.boundary import Commit

DEFAULT = "default"


def adopt(app: Flask, extension: SQLAlchemy, commit: Commit, options: Mapping[str, Any]) -> AdoptedDatabase:
    """Let the synchronous sessions of *extension* run on tenure in *app*."""
    refuse_twice(app, extension)
    with app.app_context():
        engines, factory = extension.engines, extension.sessionmaker
    if not engines:
        raise BadOption(f"{app.name!r} has no SQLALCHEMY_ENGINES. For those of SQLALCHEMY_ASYNC_ENGINES call adopt_async(app).")
    database = AdoptedDatabase(factory, engines, DEFAULT, {}, options)
    Contexts(app, extension, database, commit)
    before = extension.get_session  # that of an extension which another of its applications has adopted asks for that one

    def get_session(name: str = DEFAULT) -> Session:
        contexts = adopted(extension)
        return before(name) if contexts is None else contexts.session(None if name == DEFAULT else name)

    extension.get_session = get_session  # type: ignore[method-assign]
    return database
