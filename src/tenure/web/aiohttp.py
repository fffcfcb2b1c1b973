"""aiohttp: ``web.Application(middlewares=[middleware(db)])``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias, Unpack

from aiohttp import web
from aiohttp.payload import Payload

from tenure.core.base import BaseDatabase
from tenure.web.aio import LoopBoundary, LoopRequest
from tenure.web.answers import refusal
from tenure.web.boundary import Rules

_SWITCHING_PROTOCOLS: Final = 101  # a WebSocket

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middleware(database: BaseDatabase[Any], **rules: Unpack[Rules]) -> UnitMiddleware:
    """A middleware that gives each request its unit, and commits before the first byte leaves.

    Middlewares before it in the list see the database's error of a failed COMMIT. A WebSocket has no unit: each exchange opens its own.

    Args:
        database: Whose units the requests are: an ``AsyncDatabase``, or a ``Database`` that handlers use in threads.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value.

    """
    return web.middleware(UnitMiddleware(LoopBoundary(database, **rules)))


class UnitMiddleware:
    """What ``middleware`` gives."""

    def __init__(self, boundary: LoopBoundary) -> None:
        self.boundary = boundary

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one request."""
        if self.boundary.inside():
            return await handler(request)
        work = self.boundary.begin(f"{request.method} {request.path}", request.headers.get("Cookie"), request)
        answer = _Answer(work, request)
        try:
            response = await answer.of(handler)
        except BaseException as error:
            await work.finish(error)
            work.gone()
            refused = None if answer.begun else refusal(error)
            if refused is None:
                raise
            raise web.HTTPServiceUnavailable(headers=refused.headers) from error
        task = asyncio.current_task()
        if task is not None and _is_made_while_sent(response):
            work.finish_with(task)
        else:
            await work.finish()
            work.gone()
        return response

    async def closing(self, _app: web.Application) -> AsyncIterator[None]:
        """``app.cleanup_ctx.append(units.closing)`` closes the database when the server has shut down."""
        yield
        self.boundary.ended()
        await self.boundary.close()


class _Answer:
    """What a handler answers, whether it gives that back, raises it, or sends it by itself."""

    def __init__(self, work: LoopRequest, request: web.Request) -> None:
        self.work = work
        self.request = request
        self.begun = False
        # Private, but only the application has a signal for it, which a middleware cannot reach: a handler's own prepare() is to
        # commit as well. tests/web/test_aiohttp.py fails when it changes.
        names: dict[str, Any] = vars(request)
        self.onwards = request._prepare_hook  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        names["_prepare_hook"] = self.prepare  # not set as an attribute: in its debug mode aiohttp warns of that

    async def of(self, handler: Handler) -> web.StreamResponse:
        """The answer of *handler*, settled."""
        try:
            try:
                response = await handler(self.request)
            except web.HTTPException as raised:
                await self.settle(raised)
                raise
            await self.settle(response)
            return response
        finally:
            self.work.failed = None  # from here on it is the middlewares before this one that answer

    async def settle(self, response: web.StreamResponse) -> None:
        """Commit or roll back, unless that was done."""
        status: int = getattr(response, "status", 500)  # of what is no response aiohttp makes a 500
        self.work.refuse_success(status)
        if self.work.settled is not None:
            return
        await self.work.settle(status)
        for cookie in self.work.set_cookies(secure=self.request.secure):
            response.headers.add("Set-Cookie", cookie)

    async def prepare(self, response: web.StreamResponse) -> None:
        """Called when the headers of *response* are about to be sent."""
        try:
            await self.settle(response)
        except BaseException:
            self.start_again()
            raise
        self.begun = True
        if response.status == _SWITCHING_PROTOCOLS:
            await self.work.finish()
            self.work.gone()
        await self.onwards(response)

    def start_again(self) -> None:
        """Another answer comes in place of one whose headers were made: nothing of that may stay in aiohttp's writer."""
        writer: Any = self.request.writer
        writer.length, writer.chunked = None, False
        writer._compress = None  # noqa: SLF001 - private: it can only be switched on. tests/web/test_aiohttp.py sees it changed


def _is_made_while_sent(response: Any) -> bool:
    if getattr(response, "prepared", True) or isinstance(response, web.FileResponse):
        return False
    return not isinstance(response, web.Response) or isinstance(response.body, Payload)
