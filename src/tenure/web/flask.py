"""Flask: ``Tenure(app, db)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Unpack, cast

from flask import Flask, Response, current_app
from flask import request as flask_request
from sqlalchemy.orm import Session
from werkzeug.exceptions import HTTPException, default_exceptions

from tenure.core.database import Database
from tenure.core.decorate import fill, fill_methods
from tenure.exceptions import BadOption
from tenure.web.answers import refusal
from tenure.web.blocking import BlockingBoundary
from tenure.web.boundary import Rules, chosen, enlist
from tenure.web.wsgi import UnitMiddleware

_CALLED = frozenset(["dispatch_request", "get", "post", "put", "patch", "delete", "head", "options", "trace"])


class Tenure:
    """Gives each request of a Flask application its unit, and the views their sessions.

    Args:
        app: The application; or call ``init_app`` later.
        database: Whose units its requests are.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application cannot be registered (any more).

    """

    def __init__(
        self,
        app: Flask | None = None,
        database: Database | None = None,
        **rules: Unpack[Rules],
    ) -> None:
        self._database = database
        self._rules = rules
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, database: Database | None = None) -> None:
        """Register *app*, with *database* where the constructor got none.

        Raises:
            BadOption: As the constructor.

        """
        if not isinstance(cast("object", app), Flask):
            raise BadOption(f"{type(app).__name__} is not a Flask application. Give Tenure(app, db) the Flask().")
        register(app, BlockingBoundary(chosen(database, self._database), **self._rules))


def register(app: Flask, boundary: BlockingBoundary, here: Callable[[], Any] | None = None) -> None:
    """Put *boundary* around the requests of *app*. *here* gives what a request settles, where that is not its own unit."""
    database = boundary.database
    # Private, but Flask itself asks it in every method that sets up. tests/web/test_flask.py fails when it changes.
    if getattr(app, "_got_first_request", False):
        raise BadOption(f"{app.name!r} has answered requests already. Register it where it is made.")
    known: list[Any] = app.extensions.setdefault("tenure", [])
    enlist(known, database, app.name)
    app.wsgi_app = UnitMiddleware.around(app.wsgi_app, boundary)  # type: ignore[method-assign]
    settling = _Settling(app, boundary, here or boundary.here)
    app.handle_user_exception = settling.handle_user_exception  # type: ignore[method-assign,assignment]
    app.full_dispatch_request = settling.full_dispatch_request  # type: ignore[method-assign]
    app.handle_exception = settling.handle_exception  # type: ignore[method-assign,assignment]
    if len(known) == 1:
        filling = _Filling(app)
        app.full_dispatch_request = filling.full_dispatch_request  # type: ignore[method-assign]


class _Settling:
    """Commits as soon as there is an answer, and gives what COMMIT raises to the error handlers, as if the view had raised it."""

    def __init__(self, app: Flask, boundary: BlockingBoundary, here: Callable[[], Any]) -> None:
        self.here = here
        self.app: Any = app  # Flask 3.2 passes its context on: its methods take one argument more
        self.boundary = boundary
        self.answer = app.full_dispatch_request
        self.handle: Any = app.handle_user_exception
        self.sorry: Any = app.handle_exception

    def handle_user_exception(self, *given: Any) -> Any:
        """Of an HTTPException Flask would make an answer whose body nobody knows to be whole."""
        rv = self.handle(*given)
        return rv.get_response(flask_request.environ) if isinstance(rv, HTTPException) else rv

    def full_dispatch_request(self, *contexts: Any) -> Response:
        request = self.here()
        if request is None:
            return self.answer(*contexts)
        try:
            response = self.answer(*contexts)
            try:
                request.settle(response.status_code)
            except Exception as error:
                response = self._handled(contexts, error)
        except Exception as error:
            if not self.boundary.explicit:  # else the handler of a 500 may have something to commit
                request.settle(500, error)
            refused = refusal(error)
            if refused is None:
                raise
            response = self._handled(contexts, default_exceptions[int(refused.status.split()[0])]())
            response.headers.update(refused.headers)
        request.whole = response.is_sequence
        return response

    def _handled(self, contexts: tuple[Any, ...], error: Exception) -> Response:
        """What the application's error handlers answer for *error*; raises it where there is none."""
        return self.app.finalize_request(*contexts, self.app.handle_user_exception(*contexts, error))  # type: ignore[no-any-return]

    def handle_exception(self, *given: Any) -> Response:
        """What nobody has handled becomes the page of a 500."""
        response: Response = self.sorry(*given)
        if (request := self.here()) is not None:
            request.whole = response.is_sequence
        return response


class _OfTheApplication:
    """The first database of the application that has called a view: a class of views may belong to several."""

    @property
    def session(self) -> Session:
        """The session of the request's unit."""
        database: Database = current_app.extensions["tenure"][0]
        return database.session


_HERE = _OfTheApplication()


class _Filling:
    """Views may be added until the first request, which finds each session parameter filled in."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.answer = app.full_dispatch_request
        self.filled = False

    def full_dispatch_request(self, *contexts: Any) -> Response:
        if not self.filled:
            self.fill(self.app.view_functions)
            self.filled = True  # not before: the first requests come at once
            if self.app.full_dispatch_request == self.full_dispatch_request:  # else somebody has put theirs around it
                self.app.full_dispatch_request = self.answer  # type: ignore[method-assign]
        return self.answer(*contexts)

    def fill(self, views: dict[str, Callable[..., Any]]) -> None:
        for endpoint, view in list(views.items()):
            if isinstance(kind := getattr(view, "view_class", None), type):
                fill_methods(_HERE, kind, _CALLED.__contains__)
            elif not inspect.iscoroutinefunction(view):
                views[endpoint] = fill(_HERE, view)


def __getattr__(name: str) -> Any:
    """``adopt`` and ``adopt_async``, which stand on this module, are loaded when they are asked for."""
    if name in ("adopt", "adopt_async"):
        from tenure.web import adopt

        return getattr(adopt, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
