import asyncio
import inspect
from typing import Annotated

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from pydantic import BaseModel
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tenure import callsite
from tenure.core.events import UnitClosed, WorkLost
from tenure.exceptions import BadOption, NoUnit, UnitEnded
from tenure.web.fastapi import UnitMiddleware, session_of

from support.asgi import call, exchange, fetch, live, run
from support.face import settle
from support.models import User

pytestmark = pytest.mark.dialects("sqlite", "postgresql")
alone = pytest.mark.drivers("sqlite", "aiosqlite")


@pytest.fixture
def app(face):
    app = FastAPI()
    app.add_middleware(UnitMiddleware, db=face.db)
    app.given = Annotated[AsyncSession if face.is_async else Session, Depends(session_of(face.db))]
    return app


def during(face, app, work):
    """What ``work()`` gives, within the application's lifespan."""

    async def lived():
        async with live(app):
            return await work()

    return run(face, lived())


def written_for(face, function):
    """*function*, an ``async def``, as users of this face write it: ``def`` for a `Database`."""
    if face.is_async:
        return function

    def blocks(*args, **kwargs):
        coroutine = function(*args, **kwargs)
        with pytest.raises(StopIteration) as stop:
            coroutine.send(None)
        return stop.value.value

    blocks.__signature__ = inspect.signature(function)
    return blocks


async def count(session):
    return await settle(session.scalar(select(func.count()).select_from(User)))


def test_the_dependency(face, app, stored):
    """R22: endpoints, routers, class dependencies and `yield` dependencies get the session of the request."""
    given = app.given

    class Repository:
        def __init__(self, session: given) -> None:
            self.session = session

    async def opened(session: given):
        session.add(User(name="in the dependency"))
        await settle(session.flush())
        yield session

    def opened_in_a_thread(session: given):
        session.add(User(name="in the dependency"))
        session.flush()
        yield session

    dependency = opened if face.is_async else opened_in_a_thread
    router = APIRouter()

    async def endpoint(
        session: given, repository: Annotated[Repository, Depends()], other: Annotated[object, Depends(dependency)]
    ):
        return {"same": session is repository.session is other is face.db.session, "count": await count(session)}

    router.post("/", status_code=201)(written_for(face, endpoint))
    app.include_router(router)

    assert during(face, app, lambda: fetch(app, "/", "POST")) == (201, {"same": True, "count": 1})
    assert stored() == ["in the dependency"]


@pytest.mark.parametrize("first", ["add", "read"])
def test_the_line_of_a_request_is_one_of_its_endpoint(face, app, told, first):
    """R50: FastAPI asks for the session and passes it on, so its unit's line is that at which the endpoint uses it first."""
    given = app.given

    async def endpoint(session: given):
        session.add(User(name="ada")) if first == "add" else await count(session)
        await settle(session.execute(text("SELECT 1")))

    app.post("/")(written_for(face, endpoint))
    during(face, app, lambda: fetch(app, "/", "POST"))

    (closed,) = told.of(UnitClosed)
    line = endpoint.__code__.co_firstlineno + 1 if first == "add" else count.__code__.co_firstlineno + 1
    assert callsite.words(closed.site) == f"test_fastapi.py:{line}"


def test_background_tasks(face, app, stored):
    """R17: a background task has a unit of its own, and runs only if the request committed."""
    given, seen = app.given, []

    async def later(session, name):
        session.add(User(name=name))

    async def with_the_requests(session):
        try:
            await settle(session.scalar(select(User.name)))
        except UnitEnded as error:
            seen.append(str(error))

    async def endpoint(session: given, tasks: BackgroundTasks, name: str):
        session.add(User(name=name))
        tasks.add_task(face.decorated(later).target, name=f"after {name}")
        tasks.add_task(written_for(face, with_the_requests), session)

    app.post("/")(written_for(face, endpoint))

    async def twice():
        return [(await fetch(app, "/", "POST", name="ada"))[0] for _ in range(2)]

    assert during(face, app, twice) == [200, 500]
    assert stored() == ["ada", "after ada"]
    assert len(seen) == 1


def test_a_websocket(face, app, stored, told):
    """R16: the session of a WebSocket is committed exchange by exchange; what was not committed at the end is told."""
    given = app.given

    @app.websocket("/chat")
    async def chat(websocket: WebSocket, session: given):
        await websocket.accept()
        while True:
            name = await websocket.receive_text()
            session.add(User(name=name))
            if name != "lost":
                await settle(session.commit())
            await websocket.send_text("noted")

    assert during(face, app, lambda: exchange(app, "/chat", ["ada", "bob", "lost"])) == ["noted"] * 3
    assert told.closed()[0][0] == "WS /chat"
    assert stored() == ["ada", "bob"]
    (warning,) = told.of(WorkLost)
    assert "1 object not written yet" in warning.message


@alone
def test_a_missing_middleware(face):
    """R51: whoever asks for a session where no middleware was registered is told the line to write."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(session: Annotated[object, Depends(session_of(face.db))]): ...

    with pytest.raises(NoUnit, match=r"GET / asks .* app.add_middleware\(UnitMiddleware, db\)"):
        run(face, call(app, {"query_string": b""}))
    with pytest.raises(BadOption):
        session_of("sqlite://")


@alone
def test_it_can_be_overridden(face, app):
    """R22: dependencies of one database are equal, so that a test can replace them."""
    given = app.given

    @app.get("/")
    async def endpoint(session: given):
        return str(session)

    app.dependency_overrides[session_of(face.db)] = lambda: "another"
    assert during(face, app, lambda: fetch(app)) == (200, "another")


class Out(BaseModel):
    name: str


@pytest.mark.drivers("psycopg")
@pytest.mark.parametrize("writes", [False, True])
def test_a_hundred_def_endpoints_on_a_pool_of_3(make_face, writes):
    """R18: worker threads that wait for a connection take none from those who hold one: all are answered."""
    face = make_face(pool_size=3, max_overflow=0, pool_timeout=10)
    app = FastAPI()
    app.add_middleware(UnitMiddleware, face.db)

    def opened(session: Annotated[Session, Depends(session_of(face.db))], number: int):
        if writes:
            session.add(User(name=f"number {number}"))
            session.flush()
        yield session

    @app.get("/", response_model=Out)
    def endpoint(session: Annotated[Session, Depends(opened)]):
        session.execute(text("SELECT pg_sleep(0.01)"))
        return {"name": "ada"}

    async def crowd():
        return await asyncio.gather(*(fetch(app, number=number) for number in range(100)))

    assert during(face, app, crowd) == [(200, {"name": "ada"})] * 100
    assert (face.out(), face.db.status().peak) == (0, 3)
