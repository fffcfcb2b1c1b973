"""Starlette on uvicorn: ``async def`` endpoints for an `AsyncDatabase`, ``def`` endpoints for a `Database`."""

import contextlib

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from contract.host import File, Host, Mistaken, Raised, Stream, called, driven, given
from tenure.web.starlette import UnitMiddleware

from support import http
from support.face import drive

METHODS = ["GET", "POST"]


class OnStarlette(Host):
    name = "starlette"
    faces = ("sync", "async")
    revalidates = False
    sockets = True
    closes_bodies = ()

    def application(self, face, probes, **boundary):
        app = self.routed({path: _endpoint(face, probe) for path, probe in probes.items()}, lifespan=_closing(face))
        app.add_middleware(UnitMiddleware, face.db, **boundary)
        return app

    def within(self, face, probes, inner):
        app = self.application(face, probes)
        app.router.routes.append(Mount("/inner", self.routed({path: _endpoint(face, probe) for path, probe in inner.items()})))
        return app

    def exchanging(self, app, face, exchange):
        async def talk(socket):
            await socket.accept()
            with contextlib.suppress(WebSocketDisconnect):
                while True:
                    text = await socket.receive_text()
                    await socket.send_text(await called(face, lambda text=text: exchange(text)))

        app.router.routes.append(WebSocketRoute("/ws", talk))

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
            return await _response(face, await given(probe, _form(request))())

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


def _form(request):
    async def form():
        async with request.form() as found:
            return found["name"], len(await found["file"].read())

    return form


async def _response(face, answer):
    if isinstance(answer, File):
        return FileResponse(answer.path)
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
