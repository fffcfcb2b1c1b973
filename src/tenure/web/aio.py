"""Requests on an event loop: what ``boundary`` decides is awaited, and what a ``Database`` does at their end blocks no loop."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from contextvars import Token
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack

from tenure import callsite, workers
from tenure.checks import check_seconds
from tenure.core.base import BaseDatabase
from tenure.core.plan import Outcome, adrive, attach
from tenure.core.shield import finish
from tenure.core.unit import BaseUnit
from tenure.engines import fork
from tenure.engines.waiting import BESIDE
from tenure.web.answering import Answers, answering
from tenure.web.boundary import Boundary, Rules
from tenure.web.request import Request, Step

# How many requests that hold no connection yet may be settled in threads at once: each may have to wait for one there. Those that
# hold one never queue behind them.
_PERMITS: Final = 40
_THREADS: Final = 10_000  # no bound of its own: see the permits, and the pool's size
_endings: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly
_SWITCHING_PROTOCOLS: Final = 101
_AS_LONG_AS_IT_TAKES: Final = 86_400.0  # seconds: nobody can stop what a thread does


class LoopRules(Rules, total=False):
    """The keywords of a ``LoopBoundary``."""

    close: bool | float


class LoopBoundary(Boundary):
    """What an application on an event loop has decided, whichever kind its database is. By itself, of a host on ASGI.

    Args:
        database: Whose units the requests are.
        close: Drain and close *database* when the server has stopped: the seconds that open units have, or True for one.
            Default False: whoever made it closes it.
        rules: The others are those of ``Boundary``.

    Raises:
        BadOption: As ``Boundary``.

    """

    rules = LoopRules

    def __init__(self, database: BaseDatabase[Any], *, close: bool | float = False, **rules: Unpack[Rules]) -> None:
        super().__init__(database, **rules)
        if not isinstance(close, bool):
            check_seconds("close", close)
        self.closes: bool | float = close
        self.threads = None if database.is_async else Threads()

    def begin(self, name: str, given: Any = None) -> LoopRequest:
        """A request, current in this context from now on until its ``gone()``.

        Args:
            name: ``GET /path``.
            given: What the host knows of it.

        """
        return LoopRequest(self, name, given)

    if TYPE_CHECKING:

        def here(self) -> LoopRequest | None:
            """As ``Boundary``."""

    def cookies(self, given: Any) -> str | None:
        """As in ASGI's scope."""
        return "; ".join(value.decode("latin-1") for name, value in given["headers"] if name == b"cookie")

    def is_secure(self, given: Any) -> bool:
        """As in ASGI's scope."""
        return given.get("scheme") == "https"  # type: ignore[no-any-return]

    async def stopped(self, *_whatever: Any) -> None:
        """The server has stopped: close the database, if that was asked for, and let the threads go."""
        if self.closes is not False:
            await self.close(self.closes)
        self.ended()

    async def close(self, seconds: bool | float = True) -> None:
        """Drain and close the database, in a thread if that blocks.

        Args:
            seconds: What units that are open have to end; True for those that ``close()`` gives them.

        """
        shell: Any = self.database
        for step in [shell.close] if seconds is True else [partial(shell.drain, seconds), shell.close]:
            await (step() if self.threads is None else asyncio.to_thread(step))

    def ended(self) -> None:
        """No request will come: let the threads go."""
        if self.threads is not None:
            self.threads.close()


class ServerBoundary(LoopBoundary):
    """That of a host which is a server itself: its requests have ``headers`` and a ``scheme``."""

    def cookies(self, given: Any) -> str | None:
        """As in its headers."""
        return given.headers.get("cookie")  # type: ignore[no-any-return]

    def is_secure(self, given: Any) -> bool:
        """As in its scheme."""
        return given.scheme == "https"  # type: ignore[no-any-return]


class LoopRequest(Request):
    """A request on an event loop.

    Args:
        boundary: What the application has decided.
        name: ``GET /path``.
        given: What the host knows of it.

    """

    awaited = True

    def __init__(self, boundary: LoopBoundary, name: str, given: Any = None) -> None:
        super().__init__(boundary, name, given)
        self.threads = threads = boundary.threads  # where a Database's unit ends
        self.worker = workers.here()  # a helper thread may end while the request goes on
        self.beside: Token[Any] | None = None if threads is None else BESIDE.set(threads.lender())

    async def settle(self, status: int, error: BaseException | None = None) -> None:
        """``BlockingRequest.settle``, awaited. What has begun is finished although the task is cancelled."""
        if not self.settle_unopened(status, error):
            await adrive(self.settling(status, error), _carry_out)

    async def known(self, status: int) -> None:
        """The status is known where the answer is sent: settle. Who sends may catch what that raises, and answer for it.

        Raises:
            BaseException: As ``settle``; again for each answer that would be a success.

        """
        self.refuse_success(status)
        if self.settled is None:
            try:
                await self.settle(status)
            except BaseException as error:  # a cancellation, too, may have come before it was committed
                self.failed = error
                raise

    async def starts(self, status: int) -> list[tuple[str, str]]:
        """``BlockingRequest.starts``, awaited. With the handshake of a WebSocket the request ends: each exchange opens its own unit."""
        await self.known(status)
        self.begun = True
        if status == _SWITCHING_PROTOCOLS:
            await self.end()
        return self.set_cookies()

    async def answer(self, host: Answers, *given: Any) -> Any:
        """``BlockingAnswer.answer``, awaited."""
        response = None
        try:
            response = await host.answer(*given)
            await self.settle(response.status_code)
        except Exception as error:
            return await adrive(answering(self, host, given, error, committing=response is not None), _carry_out)
        return response

    async def finish(self, error: BaseException | None = None) -> None:
        """``BlockingRequest.finish``, awaited. What has begun is finished although the task is cancelled."""
        if not self.finish_unopened():
            await adrive(self.finishing(error, callsite.here(2)), _carry_out)

    async def end(self, error: BaseException | None = None) -> None:
        """``finish``, and let nothing of this request stay behind."""
        await self.finish(error)
        self.gone()

    def finish_with(self, task: asyncio.Task[Any]) -> None:
        """``finish`` when *task* ends: it is the host's, sends the body, and tells nobody when that was sent."""
        self.worker = workers.HOST  # between the two nobody may take the unit for one that was forgotten
        if self.unit is not None and self.unit.door is not None:
            self.unit.door.kept_by(workers.HOST)
        task.add_done_callback(self._finish_after)

    def _finish_after(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        ending = task.get_loop().create_task(self.finish(error))
        _endings.add(ending)
        ending.add_done_callback(_endings.discard)

    def gone(self) -> None:
        """The host's task goes on to something else: nothing of this request may stay behind in its context. Once is enough."""
        token, self.token = self.token, None
        beside, self.beside = self.beside, None
        self.leave(token)
        if beside is not None:
            with suppress(ValueError):  # left in another context than it was entered in
                BESIDE.reset(beside)


async def _carry_out(step: Step) -> Any:
    request: Any = step.request  # a LoopRequest, for only such end together with one
    if request is None or request.threads is None or request.unit is None:
        return await step.call()
    return step.call() if request.unit.ends_at_once() else await request.threads.run(step.call, request.unit)


class Threads:
    """Threads in which the units of a ``Database`` end while the loop goes on.

    Waiting for a connection never takes the thread in which a holder would give its own back. A request that has none waits for
    a permit before it takes a thread, one that holds a connection finds a thread at once; and a thread of anyio's (a ``def``
    endpoint) is not counted as busy while it waits.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._permits = asyncio.Semaphore(_PERMITS)
        self._limiter: Any = None
        self._pool: ThreadPoolExecutor | None = None
        fork.register(self)

    def start_anew(self) -> None:
        """As ``Heir``: the threads have stayed in the parent."""
        self._loop = self._pool = None

    def _here(self) -> asyncio.AbstractEventLoop:
        """The running loop; an application may be served by one after another, as in tests."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            anyio: Any = sys.modules.get("anyio")
            self._loop, self._permits = loop, asyncio.Semaphore(_PERMITS)
            self._limiter = None if anyio is None else anyio.to_thread.current_default_thread_limiter()
        return loop

    async def run(self, work: Callable[[], Any], unit: BaseUnit[Any]) -> Any:
        """Do *work* for *unit* in a thread, to its end; a cancellation is raised afterwards, and carries the outcome."""
        self._here()
        door = unit.door
        waits = self._permits if door is None or not door.holds_connection else nullcontext()
        result, cancelled = await finish(self._run(work, waits), _AS_LONG_AS_IT_TAKES)
        if cancelled is not None:
            attach(cancelled, unit.outcome or Outcome.UNKNOWN)
            raise cancelled
        return result

    async def _run(self, work: Callable[[], Any], waits: Any) -> Any:
        async with waits:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, "tenure")
            context = contextvars.copy_context()
            return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, work)

    def lender(self) -> Any:
        """What to call when a thread begins to wait for a connection (1) and when it goes on (-1); None without anyio."""
        loop, limiter = self._here(), self._limiter
        if limiter is None:
            return None

        def change(by: int) -> None:
            limiter.total_tokens += by

        def lend(by: int) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits for a thread any more
                loop.call_soon_threadsafe(change, by)

        return lend

    def close(self) -> None:
        """End the threads when they have done their work. Others come if they are needed after all."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
