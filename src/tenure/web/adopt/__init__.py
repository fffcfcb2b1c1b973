"""Flask applications on somebody else's extension, as they are: ``adopt(app)``, which ``tenure.web.flask`` has too."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tenure.exceptions import BadOption

if TYPE_CHECKING:
    from flask import Flask

    from tenure.core.aio import AsyncDatabase
    from tenure.core.database import Database
    from tenure.web.boundary import Commit


def adopt(app: Flask, *, commit: Commit = "auto", **options: Any) -> Database:
    """Let the Flask-SQLAlchemy or Flask-SQLAlchemy-Lite of *app* run on tenure. Call it after ``init_app``; the application stays.

    Args:
        app: The application.
        commit: ``"auto"`` (default) commits a request by its status; the application's own ``commit()`` is a checkpoint.
            ``"explicit"`` stores what the application commits itself, and logs work that is lost at the end of a request.
        options: Of the ``Database``: ``name``, ``isolation``, ``hold``, ``admission``, ``guards``, ``liveness``, ``limits``.

    Returns:
        The database, on the engine that the extension has made as its default.

    Raises:
        BadOption: The application has no such extension, was adopted already, or has sessions that cannot be a unit's.

    """
    extension = _extension(app)
    if _is_of("flask_sqlalchemy", extension):
        from tenure.web.adopt import flask_sqlalchemy

        return flask_sqlalchemy.adopt(app, extension, commit, options)
    if _is_of("flask_sqlalchemy_lite", extension):
        from tenure.web.adopt import lite

        return lite.adopt(app, extension, commit, options)
    raise _nothing("adopt", "Flask-SQLAlchemy")


def adopt_async(app: Flask, *, commit: Commit = "auto", **options: Any) -> AsyncDatabase:
    """Let the asynchronous sessions of an application's Flask-SQLAlchemy-Lite run on tenure. Call it after ``init_app``.

    Args:
        app: The application.
        commit: As for ``adopt``, but what it commits is what one ``async def`` function that Flask calls has done.
        options: Of the ``AsyncDatabase``.

    Returns:
        The database, on the extension's default asynchronous engine.

    Raises:
        BadOption: As ``adopt``, or the application has no asynchronous engine.

    """
    extension = _extension(app)
    if _is_of("flask_sqlalchemy_lite", extension):
        from tenure.web.adopt import lite_async

        return lite_async.adopt(app, extension, commit, options)
    raise _nothing("adopt_async", "Flask-SQLAlchemy-Lite")


def _extension(app: Any) -> Any:
    return getattr(app, "extensions", {}).get("sqlalchemy")


def _is_of(package: str, extension: Any) -> bool:
    """Whether *extension* is that of *package*, which is not loaded to find out."""
    kind = getattr(sys.modules.get(package), "SQLAlchemy", None)
    return kind is not None and isinstance(extension, kind)


def _nothing(name: str, package: str) -> BadOption:
    return BadOption(f"{name}(app) finds no {package} in app.extensions. Call it after db.init_app(app).")
