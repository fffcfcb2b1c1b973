"""Files that a host sends by its own means, and forms that it reads, over real HTTP."""

import gc
import itertools

import pytest
from sqlalchemy import func, select

from contract.host import Answer, File, Reads

from support.models import User

pytestmark = [
    pytest.mark.drivers("psycopg", "asyncpg"),
    pytest.mark.own_face,
    # What a framework has put aside of a form is closed by the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in.*(SpooledTemporaryFile|FileIO)"),
]

SIZE = 300_000
UPLOAD = 2**20
EDGE = "----edge"


def test_a_file_is_sent_by_the_host_itself(face, serve, stored, told, tmp_path):
    """R16: a whole file, a part of it, one that the client has already, and HEAD are a unit each, and 0 connections are held."""
    file = tmp_path / "report.txt"
    file.write_bytes(b"0123456789" * (SIZE // 10))

    numbers = itertools.count()

    async def probe():
        face.session.add(User(name=f"read {next(numbers)}"))
        return File(file)

    site = serve(face, {"/": probe})
    whole, part, head = site.get(), site.get(Range="bytes=2-4"), site.get(method="HEAD")
    again = site.get(If_None_Match=whole.headers.get("etag", '"none"'))

    assert (whole.status, len(whole.text)) == (200, SIZE)
    assert (part.status, part.text) == ((206, "234") if serve.host.ranges else (200, whole.text))
    assert (head.status in (200, 405), head.text) == (True, "")
    known = serve.host.ranges and serve.host.revalidates
    assert (again.status, len(again.text)) == ((304, 0) if known else (200, SIZE))
    count = 3 + (head.status == 200)
    assert [outcome for _, outcome, _ in told.closed(count)] == ["committed"] * count
    assert (stored(), face.out()) == ([f"read {number}" for number in range(count)], 0)


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


def _form(size):
    """A form with a field and a file, and its type; plain hosts count all of it."""
    parts = [
        f'--{EDGE}\r\nContent-Disposition: form-data; name="name"\r\n\r\nada\r\n'.encode(),
        f'--{EDGE}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\nContent-Type: text/plain\r\n\r\n'.encode(),
        b"x" * size,
        f"\r\n--{EDGE}--\r\n".encode(),
    ]
    return b"".join(parts), {"Content_Type": f"multipart/form-data; boundary={EDGE}"}


def _upload(face, gate):
    async def probe(read):
        count = await face.session.scalar(select(func.count()).select_from(User))
        await gate.passed()
        name, size = await read()
        face.session.add(User(name=f"{name or 'ada'} {count} {size >= UPLOAD}"))
        return Answer(201)

    return Reads(probe)


def test_an_upload_holds_nothing_while_it_comes(face, serve, stored, told, gate):
    """R16: a form with a file is read within the unit, which holds no connection until all of it is here."""
    body, headers = _form(UPLOAD)
    half = len(body) // 2
    site = serve(face, {"/": _upload(face, gate)})
    talk = site.talk("/", "POST", body[:half], more=len(body) - half, **headers)
    if serve.host.reads_ahead:
        talk.send(body[half:])
    gate.reached()
    assert face.out() == 0
    gate.open()
    if not serve.host.reads_ahead:
        talk.send(body[half:])

    assert talk.status() == 201
    talk.headers()
    talk.rest()
    assert stored() == ["ada 0 True"]
    assert [outcome for _, outcome, _ in told.closed(1)] == ["committed"]


def test_an_upload_that_is_broken_off_is_undone(face, serve, stored, told, gate):
    """R19: a client that leaves within its upload has stored nothing, and no unit and no connection stays."""

    async def probe(read):
        face.session.add(User(name="begun"))
        await face.session.flush()
        await gate.passed()
        await read()
        return Answer(201)

    async def quick():
        return Answer(text=str(await face.session.scalar(select(func.count()).select_from(User))))

    body, headers = _form(UPLOAD)
    half = len(body) // 2
    site = serve(face, {"/": Reads(probe), "/quick": quick})
    talk = site.talk("/", "POST", body[:half], more=len(body) - half, **headers)
    if not serve.host.reads_ahead:
        gate.reached()
    talk.leave()
    gate.open()

    if not serve.host.reads_ahead:
        assert [outcome for _, outcome, _ in told.closed(1)] == ["rolled back"]
    assert site.get("/quick").text == "0"
    assert (stored(), face.out()) == ([], 0)
