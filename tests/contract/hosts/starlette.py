"""Starlette on uvicorn: ``async def`` endpoints for an `AsyncDatabase`, ``def`` endpoints for a `Database`."""

import contextlib

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from contract.host import Host, Mistaken, Raised, Stream, driven
from tenure.web.starlette import UnitMiddleware

from support import http
from support.face import drive

METHODS = ["GET", "POST"]


class OnStarlette(Host):
    name = "starlette"
    faces = ("sync", "async")
    closes_bodies = ()

    def application(self, face, probes, **boundary):
        app = self.routed({path: _endpoint(face, probe) for path, probe in probes.items()}, lifespan=_closing(face))
        app.add_middleware(UnitMiddleware, face.db, **boundary)
        return app

    def beside(self, app, second):
        app.add_middleware(UnitMiddleware, second, close=True)
        return app

    def routed(self, endpoints, **given):
        routes = [Route(path, endpoint, methods=METHODS) for path, endpoint in endpoints.items()]
        return Starlette(routes=routes, exception_handlers={Mistaken: handled}, **given)

    def serve(self, app, threads):
        return http.uvicorn(app, threads)


def _endpoint(face, probe):
    async def waits(request: Request):
        with _raising():
            return await _response(face, await probe())

    def blocks(request: Request):
        with _raising():
            return drive(_response(face, drive(probe())))

    return waits if face.is_async else blocks


@contextlib.contextmanager
def _raising():
    try:
        yield
    except Raised as raised:
        raise HTTPException(raised.status, "raised", {"Location": raised.location} if raised.location else None) from None


async def _response(face, answer):
    if isinstance(answer, Stream):
        return StreamingResponse(_encoded(answer.parts) if face.is_async else driven(answer.parts), answer.status)
    after = answer.after
    task = None if after is None else BackgroundTask(after if face.is_async else lambda: drive(after()))
    return PlainTextResponse(answer.text, answer.status, background=task)


async def _encoded(parts):
    async with contextlib.aclosing(parts):
        async for part in parts:
            yield part.encode()


async def handled(request, error):
    return PlainTextResponse("handled", 409)


def _closing(face):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await face.close()

    return lifespan


HOSTS = [OnStarlette()]
