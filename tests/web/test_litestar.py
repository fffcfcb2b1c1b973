import inspect
from typing import Any

import pytest
from litestar import Controller, Litestar, Response, WebSocket, get, route, websocket
from litestar.background_tasks import BackgroundTask
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tenure.exceptions import BadOption, NoUnit, Overloaded
from tenure.web.litestar import TenurePlugin

from support.asgi import call, exchange, fetch, live, run
from support.face import settle
from support.models import Pledge, User

pytestmark = pytest.mark.dialects("sqlite", "postgresql")
alone = pytest.mark.drivers("sqlite", "aiosqlite")


def application(face, *handlers, **options):
    options.setdefault("plugins", [TenurePlugin(face.db)])
    return Litestar(list(handlers), logging_config=None, openapi_config=None, **options)


def during(face, app, work):
    """What ``work()`` gives, within the application's lifespan."""

    async def lived():
        async with live(app):
            return await work()

    return run(face, lived())


def handler(face, path="/", **options):
    """Makes an ``async def`` a handler of POST, written as users of this face write it: ``def`` for a `Database`."""

    def written_for(function):
        kind = NamedDependency[AsyncSession if face.is_async else Session]
        signature = inspect.signature(function)
        parameters = [one.replace(annotation=kind) if one.annotation is Given else one for one in signature.parameters.values()]

        async def waits(*args, **kwargs):
            return await function(*args, **kwargs)

        def blocks(*args, **kwargs):
            coroutine = function(*args, **kwargs)
            with pytest.raises(StopIteration) as stop:
                coroutine.send(None)
            return stop.value.value

        written = waits if face.is_async else blocks
        written.__signature__ = signature.replace(parameters=parameters)
        written.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": signature.return_annotation}
        written.__name__ = function.__name__
        return written

    threads = {} if face.is_async else {"sync_to_thread": True}
    return lambda function: route(path, http_method="POST", **threads, **options)(written_for(function))


class Given:
    """Stands for the session's class."""


async def pledge_for_nobody(face):
    face.session.add(User(name="ada"))
    await face.session.flush()
    face.session.add(Pledge(user_id=4711))


def taken(request, error):
    return Response("taken", status_code=409)


# ------------------------------------------------------------------------------------- injection


def test_the_session_is_injected(face, stored):
    """R22: handlers, dependencies, and those with `yield` get the session of the request; a dependency ends before the COMMIT."""
    seen = []

    class Repository:
        def __init__(self, session):
            self.session = session

    async def repository(db_session: NamedDependency[Any]) -> Repository:
        return Repository(db_session)

    async def opened(db_session: NamedDependency[Any]) -> Any:
        yield db_session
        seen.append(stored())
        db_session.add(User(name="after the handler"))

    @handler(face, dependencies={"repository": Provide(repository), "opened": Provide(opened)})
    async def add(db_session: Given, repository: NamedDependency[Any], opened: NamedDependency[Any]) -> dict[str, bool]:
        db_session.add(User(name="ada"))
        return {"same": db_session is repository.session is opened is face.db.session}

    app = application(face, add)

    assert during(face, app, lambda: fetch(app, "/", "POST")) == (201, {"same": True})
    assert (seen, stored()) == ([[]], ["ada", "after the handler"])


@alone
def test_two_databases_in_one_request(face, make_face):
    """R12: each is injected by its own name, and they end together."""
    other, committed = make_face(name="other"), []

    @handler(face)
    async def add(db_session: Given, archive: Given) -> None:
        db_session.add(User(name="first"))
        archive.add(User(name="second"))
        for each in (other, face):
            each.db.on_commit(committed.append, each.db.name)

    with pytest.raises(BadOption, match="has a dependency 'db_session' already"):
        application(face, add, plugins=[TenurePlugin(face.db), TenurePlugin(other.db)])
    app = application(face, add, plugins=[TenurePlugin(face.db), TenurePlugin(other.db, session_name="archive")])

    assert during(face, app, lambda: fetch(app, "/", "POST"))[0] == 201
    assert sorted(committed) == ["main", "other"]


@alone
def test_none_is_registered(face):
    """R51: a handler that asks for a session is told what is missing."""
    seen = []

    @get("/", sync_to_thread=False)
    def ask() -> None:
        try:
            _ = face.db.session
        except NoUnit as error:
            seen.append(str(error))

    assert run(face, fetch(application(face, ask, plugins=[]), "/"))[0] == 200
    assert seen[0].startswith("no unit of 'main' is open in task")


# -------------------------------------------------------------------------------- error handlers


@pytest.mark.parametrize("where", ["application", "handler"])
def test_error_handlers_see_a_failing_commit(face, stored, told, where):
    """R14: the handler of an IntegrityError answers for a COMMIT that fails; hooks and middleware stand where they stood."""
    handlers, seen = {IntegrityError: taken}, []

    def middleware(app):
        async def through(scope, receive, send):
            async def sent(message):
                seen.append(message.get("status"))
                await send(message)

            await app(scope, receive, sent)

        return through

    async def after(response: Response[Any]) -> Response[Any]:
        seen.append("after_request")
        return response

    @handler(face, exception_handlers=handlers if where == "handler" else None)
    async def pledge() -> str:
        await pledge_for_nobody(face)
        return "a body for nobody"

    app = application(
        face,
        pledge,
        exception_handlers=handlers if where == "application" else None,
        middleware=[middleware],
        after_request=after,
    )
    sent = during(face, app, lambda: call(app, {"method": "POST"}))

    assert [one["status"] for one in sent if "status" in one] == [409]
    assert b"".join(one.get("body", b"") for one in sent) == b"taken"
    assert seen == ["after_request", 409, None]
    assert (stored(), face.out()) == ([], 0)
    assert told.closed() == [("POST /", "rolled back", "IntegrityError")]


@alone
def test_an_answer_that_cannot_be_made(face, stored, told):
    """R15: what fails after the handler, and before there is an answer, rolls back."""

    @handler(face)
    async def add(db_session: Given) -> Any:
        db_session.add(User(name="ada"))
        return object()

    app = application(face, add)
    assert during(face, app, lambda: fetch(app, "/", "POST"))[0] == 500
    assert (stored(), told.closed()) == ([], [("POST /", "rolled back", "SerializationException")])


@alone
def test_a_handler_of_errors_decides(face, stored):
    """R15: its answer counts, be it a success; one for Overloaded is asked before tenure's."""

    @handler(face, "/fine")
    async def fine(db_session: Given) -> None:
        db_session.add(User(name="ada"))
        raise LookupError

    @handler(face, "/full")
    async def full() -> None:
        message = "full"
        raise Overloaded(message)

    def whatever(request, error):
        return Response(None, status_code=200 if isinstance(error, LookupError) else 500)

    app = application(face, fine, full, exception_handlers={Overloaded: taken, 500: whatever})

    async def both():
        return [(await fetch(app, path, "POST"))[0] for path in ("/fine", "/full")]

    assert during(face, app, both) == [200, 409]
    assert stored() == ["ada"]


# ------------------------------------------------------------------------- what is no request


def test_background_tasks(face, stored):
    """R17: a background task has a unit of its own, and runs only if the request committed."""

    async def later(session, name):
        session.add(User(name=name))

    @handler(face)
    async def add(name: FromQuery[str]) -> Response[None]:
        face.session.add(User(name=name))
        task = BackgroundTask(face.decorated(later).target, name=f"after {name}")
        return Response(None, background=task, status_code=201)

    app = application(face, add)

    async def twice():
        return [(await fetch(app, "/", "POST", name="ada"))[0] for _ in range(2)]

    assert during(face, app, twice) == [201, 500]
    assert stored() == ["ada", "after ada"]


@alone
def test_a_websocket_opens_units_of_its_own(face, stored):
    """R16: each exchange has its own; one that asks for the request's session is refused when the application is made."""

    @websocket("/")
    async def chat(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            text = await socket.receive_text()
            with pytest.raises(NoUnit):
                _ = face.db.session
            async with face.unit() as session:
                session.add(User(name=text))
            await socket.send_text(str(stored()))

    async def through(db_session: NamedDependency[Any]) -> Any:
        return db_session

    @websocket("/asks", dependencies={"through": Provide(through)})
    async def asks(socket: WebSocket, through: NamedDependency[Any]) -> None: ...

    app = application(face, chat)
    assert during(face, app, lambda: exchange(app, "/", ["ada", "eve"])) == ["['ada']", "['ada', 'eve']"]
    with pytest.raises(BadOption, match="WebSocket '/asks' asks for 'db_session', but has no unit"):
        application(face, asks)


# ---------------------------------------------------------------------------------- registration


@alone
def test_handlers_of_several_applications(face, make_face, stored):
    """R22: a handler belongs to the database of the application that calls it, and may be added while that is served."""

    class Pages(Controller):
        @handler(face, "/one")
        async def one(self: Any, db_session: Given) -> None:
            db_session.add(Pledge(user_id=4711))

    @handler(face, "/two")
    async def two(db_session: Given) -> None:
        db_session.add(Pledge(user_id=4711))

    async def served(app):
        async with live(app):
            for late in (Pages, two):
                app.register(late)
            return [(await fetch(app, path, "POST"))[0] for path in ("/one", "/two")]

    apps = [application(each, exception_handlers={IntegrityError: taken}) for each in (face, make_face(name="other"))]
    assert [run(face, served(app)) for app in apps] == [[409, 409]] * 2


@alone
def test_bad_registrations(make_face):
    """R51: what is wrong is said where the plugin or the application is made."""
    face = make_face()
    plugin = TenurePlugin(face.db)
    for twice in ([plugin, plugin], [plugin, TenurePlugin(face.db, session_name="other")]):
        with pytest.raises(BadOption, match="registered with 'main' already"):
            application(face, plugins=twice)
    with pytest.raises(BadOption, match="Litestar is not a Database or AsyncDatabase"):
        TenurePlugin(application(face))
    with pytest.raises(BadOption, match="session_name='db-session'"):
        TenurePlugin(face.db, session_name="db-session")
    run(face, face.close())
    with pytest.raises(BadOption, match="'main' is closed"):
        TenurePlugin(face.db)


@alone
@pytest.mark.parametrize("close", [False, True])
def test_the_end_of_the_application(make_face, close):
    """R55: its shutdown hooks still have the database, which is closed after them only where that was asked for."""
    face = make_face()
    seen = []

    async def last_words():
        async with face.unit() as session:
            seen.append(await session.scalar(select(User.name)))

    app = application(face, plugins=[TenurePlugin(face.db, close=close)], on_shutdown=[last_words])

    async def served():
        async with live(app):
            pass

    run(face, served())
    assert seen == [None]
    assert face.db.supply.closed is close
    run(face, settle(face.close()))
