"""Bottle: ``app.install(Tenure(db))``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import bottle
from sqlalchemy.orm import Session

from tenure.core.database import Database
from tenure.core.decorate import fill
from tenure.exceptions import BadOption
from tenure.web.answers import refusal
from tenure.web.blocking import Begun, BlockingBoundary
from tenure.web.boundary import Rules
from tenure.web.filling import session_in
from tenure.web.registration import check_once
from tenure.web.wsgi import UnitMiddleware

_bottle: Any = bottle  # without types


class Tenure:
    """A plugin that gives each request of a Bottle application its unit, and its callbacks their sessions.

    Args:
        database: Whose units the requests are.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value.

    """

    name = "tenure"
    api = 2

    def __init__(self, database: Database, **rules: Unpack[Rules]) -> None:
        self.boundary = BlockingBoundary(database, **rules)

    @property
    def session(self) -> Session:
        """The session of the request's unit."""
        line = "It is mounted in an application that has not installed Tenure(db): install it there too."
        return session_in(self.boundary.database, "a callback", line)  # type: ignore[no-any-return]

    def setup(self, app: Any) -> None:
        """Bottle is about to install it in *app*."""
        known = [one.boundary.database for one in app.plugins if isinstance(one, Tenure)]
        check_once(self.boundary.database, known, "app.install(Tenure(db))")
        trigger = app.trigger_hook

        def triggered(name: str, *args: Any, **kwargs: Any) -> Any:
            try:
                results = trigger(name, *args, **kwargs)
                if name == "after_request" and sys.exc_info()[1] is None:  # else an error handler is still to answer
                    self._settle()
            except Exception as error:
                self._refuse(error)
                raise
            return results

        # Not by assignment, which Bottle refuses for a second plugin.
        app.__dict__.update(wsgi=UnitMiddleware.around(app.wsgi, self.boundary), trigger_hook=triggered)

    def apply(self, callback: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """The callback of *route* with its session filled in."""
        if self not in route.app.plugins:
            raise BadOption(
                f"Tenure(db) stands in apply= of {route.rule!r}, but a request is a unit as a whole. Use app.install(Tenure(db))."
            )
        filled = fill(self, callback)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                result = filled(*args, **kwargs)
                return _ahead(result) if hasattr(result, "__next__") and not hasattr(result, "read") else result
            except Exception as error:
                self._refuse(error)
                raise

        return call

    def _settle(self) -> None:
        """Commit where what that raises finds the error handlers. What is no success is left to them: they may still answer otherwise."""
        request, status = self.boundary.here(), int(_bottle.response.status_code)
        if request is not None and self.boundary.keeps(status):
            request.settle(status)

    def _refuse(self, error: Exception) -> None:
        """Raise the answer to a client that may come again, if that is what *error* says."""
        request, refused = self.boundary.here(), refusal(error)
        if refused is not None and request is not None:
            request.settle(500, error)
            answer = _bottle.HTTPError(refused.code, exception=error)
            answer.headers.update(refused.headers)
            raise answer from error


def _ahead(parts: Iterator[Any]) -> Any:
    """The body that *parts* makes, begun: Bottle would begin it when the work is settled."""
    body = Begun(parts)
    while made := body.ahead():
        if isinstance(made[0], _bottle.HTTPResponse):  # Bottle lets a generator answer so
            return made[0]
        if made[0]:
            return body
    return ""
