"""web.py: ``app.add_processor(processor(db))``."""

from __future__ import annotations

from collections.abc import Callable
from traceback import walk_tb
from typing import Any, Unpack

import web

from tenure.core.database import Database
from tenure.web.answers import Refusal, refusal
from tenure.web.blocking import BlockingBody, BlockingBoundary, BlockingRequest
from tenure.web.boundary import Rules
from tenure.web.filling import SessionOf
from tenure.web.registration import check_once
from tenure.web.webpy_handlers import Handlers

_WHOSE = "tenure_whose"  # in web.ctx: the application whose handlers are at work, and its database


def processor(database: Database, **rules: Unpack[Rules]) -> Callable[[Callable[[], Any]], Any]:
    """A processor that gives each request its unit, and ``def GET(self, session)`` its session.

    Args:
        database: Whose units the requests are.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value; or, with the first request, the application has another such processor.

    """
    boundary = BlockingBoundary(database, **rules)
    handlers = Handlers(SessionOf(lambda: (getattr(web.ctx, _WHOSE, None) or (None, database))[1]))

    def process(handle: Callable[[], Any]) -> Any:
        app = web.ctx.app_stack[-1]
        if handlers.fill(app):  # now and then, and the first time
            known = [getattr(one, "database", None) for one in app.processors]
            check_once(database, known, "app.add_processor(processor(db))", own=1)
        around = getattr(web.ctx, _WHOSE, None)
        if around is None or around[0] is not app:  # else another processor of this application has said so
            setattr(web.ctx, _WHOSE, (app, database))
        request = None  # a mounted application with a processor of its own
        if not boundary.inside():
            request = BlockingRequest(boundary, f"{web.ctx.method} {web.ctx.homepath}{web.ctx.path}", web.ctx.env)
        try:
            return handle() if request is None else _answer(request, handle, app)
        finally:
            setattr(web.ctx, _WHOSE, around)
            if request is not None:
                request.leave(request.token)

    process.database = database  # type: ignore[attr-defined]
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
    web.ctx.headers.extend(request.set_cookies())


def _refused(refused: Refusal, answer: BaseException) -> BaseException:
    """*answer*, which the application's ``internalerror()`` has given; its page with a 503 where that was a 500."""
    if _status() != 500:
        return answer
    return web.HTTPError(refused.status, refused.headers, getattr(answer, "data", ""))  # type: ignore[no-any-return]


def _status() -> int:
    return int(web.ctx.status.split(None, 1)[0])


def _made_of(answer: web.HTTPError) -> BaseException | None:
    """What the handler raised, where web.py has made *answer* of it; None where *answer* is the handler's own."""
    raised_by = [frame.f_globals.get("__name__") for frame, _ in walk_tb(answer.__traceback__)][-1:]
    return answer.__context__ if raised_by == [web.application.__module__] else None
