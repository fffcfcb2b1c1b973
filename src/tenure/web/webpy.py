"""web.py: ``app.add_processor(processor(db))``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import web
from sqlalchemy.orm import Session

from tenure.core.database import Database
from tenure.core.decorate import fill
from tenure.web.boundary import BlockingBody, BlockingBoundary, BlockingRequest, Commit, CommitIf

_DATABASE = "tenure_database"  # in web.ctx: the database of the request
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def processor(
    database: Database, *, commit_if: CommitIf | None = None, commit: Commit = "auto"
) -> Callable[[Callable[[], Any]], Any]:
    """A processor that gives each request its unit, and ``def GET(self, session)`` its session.

    Args:
        database: Whose units the requests are.
        commit_if: Replaces the rule that a status below 400 commits.
        commit: ``"auto"``, or ``"explicit"`` for code that calls ``commit()`` itself.

    """
    boundary = BlockingBoundary(database, commit_if=commit_if, commit=commit)
    handlers = _Handlers(database)

    def process(handle: Callable[[], Any]) -> Any:
        if not hasattr(web.ctx, _DATABASE):  # else an application around this one has said whose unit the request is
            setattr(web.ctx, _DATABASE, database)
        handlers.fill(web.ctx.app_stack[-1])
        if boundary.inside():  # a mounted application with a processor of its own
            return handle()
        request = BlockingRequest(boundary, f"{web.ctx.method} {web.ctx.homepath}{web.ctx.path}")
        try:
            return _answer(request, handle)
        finally:
            request.leave(request.token)

    return process


def _answer(request: BlockingRequest, handle: Callable[[], Any]) -> Any:
    body: BlockingBody | None = None
    try:
        try:
            result = handle()
            if hasattr(result, "__next__"):  # made while it is sent; web.py reads the status after its first part
                result = body = BlockingBody(request, result)
                body.ahead()
        except web.HTTPError:  # web.py raises its answers: a redirect is one, and so is what it makes of an error
            request.settle(_status())
            raise
        request.settle(_status())
    except BaseException as error:
        (request.finish if body is None else body.close)(error)
        raise
    if body is None:
        request.finish()
    return result


def _status() -> int:
    return int(web.ctx.status.split(None, 1)[0])


class _OfTheRequest:
    """The database of the request that is current.

    A handler class outlives the application that filled it in first: in tests, and wherever a program makes its application
    twice, each with a database of its own.
    """

    def __init__(self, first: Database) -> None:
        self._first = first

    @property
    def session(self) -> Session:
        """The session of the request's unit."""
        database: Database = getattr(web.ctx, _DATABASE, self._first)
        return database.session


class _Handlers:
    """The handler classes of an application, and of what is mounted in it: each gets its session parameter filled in, once."""

    def __init__(self, database: Database) -> None:
        self._database = _OfTheRequest(database)
        self._seen: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()

    def fill(self, app: Any) -> None:
        """Fill in what *app* has now; costs one look where nothing was added since."""
        mapping, size = self._seen.get(app, (None, 0))
        if mapping is app.mapping and size == len(app.mapping):
            return
        for _, target in app.mapping:
            handler = _handler(target, app.fvars)
            if isinstance(handler, web.application):
                self.fill(handler)
            elif isinstance(handler, type):
                self._fill_class(handler)
        self._seen[app] = (app.mapping, len(app.mapping))

    def _fill_class(self, handler: type) -> None:
        for method in _METHODS:
            function = vars(handler).get(method)
            if inspect.isfunction(function) and (filled := fill(self._database, function)) is not function:
                setattr(handler, method, filled)


def _handler(target: Any, names: dict[str, Any]) -> Any:
    """What a line of ``urls`` leads to, as web.py finds it: a class, an application, or a name of one."""
    if not isinstance(target, str) or target.startswith("redirect "):
        return target
    if "." in target:
        module, name = target.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)
    return names.get(target)
