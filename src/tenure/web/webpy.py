"""web.py: ``app.add_processor(processor(db))``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Unpack
from weakref import WeakKeyDictionary

import web
from sqlalchemy.orm import Session

from tenure.core.database import Database
from tenure.core.decorate import fill, fill_methods
from tenure.web.answers import Refusal, refusal
from tenure.web.blocking import BlockingBody, BlockingBoundary, BlockingRequest
from tenure.web.boundary import Rules

_WHOSE = "tenure_whose"  # in web.ctx: the application whose handlers are at work, and its database


def processor(database: Database, **rules: Unpack[Rules]) -> Callable[[Callable[[], Any]], Any]:
    """A processor that gives each request its unit, and ``def GET(self, session)`` its session.

    Args:
        database: Whose units the requests are.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    """
    boundary = BlockingBoundary(database, **rules)
    handlers = _Handlers(database)

    def process(handle: Callable[[], Any]) -> Any:
        app = web.ctx.app_stack[-1]
        handlers.fill(app)
        around = getattr(web.ctx, _WHOSE, None)
        if around is None or around[0] is not app:  # else another processor of this application has said so
            setattr(web.ctx, _WHOSE, (app, database))
        try:
            if boundary.inside():  # a mounted application with a processor of its own
                return handle()
            name = f"{web.ctx.method} {web.ctx.homepath}{web.ctx.path}"
            request = BlockingRequest(boundary, name, web.ctx.env.get("HTTP_COOKIE"), web.ctx.env)
            try:
                return _answer(request, handle, app)
            finally:
                request.leave(request.token)
        finally:
            setattr(web.ctx, _WHOSE, around)

    return process


def _answer(request: BlockingRequest, handle: Callable[[], Any], app: Any) -> Any:
    body: BlockingBody | None = None
    try:
        try:
            result = handle()
            if hasattr(result, "__next__"):  # made while it is sent; web.py reads the status after its first part
                result = body = BlockingBody(request, result)
                body.ahead()
        except web.HTTPError as answer:  # web.py raises its answers: a redirect is one, and so is what it makes of an error
            cause = _made_of(answer)
            _settle(request, cause)
            if cause is not None and (refused := refusal(cause)) is not None:
                raise _refused(refused, answer) from cause
            raise
        _settle(request)
    except BaseException as error:
        (request.finish if body is None else body.close)(error)
        if (refused := refusal(error)) is not None:
            raise _refused(refused, app.internalerror()) from error
        raise
    if body is None:
        request.finish()
    return result


def _settle(request: BlockingRequest, error: BaseException | None = None) -> None:
    request.settle(_status(), error)
    headers: list[tuple[str, str]] = web.ctx.headers
    headers.extend(("Set-Cookie", cookie) for cookie in request.set_cookies(secure=web.ctx.protocol == "https"))


def _refused(refused: Refusal, answer: BaseException) -> BaseException:
    """*answer*, which the application's ``internalerror()`` has given; its page with a 503 where that was a 500."""
    if _status() != 500:
        return answer
    return web.HTTPError(refused.status, refused.headers, getattr(answer, "data", ""))  # type: ignore[no-any-return]


def _status() -> int:
    return int(web.ctx.status.split(None, 1)[0])


def _made_of(answer: web.HTTPError) -> BaseException | None:
    """What the handler raised, where web.py has made *answer* of it; None where *answer* is the handler's own."""
    trace = answer.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_by = None if trace is None else trace.tb_frame.f_globals.get("__name__")
    return answer.__context__ if raised_by == web.application.__module__ else None


class _OfTheApplication:
    """The database of the application that has called a handler.

    A handler class outlives the application that filled it in first: in tests, and wherever a program makes its application
    twice, each with a database of its own.
    """

    def __init__(self, first: Database) -> None:
        self._first = first

    @property
    def session(self) -> Session:
        """The session of the request's unit."""
        whose: tuple[Any, Database] | None = getattr(web.ctx, _WHOSE, None)
        return (self._first if whose is None else whose[1]).session


class _Handlers:
    """The handlers of an application, and of what is mounted in it: each gets its session parameter filled in, once."""

    def __init__(self, database: Database) -> None:
        self._database = _OfTheApplication(database)
        self._seen: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()

    def fill(self, app: Any, around: tuple[Any, ...] = ()) -> None:
        """Fill in what *app*, which is mounted in *around*, has now; costs one look where nothing was added since."""
        mapping, size = self._seen.get(app, (None, 0))
        now = len(app.mapping)
        if app in around or (mapping is app.mapping and size == now):
            return
        for place, (pattern, target) in enumerate(app.mapping):
            handler = _handler(target, app.fvars)
            if isinstance(handler, web.application):
                self.fill(handler, (*around, app))
            elif isinstance(handler, type):
                fill_methods(self._database, handler, str.isupper)  # web.py calls the method that has the name of the request's
            elif handler is target and callable(handler) and (filled := fill(self._database, handler)) is not handler:
                app.mapping[place] = (pattern, filled)
        # Not before: the first requests come at once, and each must find its handler filled in.
        self._seen[app] = (app.mapping, now)


def _handler(target: Any, names: dict[str, Any]) -> Any:
    """What a line of ``urls`` leads to, as web.py finds it: a class, an application, or a name of one."""
    if not isinstance(target, str) or target.startswith("redirect "):
        return target
    if "." in target:
        module, name = target.rsplit(".", 1)
        try:
            return getattr(importlib.import_module(module), name)
        except Exception:  # web.py looks it up when its path is asked for, and says so then
            return None
    return names.get(target)
