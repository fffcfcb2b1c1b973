"""Bottle: ``app.install(Tenure(db))``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import bottle
from sqlalchemy.orm import Session

from tenure.core.database import Database
from tenure.core.decorate import fill
from tenure.exceptions import BadOption, NoUnit
from tenure.web.answers import refusal
from tenure.web.blocking import BlockingBoundary, BlockingRequest
from tenure.web.boundary import Rules
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
        database = self.boundary.database
        try:
            found: Session = database.session
        except NoUnit:
            raise NoUnit(
                f"a callback asks for a session of {database.name!r}, but its requests have no units. It is mounted in an application"
                " that has not installed Tenure(db): install it there too."
            ) from None
        return found

    def setup(self, app: Any) -> None:
        """Bottle is about to install it in *app*."""
        database = self.boundary.database
        if any(isinstance(one, Tenure) and one.boundary.database is database for one in app.plugins):
            raise BadOption(f"{database.name!r} is installed already. Leave one app.install(Tenure(db)) out.")
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
        if isinstance(request, BlockingRequest) and self.boundary.keeps(status):
            request.settle(status)

    def _refuse(self, error: Exception) -> None:
        """Raise the answer to a client that may come again, if that is what *error* says."""
        request, refused = self.boundary.here(), refusal(error)
        if refused is not None and isinstance(request, BlockingRequest):
            request.settle(500, error)
            answer = _bottle.HTTPError(int(refused.status.split()[0]), exception=error)
            answer.headers.update(refused.headers)
            raise answer from error


def _ahead(parts: Iterator[Any]) -> Any:
    """The body that *parts* makes, begun: Bottle would begin it when the work is settled."""
    for first in parts:
        if isinstance(first, _bottle.HTTPResponse):  # Bottle lets a generator answer so
            return first
        if first:
            return _Begun(first, parts)
    return ""


class _Begun:
    def __init__(self, first: Any, parts: Iterator[Any]) -> None:
        self._ahead = [first]
        self._parts = parts

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._ahead.pop() if self._ahead else next(self._parts)

    def close(self) -> None:
        if (close := getattr(self._parts, "close", None)) is not None:
            close()
