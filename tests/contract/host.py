"""What a host must show the contract: an application of probes, served over real HTTP.

A host to come adds one file to ``hosts/`` with a list ``HOSTS``. It says how its framework returns, raises, redirects,
handles an error and streams; the probes themselves are written once, in ``test_contract.py``.
"""

import contextlib
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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


@dataclass
class File:
    """What a probe returns whose body is a file, which the host sends by its own means."""

    path: Path


@dataclass
class Reads:
    """A probe of a request with a form: it is given a function that reads it, and gives the field ``name`` and the size of ``file``."""

    probe: "Callable[[Callable[[], Awaitable[tuple[str, int]]]], Awaitable[Answer]]"


class Raised(Exception):
    """To be raised as the framework's own answer with *status*; a redirect has a *location*."""

    def __init__(self, status: int, location: str | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.location = location


class Mistaken(Exception):
    """An error for which the application has an error handler, which answers 409."""


Probe = Callable[[], Awaitable[Answer | Stream | File]]


def given(probe: Any, read: Callable[[], Awaitable[tuple[str, int]]]) -> Probe:
    """*probe* as it is called, where *read* is how the host reads a form."""
    return functools.partial(probe.probe, read) if isinstance(probe, Reads) else probe


class Host:
    """One framework on one server."""

    name: str
    faces: tuple[str, ...] = ("sync",)
    closes_bodies: tuple[str, ...] = ("sync", "async")
    """The faces whose body the framework closes when its client has left; else the garbage collector does, some time later."""
    ends_bodies = True
    """Whether the framework hears of a client that has left while a body is sent; else it makes the whole body for nobody."""

    ranges = True
    """Whether the framework sends a part of a file that was asked for."""
    revalidates = True
    """Whether it sends nothing of a file that the client has; where it sends parts."""
    reads_ahead = False
    """Whether the request's body is complete before the handler is called."""
    mounts = True
    """Whether one application can be a part of another."""
    sockets = False
    """Whether it has WebSockets."""

    def application(self, face: Face, probes: Mapping[str, Probe], **boundary: Any) -> Any:
        """An application that answers each path by its probe, with tenure's adapter in place."""
        raise NotImplementedError

    def within(self, face: Face, probes: Mapping[str, Probe], inner: Mapping[str, Probe]) -> Any:
        """An application of *probes*, and below ``/inner`` an application of *inner* in the framework's own manner."""
        raise NotImplementedError

    def exchanging(self, app: Any, face: Face, exchange: Callable[[str], Awaitable[str]]) -> None:
        """Have *app* answer each message to the WebSocket ``/ws`` by *exchange*."""
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
