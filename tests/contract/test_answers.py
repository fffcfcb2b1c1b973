"""Answers with little in them, and with much: the probes of the contract that look at what is sent."""

import pytest
from sqlalchemy import func, insert, select, text

from contract.host import Answer, Stream

from support.models import User

pytestmark = pytest.mark.drivers("psycopg", "asyncpg")

PART = "x" * 0x40000


def test_answers_without_a_body(face, serve, stored, told):
    """R15: 204, 304 and the answer to HEAD mean what their status says."""

    def probe(status):
        async def write():
            face.session.add(User(name=f"for {status}"))
            return Answer(status, text="" if status != 200 else "done")

        return write

    site = serve(face, {f"/{status}": probe(status) for status in (200, 204, 304)})
    answers = {status: site.get(f"/{status}") for status in (204, 304)}
    head = site.get("/200", "HEAD").status

    assert {status: (one.status, one.text) for status, one in answers.items()} == {204: (204, ""), 304: (304, "")}
    assert head in (200, 405)  # some frameworks want a handler of its own for HEAD
    expected = ["for 200"] * (head == 200) + ["for 204", "for 304"]
    assert [outcome for _, outcome, _ in told.closed(len(expected))] == ["committed"] * len(expected)
    assert stored() == expected


def test_a_large_body_is_sent_as_it_is_made(make_face, serve, told, gate):
    """R16: ten megabytes leave part by part, with a read between any two, and no connection is held while the client is slow."""
    face = make_face(pool_size=1, max_overflow=0)

    async def parts():
        for number in range(40):
            assert await face.session.scalar(select(func.count()).select_from(User)) == 1
            yield PART
            if number == 1:
                await gate.passed()

    async def probe():
        face.session.add(User(name="ada"))
        return Stream(parts())

    talk = serve(face, {"/": probe}).talk()
    assert talk.status() == 200
    gate.reached()
    assert face.out() == 0
    gate.open()
    talk.headers()

    assert len(talk.rest()) == 40 * len(PART)
    assert [outcome for _, outcome, _ in told.closed(1)] == ["committed"]


SLOW = (
    "CREATE TEMP TABLE slow (x int) ON COMMIT DROP",
    "CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END'",
    "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.wait()",
    "INSERT INTO slow VALUES (1)",
)


def test_a_slow_commit_keeps_nobody_else_waiting(face, serve, told, gate):
    """R18: while one COMMIT takes 300 ms, others are answered."""

    async def slow():
        for statement in SLOW:
            await face.session.execute(text(statement))
        await gate.passed()
        return Answer()

    async def quick():
        await face.session.execute(insert(User).values(name="ada"))
        return Answer()

    async def nothing():
        return Answer()

    site = serve(face, {"/slow": slow, "/quick": quick, "/nothing": nothing})
    talk = site.talk("/slow")
    gate.reached()
    gate.open()
    for path in ("/nothing", "/quick", "/nothing"):
        assert site.get(path).status == 200

    assert [name for name, _, _ in told.closed()] == ["GET /quick"]
    assert talk.status() == 200
    talk.headers()
    talk.rest()
    assert sorted(name for name, _, _ in told.closed(2)) == ["GET /quick", "GET /slow"]
