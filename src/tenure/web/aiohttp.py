"""aiohttp: ``web.Application(middlewares=[middleware(db)])``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, Unpack

from aiohttp import web
from aiohttp.payload import Payload

from tenure.core.base import BaseDatabase
from tenure.web.aio import LoopBoundary, LoopRequest, ServerBoundary
from tenure.web.boundary import Rules
from tenure.web.registration import check_once

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middleware(database: BaseDatabase[Any], **rules: Unpack[Rules]) -> UnitMiddleware:
    """A middleware that gives each request its unit, and commits before the first byte leaves.

    Middlewares before it in the list see the database's error of a failed COMMIT. A WebSocket has no unit: each exchange opens its own.

    Args:
        database: Whose units the requests are: an ``AsyncDatabase``, or a ``Database`` that handlers use in threads.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value; or, with the first request, the application has another such middleware.

    """
    return web.middleware(UnitMiddleware(ServerBoundary(database, **rules)))


class UnitMiddleware:
    """What ``middleware`` gives."""

    def __init__(self, boundary: LoopBoundary) -> None:
        self.boundary = boundary

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one request."""
        if self.boundary.inside():
            known = [one.boundary.database for one in request.app.middlewares if isinstance(one, UnitMiddleware)]
            check_once(self.boundary.database, known, "middleware(db)", own=1)
            return await handler(request)
        work = self.boundary.begin(f"{request.method} {request.path}", request)
        try:
            response = await _answer(work, request, handler)
        except BaseException as error:
            await work.end(error)
            raise web.HTTPServiceUnavailable(headers=work.refused(error).headers) from error
        task = asyncio.current_task()
        if task is not None and _is_made_while_sent(response):
            work.finish_with(task)
        else:
            await work.end()
        return response

    async def closing(self, _app: web.Application) -> AsyncIterator[None]:
        """``app.cleanup_ctx.append(units.closing)`` closes the database when the server has shut down."""
        yield
        self.boundary.ended()
        await self.boundary.close()


async def _answer(work: LoopRequest, request: web.Request, handler: Handler) -> web.StreamResponse:
    """What *handler* answers, settled, whether it gives that back, raises it, or sends it by itself."""

    async def settle(response: web.StreamResponse) -> None:
        more = await work.starts(getattr(response, "status", 500))  # of what is no response aiohttp makes a 500
        for name, value in more:
            response.headers.add(name, value)

    async def prepare(response: web.StreamResponse) -> None:
        """Called when the headers of *response* are about to be sent."""
        try:
            await settle(response)
        except BaseException:  # another answer comes in place of one whose headers were made: nothing of that may stay
            writer: Any = request.writer
            writer.length, writer.chunked = None, False
            writer._compress = None  # noqa: SLF001 - private: it can only be switched on. tests/web/test_aiohttp.py sees it changed
            raise
        await onwards(response)

    # Private, but only the application has a signal for it, which a middleware cannot reach: a handler's own prepare() is to commit
    # as well. tests/web/test_aiohttp.py fails when it changes.
    names: dict[str, Any] = vars(request)
    onwards = request._prepare_hook  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    names["_prepare_hook"] = prepare  # not set as an attribute: in its debug mode aiohttp warns of that
    try:
        try:
            response = await handler(request)
        except web.HTTPException as raised:
            await settle(raised)
            raise
        await settle(response)
        return response
    finally:
        work.handed_over()  # from here on it is the middlewares before this one that answer


def _is_made_while_sent(response: Any) -> bool:
    if getattr(response, "prepared", True) or isinstance(response, web.FileResponse):
        return False
    return not isinstance(response, web.Response) or isinstance(response.body, Payload)
