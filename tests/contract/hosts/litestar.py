"""Litestar on uvicorn: ``async def`` handlers for an `AsyncDatabase`, ``def`` handlers for a `Database`."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import litestar
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import HTTPException, WebSocketDisconnect
from litestar.response import File as LitestarFile
from litestar.response import Response, Stream

from contract.host import File, Host, Mistaken, Raised, called, driven, given
from contract.host import Stream as Streamed
from tenure.web.litestar import TenurePlugin

from support import http
from support.face import drive


class OnLitestar(Host):
    name = "litestar"
    faces = ("sync", "async")
    ranges = False
    sockets = True
    closes_bodies = ()

    def application(self, face, probes, **boundary):
        def make(*more):
            return litestar.Litestar(
                [_handler(face, path, probe) for path, probe in probes.items()],
                plugins=[TenurePlugin(face.db, close=True, **boundary), *more],
                exception_handlers={Mistaken: _mistaken},
                on_startup=[_threads],
                logging_config=None,
                openapi_config=None,
            )

        self.make = make
        return make()

    def within(self, face, probes, inner):
        app, routes = self.application(face, probes), [_handler(face, path, probe) for path, probe in inner.items()]
        app.register(litestar.Router("/inner", route_handlers=routes))
        return app

    def exchanging(self, app, face, exchange):
        async def talk(socket: litestar.WebSocket) -> None:
            await socket.accept()
            with contextlib.suppress(WebSocketDisconnect):
                while True:
                    text = await socket.receive_text()
                    await socket.send_text(await called(face, lambda text=text: exchange(text)))

        app.register(litestar.websocket("/ws")(talk))

    def beside(self, app, second):
        return self.make(TenurePlugin(second, session_name="second", close=True))

    def serve(self, app, threads):
        return http.uvicorn(app, threads)


async def _threads():
    """The loop's own are as few as processors."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(100))


def _handler(face, path, probe):
    async def waits(request: litestar.Request) -> Response:
        async def form():
            found = await request.form()
            return found["name"], len(await found["file"].read())

        with _raising():
            return await _response(face, await given(probe, form)())

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
    if isinstance(answer, File):
        return LitestarFile(answer.path, status_code=200)
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
