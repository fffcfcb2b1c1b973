"""Celery, RQ, Dramatiq and taskiq with real workers, which are killed before, in and after COMMIT."""

import contextlib
import os
import signal

import pytest

from support import brokers, runners
from support.workers import slow_commit, until

pytestmark = [pytest.mark.drivers("psycopg")]


EACH = [
    runners.Celery,
    runners.CeleryOnGevent,
    runners.CeleryOnEventlet,
    runners.CeleryOnRedis,
    runners.Dramatiq,
    runners.DramatiqOnRedis,
    runners.RQ,
    runners.Taskiq,
]


@pytest.fixture(params=EACH)
def runner(request):
    made = request.param(brokers.found(request.param.broker), brokers.queue())
    yield made
    made.drop()


@pytest.fixture
def worker(face, runner, tmp_path):
    """``worker()`` starts one; when all have ended, their connections must have as well."""
    yield lambda: runner.worker(face.sync_engine.url, tmp_path / "worker.log")
    until(face, runner.backends(), 0, 1.0)


def in_commit(face):
    until(face, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", 1)


def test_a_worker_that_is_killed(face, runner, worker, stored, tmp_path):
    """R25: each run and retry has a clean unit; a run that is killed before its COMMIT is done again and leaves nothing; one that is
    killed in or after it is done again, and stays stored.
    """
    with worker() as first:
        with slow_commit(face):
            runner.send("stubborn", "stubborn", str(tmp_path / "runs"))
            runner.send("keep", "easy")
            assert {first.said("stored").split()[-1].rpartition(".")[2] for _ in range(2)} == {"stubborn", "keep"}
            for where in ("before", "after", "in"):
                runner.send("keep", where, where, str(tmp_path / where))
                pid = int(first.said(where))
                if where == "in":
                    in_commit(face)
                if runner.processes:
                    os.kill(pid, signal.SIGKILL)
                    assert where == "in" or first.said("stored").startswith(where)
            if not runner.processes:
                first.kill()
        if runner.processes:
            assert first.said("stored").startswith("in")
            assert first.stop() == 0
    if not runner.processes:
        until(face, runner.backends(), 0, 1.0)
        with worker() as second:
            runner.send("keep", "next")
            assert {second.said("stored").split()[0] for _ in range(4)} == {"before", "after", "in", "next"}
            until(face, runner.backends("state LIKE 'idle in transaction%'"), 0, 1.0)
            assert second.stop() == 0

    assert "greenlets-blocked" not in (tmp_path / "worker.log").read_text()
    assert [name for name in stored() if name != "next 0"] == [
        "after 0", "after 1", "before 0", "easy 0", "in 0", "in 1", "stubborn 0",
    ]  # fmt: skip


@pytest.mark.parametrize("runner", [runners.CeleryInProcesses], indirect=True)
def test_a_worker_whose_processes_are_killed(face, runner, worker, stored, tmp_path):
    """R25: the same for the processes of a Celery worker that goes on."""
    with worker() as one:
        with slow_commit(face):
            pids = []
            for where in ("before", "after", "in"):
                runner.send("keep", where, where, str(tmp_path / where))
                pids.append(int(one.said(where)))
            in_commit(face)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        assert {one.said("stored").split()[0] for _ in range(3)} == {"before", "after", "in"}
        until(face, runner.backends("state LIKE 'idle in transaction%'"), 0, 1.0)
        assert one.stop() == 0

    assert stored() == ["after 0", "after 1", "before 0", "in 0", "in 1"]


@pytest.mark.parametrize("runner", [runners.RQ], indirect=True)
def test_a_worker_that_is_killed_with_its_job(face, runner, worker, stored, tmp_path):
    """R25: the same for a worker of RQ that dies with the process of its job, before, in and after COMMIT: once its clean-up gives the
    jobs back, another worker does them again.
    """
    for where in ("before", "after", "in"):
        with contextlib.ExitStack() as stack:
            if where == "in":
                stack.enter_context(slow_commit(face))
            killed = stack.enter_context(worker())
            runner.send("keep", where, where, str(tmp_path / where))
            pid = int(killed.said(where))
            if where == "in":
                in_commit(face)
            killed.kill()
            os.kill(pid, signal.SIGKILL)  # it has a process group of its own
    until(face, runner.backends(), 0, 1.0)
    assert stored() == ["after 0", "in 0"]
    runner.give_back()
    with worker() as last:
        assert {last.said("stored").split()[0] for _ in range(3)} == {"before", "after", "in"}
        assert last.stop() == 0

    assert stored() == ["after 0", "after 1", "before 0", "in 0", "in 1"]
