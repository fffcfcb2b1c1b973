"""Flask-SQLAlchemy-Lite's ``db.async_session``: its units belong to the ``async def`` function that Flask has called.

Flask runs each such function, whether it is a view, a hook or an error handler, on an event loop of its own, which has ended before
there is an answer. So that function is what ends: its unit is settled in its loop, by what it has returned or raised.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, cast

from flask import Flask, Response, current_app, has_app_context
from flask.typing import ResponseReturnValue
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.exceptions import HTTPException

from tenure.core.aio import AsyncDatabase
from tenure.core.session import AsyncioUnitSession, UnitSession
from tenure.core.unit import BaseUnit
from tenure.exceptions import BadOption
from tenure.web.adopt.lite import DEFAULT
from tenure.web.adopt.sessions import AdoptedSession, options_now, refuse_final
from tenure.web.aio import LoopBoundary
from tenure.web.boundary import Commit

_ADOPTED = "tenure.adopted_async"  # in app.extensions
_SYNC_CLASS = "sync_session_class"


def adopt(app: Flask, extension: SQLAlchemy, commit: Commit, options: Mapping[str, Any]) -> AsyncDatabase:
    """Let the asynchronous sessions of *extension* run on tenure in *app*."""
    if _ADOPTED in app.extensions:
        raise BadOption(f"{app.name!r} is adopted already. Leave one of them out.")
    with app.app_context():
        engines, factory = extension.async_engines, extension.async_sessionmaker
    if DEFAULT not in engines:
        raise BadOption(f"{app.name!r} has no SQLALCHEMY_ASYNC_ENGINES['{DEFAULT}']. For SQLALCHEMY_ENGINES call adopt(app).")
    database = AdoptedAsyncDatabase(factory, engines[DEFAULT], options)
    functions = _Functions(app, LoopBoundary(database, commit=commit))
    app.extensions[_ADOPTED] = functions
    before = extension.get_async_session

    def get_async_session(name: str = DEFAULT) -> AsyncSession:
        here: _Functions | None = current_app.extensions.get(_ADOPTED) if has_app_context() else None
        return before(name) if here is None or not here.has(name) else database.session

    extension.get_async_session = get_async_session  # type: ignore[method-assign]
    return database


class AdoptedAsyncDatabase(AsyncDatabase):
    """An ``AsyncDatabase`` whose sessions are those that the extension would make, and are a unit's.

    Args:
        factory: The extension's ``async_sessionmaker``.
        engine: Its default engine.
        options: Of the ``AsyncDatabase``.

    """

    def __init__(self, factory: Any, engine: Any, options: Mapping[str, Any]) -> None:
        refuse_final(factory.kw)
        self._factory = factory
        super().__init__(engine, **options)
        beneath = factory.kw.get(_SYNC_CLASS) or factory.class_.sync_session_class
        made: Any = type("AdoptedSession", (AdoptedSession, AsyncioUnitSession, beneath), {"made_by": beneath})
        self.session_class = made

    def new_session(self, unit: BaseUnit[AsyncSession]) -> tuple[AsyncSession, UnitSession]:
        """A session as the extension would make it now."""
        options = {**options_now(self._factory), _SYNC_CLASS: self.session_class}
        session: AsyncSession = self._factory.class_(self.engine, unit=unit, **options)
        door = session.sync_session
        assert isinstance(door, UnitSession)
        return session, door


class _Functions:
    """The ``async def`` functions of one application, each with its unit."""

    def __init__(self, app: Flask, boundary: LoopBoundary) -> None:
        self._app = app
        self._boundary = boundary
        self._run = app.async_to_sync
        app.async_to_sync = self.async_to_sync  # type: ignore[method-assign,assignment]

    def has(self, name: str) -> bool:
        """Whether the session of that name is a unit's here: another loop's, or one beside it, is the extension's own."""
        return name == DEFAULT and self._boundary.database.current_place.open() is not None

    def async_to_sync(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """What Flask calls for a coroutine function."""

        @wraps(function)
        async def within(*args: Any, **kw: Any) -> Any:
            request = self._boundary.begin(function.__qualname__)
            try:
                result = await function(*args, **kw)
                await request.settle(self._status(result))
            except HTTPException as answer:
                await request.settle(answer.get_response().status_code)
                raise
            except BaseException as error:
                await request.settle(500, error)
                raise
            finally:
                try:
                    await request.finish()
                finally:
                    request.gone()
            return result

        return self._run(within)

    def _status(self, result: Any) -> int:
        """The status of what a view returns; what a hook returns is a success."""
        if isinstance(result, HTTPException):
            return result.get_response().status_code
        if isinstance(result, (tuple, Response)):
            return self._app.make_response(cast("ResponseReturnValue", result)).status_code
        return 200
