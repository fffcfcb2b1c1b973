"""Litestar on uvicorn: ``async def`` handlers for an `AsyncDatabase`, ``def`` handlers for a `Database`."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import litestar
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import HTTPException
from litestar.response import Response, Stream

from contract.host import Host, Mistaken, Raised, driven
from contract.host import Stream as Streamed
from tenure.web.asgi import UnitMiddleware
from tenure.web.litestar import TenurePlugin

from support import http
from support.face import drive


class OnLitestar(Host):
    name = "litestar"
    faces = ("sync", "async")
    closes_bodies = ()

    def application(self, face, probes, **boundary):
        return litestar.Litestar(
            [_handler(face, path, probe) for path, probe in probes.items()],
            plugins=[TenurePlugin(face.db, close=True, **boundary)],
            exception_handlers={Mistaken: _mistaken},
            on_startup=[_threads],
            logging_config=None,
            openapi_config=None,
        )

    def beside(self, app, second):
        return UnitMiddleware(app, second, close=True)

    def serve(self, app, threads):
        return http.uvicorn(app, threads)


async def _threads():
    """The loop's own are as few as processors."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(100))


def _handler(face, path, probe):
    async def waits() -> Response:
        with _raising():
            return await _response(face, await probe())

    def blocks() -> Response:
        with _raising():
            return drive(_response(face, drive(probe())))

    route = litestar.route(path, http_method=["GET", "POST"], **({} if face.is_async else {"sync_to_thread": True}))
    return route(waits if face.is_async else blocks)


@contextlib.contextmanager
def _raising():
    try:
        yield
    except Raised as raised:
        headers = {"Location": raised.location} if raised.location else None
        raise HTTPException("raised", status_code=raised.status, headers=headers) from None


async def _response(face, answer):
    if isinstance(answer, Streamed):
        return Stream(_encoded(answer.parts) if face.is_async else driven(answer.parts), status_code=answer.status)
    after = answer.after
    task = None if after is None else BackgroundTask(after if face.is_async else lambda: drive(after()))
    return Response(answer.text, status_code=answer.status, background=task, media_type="text/plain")


async def _encoded(parts):
    async with contextlib.aclosing(parts):
        async for part in parts:
            yield part.encode()


def _mistaken(request, error):
    return Response("handled", status_code=409)


HOSTS = [OnLitestar()]
