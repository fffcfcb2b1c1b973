"""What a host must show the contract: an application of probes, served over real HTTP.

A host to come adds one file to ``hosts/`` with a list ``HOSTS``. It says how its framework returns, raises, redirects,
handles an error and streams; the probes themselves are written once, in ``test_contract.py``.
"""

import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support.face import PATIENCE, Face, drive
from support.http import Address


@dataclass
class Answer:
    """What a probe returns."""

    status: int = 200
    text: str = "done"
    after: Callable[[], Awaitable[None]] | None = None
    """To be run when the answer was sent, in the manner of the framework, in what it keeps of the request's context."""


@dataclass
class Stream:
    """What a probe returns whose body is made while it is sent."""

    parts: AsyncIterator[str]
    status: int = 200


class Raised(Exception):
    """To be raised as the framework's own answer with *status*; a redirect has a *location*."""

    def __init__(self, status: int, location: str | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.location = location


class Mistaken(Exception):
    """An error for which the application has an error handler, which answers 409."""


Probe = Callable[[], Awaitable[Answer | Stream]]


class Host:
    """One framework on one server."""

    name: str
    faces: tuple[str, ...] = ("sync",)
    closes_bodies: tuple[str, ...] = ("sync", "async")
    """The faces whose body the framework closes when its client has left; else the garbage collector does, some time later."""
    ends_bodies = True
    """Whether the framework hears of a client that has left while a body is sent; else it makes the whole body for nobody."""

    def application(self, face: Face, probes: Mapping[str, Probe], **boundary: Any) -> Any:
        """An application that answers each path by its probe, with tenure's adapter in place."""
        raise NotImplementedError

    def beside(self, app: Any, second: Any) -> Any:
        """*app* with tenure's adapter for a second database too."""
        raise NotImplementedError

    def serve(self, app: Any, threads: int) -> contextlib.AbstractContextManager[Address]:
        """Serve it, with that many requests at once."""
        raise NotImplementedError


class Gate:
    """Where a probe waits for the test, and the test for the probe, whether the probe runs in a thread or a task."""

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async
        self._reached = threading.Semaphore(0)
        self._open = threading.Semaphore(0)

    async def passed(self) -> None:
        """Called by the probe: say that it is here, and wait until it may go on."""
        self._reached.release()
        if self._is_async:
            import asyncio

            await asyncio.to_thread(self._wait)
        else:
            self._wait()

    def _wait(self) -> None:
        if not self._open.acquire(timeout=PATIENCE):
            raise TimeoutError

    def reached(self, times: int = 1) -> None:
        """Called by the test: wait until that many probes are here."""
        for _ in range(times):
            if not self._reached.acquire(timeout=PATIENCE):
                raise TimeoutError

    def open(self, times: int = 1) -> None:
        """Called by the test: let that many go on."""
        self._open.release(times)


def driven(parts: AsyncIterator[str]) -> Iterator[bytes]:
    """The body of a host that blocks."""
    try:
        while True:
            try:
                part = drive(anext(parts))
            except StopAsyncIteration:
                return
            yield part.encode()
    finally:
        drive(parts.aclose())


async def called(face: Face, function: Callable[[], Awaitable[Any]]) -> Any:
    """What *function* of a probe gives, on a host with an event loop: awaited there, or for a `Database` run in a worker thread."""
    if face.is_async:
        return await function()
    import anyio

    ended, result = await anyio.to_thread.run_sync(_outcome, function)
    if ended:
        raise StopAsyncIteration
    return result


def _outcome(function: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
    try:
        return False, drive(function())
    except StopAsyncIteration:  # may not leave a future
        return True, None


def in_thread(after: Callable[[], Awaitable[None]] | None) -> None:
    """What a host without background tasks does: another thread goes on in a copy of the request's context."""
    if after is not None:
        context = contextvars.copy_context()
        threading.Thread(target=lambda: context.run(drive, after()), name="after").start()
