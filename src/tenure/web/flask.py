"""Flask: ``Tenure(app, db)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from flask import Flask, current_app
from flask import request as flask_request
from werkzeug.exceptions import HTTPException, default_exceptions

from tenure.core.database import Database
from tenure.web.blocking import BlockingBoundary
from tenure.web.boundary import Rules
from tenure.web.filling import SessionOf, filled
from tenure.web.registration import Extension, check_in_time, claim
from tenure.web.wsgi import UnitMiddleware

_CALLED = frozenset(["dispatch_request", "get", "post", "put", "patch", "delete", "head", "options", "trace"])
_SESSION = SessionOf(lambda: current_app.extensions["tenure"][0])


class Tenure(Extension[Flask, Database]):
    """Gives each request of a Flask application its unit, and the views their sessions.

    Args:
        app: The application; or call ``init_app`` later.
        database: Whose units its requests are.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application cannot be registered (any more).

    """

    kind = Flask

    def __init__(self, app: Flask | None = None, database: Database | None = None, **rules: Unpack[Rules]) -> None:
        super().__init__(app, database, rules)

    def register(self, app: Flask, database: Database, rules: Mapping[str, Any]) -> None:
        """Put units around the requests of *app*."""
        register(app, BlockingBoundary(database, **rules))


def register(app: Flask, boundary: BlockingBoundary, here: Callable[[], Any] | None = None) -> None:
    """Put *boundary* around the requests of *app*. *here* gives what a request settles, where that is not its own unit."""
    # Private, but Flask itself asks it in every method that sets up. tests/web/test_flask.py fails when it changes.
    check_in_time(getattr(app, "_got_first_request", False), repr(app.name), "the first request")
    known: list[Any] = app.extensions.setdefault("tenure", [])
    claim(known, boundary.database, "Tenure(app, db)")
    host: Any = app
    host.wsgi_app = UnitMiddleware.around(host.wsgi_app, boundary)
    views = _Views(host, here or boundary.here, first=len(known) == 1)
    host.handle_user_exception = views.handle_user_exception
    host.full_dispatch_request = views.full_dispatch_request
    host.handle_exception = views.handle_exception


class _Views:
    """Where Flask makes an answer: what COMMIT raises there goes to its error handlers. Flask 3.2 passes its context on."""

    def __init__(self, app: Any, here: Callable[[], Any], *, first: bool) -> None:
        self.app = app
        self.here = here
        self.unfilled = first
        self.answer = app.full_dispatch_request
        self.handle = app.handle_user_exception
        self.sorry = app.handle_exception

    def full_dispatch_request(self, *contexts: Any) -> Any:
        if self.unfilled:
            self.fill(self.app.view_functions)
            self.unfilled = False  # not before: the first requests come at once
        request = self.here()
        if request is None:
            return self.answer(*contexts)
        response = request.answer(self, *contexts)
        request.whole = response.is_sequence
        return response

    def handle_exception(self, *given: Any) -> Any:
        response = self.sorry(*given)
        if (request := self.here()) is not None:
            request.whole = response.is_sequence
        return response

    def handle_user_exception(self, *given: Any) -> Any:
        """Of an HTTPException Flask would make an answer whose body nobody knows to be whole."""
        rv = self.handle(*given)
        return rv.get_response(flask_request.environ) if isinstance(rv, HTTPException) else rv

    def handled(self, error: Exception, *contexts: Any) -> Any:
        return self.app.finalize_request(*contexts, self.app.handle_user_exception(*contexts, error))

    def exception(self, status: int) -> Exception:
        return default_exceptions[status]()

    def fill(self, views: dict[str, Any]) -> None:
        """Views may be added until the first request, which finds each session parameter filled in."""
        for endpoint, view in list(views.items()):
            if (kind := getattr(view, "view_class", None)) is None:
                views[endpoint] = filled(_SESSION, view)
            else:
                filled(_SESSION, kind, _CALLED.__contains__)


def __getattr__(name: str) -> Any:
    """``adopt`` and ``adopt_async``, which stand on this module, are loaded when they are asked for."""
    if name in ("adopt", "adopt_async"):
        from tenure.web import adopt

        return getattr(adopt, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
