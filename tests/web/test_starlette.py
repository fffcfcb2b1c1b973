"""Starlette and FastAPI, where both do the same: their exception handlers answer for a COMMIT that fails."""

import contextlib

import pytest
from fastapi import FastAPI
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tenure.web.fastapi import UnitMiddleware as OfFastAPI
from tenure.web.starlette import UnitMiddleware

from support.asgi import call, run
from support.models import Pledge, User

pytestmark = [pytest.mark.faces("async"), pytest.mark.dialects("sqlite", "postgresql")]


def starlette(face, endpoint, **handlers):
    app = Starlette(routes=[Route("/", endpoint)], exception_handlers=handlers.get("handlers"))
    app.add_middleware(UnitMiddleware, face.db)
    return app


def fastapi(face, endpoint, **handlers):
    app = FastAPI(exception_handlers=handlers.get("handlers"))
    app.add_middleware(OfFastAPI, face.db)
    app.add_route("/", endpoint)
    return app


@pytest.fixture(params=[starlette, fastapi], ids=["starlette", "fastapi"])
def host(request):
    return request.param


async def pledge_for_nobody(face):
    face.session.add(User(name="ada"))
    await face.session.flush()
    face.session.add(Pledge(user_id=4711))


async def parts():
    yield "a body for nobody"


def raised():
    raise HTTPException(303, "a body for nobody")


# How the endpoint answers, and the status of what the handler makes of the error: that has the last word, whatever it is.
ANSWERS = {
    "returned": (lambda: PlainTextResponse("a body for nobody", 201), 409),
    "streamed": (lambda: StreamingResponse(parts(), 201), 200),
    "raised": (raised, 409),
}


@pytest.mark.parametrize("how", ANSWERS)
def test_exception_handlers_see_a_failing_commit(face, host, stored, told, how):
    """R14, R50: the handler of an IntegrityError answers for a COMMIT that fails, however the endpoint answers."""
    seen = []
    answer, status = ANSWERS[how]

    async def endpoint(request):
        await pledge_for_nobody(face)
        return answer()

    async def taken(request, error):
        seen.append(error)
        return PlainTextResponse("taken", status)

    sent = run(face, call(host(face, endpoint, handlers={IntegrityError: taken}), {"asgi": {"spec_version": "2.4"}}))

    assert [one["status"] for one in sent if one["type"] == "http.response.start"] == [status]
    assert b"".join(one.get("body", b"") for one in sent) == b"taken"
    assert [type(error) for error in seen] == [IntegrityError]
    assert (stored(), face.out()) == ([], 0)
    assert told.closed() == [("GET /", "rolled back", "IntegrityError")]


@pytest.mark.parametrize("handlers", [None, {LookupError: lambda request, error: PlainTextResponse("")}], ids=["none", "another"])
def test_without_a_handler_it_is_a_500(face, host, stored, handlers):
    """R14: the server is told of the database's error itself, and nothing of the answer is sent."""

    async def endpoint(request):
        await pledge_for_nobody(face)
        return PlainTextResponse("a body for nobody", 201)

    sent = []
    with pytest.raises(IntegrityError):
        run(face, call(host(face, endpoint, handlers=handlers), seen=sent.append))
    assert [one["status"] for one in sent if one["type"] == "http.response.start"] == [500]
    assert stored() == []


@pytest.mark.parametrize("answers", [True, False])
def test_what_is_swallowed_on_the_way_is_no_success(face, stored, answers):
    """R14: where something between the route and its handlers catches the error, they answer: it cannot, with a success, and nobody else
    would.
    """

    class Swallows(PlainTextResponse):
        async def __call__(self, scope, receive, send):
            with contextlib.suppress(IntegrityError):
                await super().__call__(scope, receive, send)
            if answers:
                await super().__call__(scope, receive, send)

    async def endpoint(request):
        await pledge_for_nobody(face)
        return Swallows("a success for nobody")

    async def taken(request, error):
        return PlainTextResponse("taken", 409)

    sent = run(face, call(starlette(face, endpoint, handlers={IntegrityError: taken})))
    assert (sent[0]["status"], stored()) == (409, [])
