"""The check that nothing is left after a test can fail, for each kind of thing that can be left."""

import asyncio
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from support import leaks
from support.models import User

CONFTEST = Path(__file__).parents[1] / "conftest.py"


async def test_an_open_unit_is_found(face):
    """A unit that was entered and not left is reported, and its connection too."""
    unit = face.unit()
    session = await unit.__aenter__()
    session.add(User(name="ada"))
    await session.flush()

    found = leaks.units_left([face]), leaks.connections_left([face])
    await unit.__aexit__(None, None, None)

    assert "still open" in found[0][0]
    assert "1 connection(s)" in found[1][0]
    assert leaks.units_left([face]) == []
    assert leaks.connections_left([face]) == []


@pytest.mark.faces("sync")
def test_a_connection_out_is_found(face):
    """A connection that nobody gave back is reported; one that was only forgotten is garbage."""
    connection = face.sync_engine.connect()

    found = leaks.connections_left([face])
    del connection

    assert "1 connection(s)" in found[0]
    assert leaks.connections_left([face]) == []


def test_a_thread_is_found(monkeypatch):
    """A thread that does not end is reported, daemon or not; one that is just ending gets a moment."""
    monkeypatch.setattr(leaks, "JOIN", 0.2)
    before, gate = threading.enumerate(), threading.Event()
    thread = threading.Thread(target=gate.wait, name="forgotten", daemon=True)
    thread.start()

    found = leaks.threads_left(before)
    threading.Timer(0.05, gate.set).start()

    assert "forgotten" in found[0]
    assert leaks.threads_left(before) == []


def test_a_task_is_found():
    """A task that is not done is reported."""
    with asyncio.Runner() as runner:

        async def begin():
            return asyncio.create_task(asyncio.sleep(60), name="forgotten")

        task = runner.run(begin())

        assert "forgotten" in leaks.tasks_left(runner)[0]

        task.cancel()

        assert leaks.tasks_left(runner) == []


def test_each_leak_fails_its_test(pytester):
    """Run as a whole: tests that leave something are errors, the clean one beside them is not."""
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini(f"[pytest]\npythonpath = {CONFTEST.parent}\nmarkers =\n  faces(*names)\n  drivers(*names)\n")
    pytester.makepyfile(
        """
        import asyncio, threading, time
        import pytest
        from support import leaks
        from support.models import User
        leaks.JOIN = 0.1
        kept = []
        pytestmark = pytest.mark.drivers("sqlite", "aiosqlite")

        async def test_clean(face):
            async with face.unit() as session:
                await session.get(User, 1)

        @pytest.mark.faces("sync")
        async def test_unit(face):
            kept.append(face.unit())
            await kept[-1].__aenter__()

        async def test_connection(face):
            unit = face.db.engine.connect()
            kept.append(await unit if face.is_async else unit)

        @pytest.mark.faces("async")
        async def test_task(face):
            kept.append(asyncio.create_task(asyncio.sleep(60)))

        def test_thread():
            threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
        """
    )

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(passed=7, errors=5)
    result.stdout.fnmatch_lines(
        [
            "*the unit *is still open*",
            "*1 connection(s) are out*",
            "*the task *is not done*",
            "*the thread *still runs*",
        ]
    )


def test_every_engine_is_watched(watch, tmp_path):
    """A database that a test makes itself is closed and checked when it is given to `watch`."""
    import tenure

    face = watch(tenure.Database(f"sqlite:///{tmp_path}/own.db"))

    with face.sync_engine.connect() as connection:
        assert connection.scalar(sa.text("PRAGMA foreign_keys")) == 1
