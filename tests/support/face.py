"""One body of test cases for both faces of tenure.

A case is an ``async def``. On the asynchronous face it runs on an event loop. On the synchronous face every awaited
thing is finished at once, so the coroutine is driven to its end with no loop at all::

    async def test_a_block_commits(face):
        \"\"\"R1: a block that returns is stored.\"\"\"
        async with face.unit() as session:
            session.add(User(name="ada"))

        async with face.unit() as session:
            assert await session.scalar(select(User.name)) == "ada"
        assert face.out() == 0
"""

import asyncio
import contextvars
import functools
import inspect
import threading
import time
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

# Failures are shown at the line of the case, not in here: pytest and tenure's own messages pass over this file.
__tracebackhide__ = True

PATIENCE = 10.0
"""Seconds after which a barrier or event that nobody reaches fails the test."""


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits, and give its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    message = "a case of the synchronous face awaited something that was not finished at once"
    raise RuntimeError(message)


async def settle(value: Any) -> Any:
    """The value, or what the awaitable becomes."""
    return await value if inspect.isawaitable(value) else value


class SessionFace:
    """A session whose methods are awaited on both faces. `raw` is the true `Session` or `AsyncSession`.

    What does no input or output (`add`, `add_all`, `expunge`, `new`, `in_transaction` …) is called as it is.
    """

    AWAITED = frozenset(
        {
            "close", "commit", "connection", "delete", "execute", "flush", "get", "get_one", "invalidate", "merge",
            "refresh", "rollback", "scalar", "scalars",
        }
    )  # fmt: skip

    def __init__(self, raw: Session | AsyncSession) -> None:
        self.raw = raw
        self.is_async = isinstance(raw, AsyncSession)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.raw, name)
        if name not in self.AWAITED:
            return attribute

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await settle(attribute(*args, **kwargs))

        return call

    async def run_sync(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call *fn* with the synchronous session, where lazy loading works on both faces."""
        if isinstance(self.raw, AsyncSession):
            return await self.raw.run_sync(fn, *args, **kwargs)
        return fn(self.raw, *args, **kwargs)

    def begin_nested(self) -> "Block":
        """``async with session.begin_nested():`` is a savepoint."""
        return Block(self.raw.begin_nested(), is_async=self.is_async)

    async def stream(self, statement: Any, *args: Any, **options: Any) -> "StreamFace":
        """Execute with a cursor on the server; read with ``async for`` and end with ``await rows.close()``."""
        if isinstance(self.raw, AsyncSession):
            return StreamFace(await self.raw.stream(statement, *args, **options))
        execution = {"stream_results": True, **options.pop("execution_options", {})}
        return StreamFace(self.raw.execute(statement, *args, execution_options=execution, **options))

    def __repr__(self) -> str:
        return f"SessionFace({self.raw!r})"


class StreamFace:
    """The rows of `SessionFace.stream`, one reading for both faces."""

    AWAITED = frozenset({"all", "close", "fetchall", "fetchmany", "fetchone", "first", "one", "one_or_none"})

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.raw, name)
        if name in self.AWAITED:
            return functools.partial(self._call, attribute)
        return attribute

    async def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await settle(method(*args, **kwargs))

    def scalars(self) -> "StreamFace":
        return StreamFace(self.raw.scalars())

    async def __aiter__(self) -> Any:
        if hasattr(self.raw, "__aiter__"):
            async for row in self.raw:
                yield row
        else:
            for row in self.raw:
                yield row


class Block:
    """A context manager of either kind, entered with ``async with``."""

    def __init__(self, raw: Any, *, is_async: bool) -> None:
        self.raw = raw
        self.is_async = is_async

    async def __aenter__(self) -> Any:
        return face_of(await self.raw.__aenter__() if self.is_async else self.raw.__enter__())

    async def __aexit__(self, *error: object) -> Any:
        return await self.raw.__aexit__(*error) if self.is_async else self.raw.__exit__(*error)


class Face:
    """A `Database` or `AsyncDatabase` as the cases see it. Made by the fixtures `face` and `make_face`."""

    is_async: bool

    def __init__(self, db: Any, driver: str = "", dialect: str = "") -> None:
        self.db = db
        self.driver = driver
        self.dialect = dialect
        self.closed = False

    # -------------------------------------------------------------------------------- units

    def unit(self, **options: Any) -> Block:
        """``async with face.unit(...) as session:``, where the session is a `SessionFace`."""
        return Block(self.db.unit(**options), is_async=self.is_async)

    def decorated(self, fn: Callable[..., Awaitable[Any]], **options: Any) -> Callable[..., Awaitable[Any]]:
        """*fn*, an ``async def fn(session, ...)``, decorated by `db.unit` as this face's users would write it.

        For the synchronous face it becomes a plain function of the same name and signature. A parameter annotated
        `SessionFace` is shown to tenure as `Session` or `AsyncSession`. What is returned is awaited on both faces;
        its attribute `target` is what `db.unit` returned.
        """
        target = self.db.unit(**options)(self.plain(fn)) if options else self.db.unit(self.plain(fn))

        @functools.wraps(fn, updated=())
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await settle(target(*map(_raw, args), **{name: _raw(value) for name, value in kwargs.items()}))

        call.target = target  # type: ignore[attr-defined]
        return call

    def plain(self, fn: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        """*fn* as a user of this face would have written it, not decorated."""
        if self.is_async:

            async def body(*args: Any, **kwargs: Any) -> Any:
                return await fn(*map(face_of, args), **{name: face_of(value) for name, value in kwargs.items()})

        else:

            def body(*args: Any, **kwargs: Any) -> Any:
                return drive(fn(*map(face_of, args), **{name: face_of(value) for name, value in kwargs.items()}))

        session = AsyncSession if self.is_async else Session
        hints = _hints(fn)
        annotations = {name: session if hint is SessionFace else hint for name, hint in hints.items()}
        signature = inspect.signature(fn)
        # Not functools.wraps: its __wrapped__ would show tenure the async def behind a plain function.
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(body, attribute, getattr(fn, attribute))
        place = fn.__code__
        body.__code__ = body.__code__.replace(
            co_filename=place.co_filename, co_firstlineno=place.co_firstlineno, co_name=place.co_name
        )
        body.__annotations__ = annotations
        body.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[
                parameter.replace(annotation=annotations.get(name, parameter.annotation))
                for name, parameter in signature.parameters.items()
            ],
            return_annotation=annotations.get("return", signature.return_annotation),
        )
        return body

    @property
    def current(self) -> Any:
        """The current unit, `db.current`."""
        return self.db.current

    @property
    def session(self) -> SessionFace:
        """The current unit's session, `db.session`."""
        return SessionFace(self.db.session)

    # -------------------------------------------------------------------------- connections

    @property
    def sync_engine(self) -> Any:
        """The synchronous engine, the one that SQLAlchemy's events and the pool belong to."""
        return getattr(self.db.engine, "sync_engine", self.db.engine)

    @property
    def pool(self) -> Pool:
        return self.sync_engine.pool

    def out(self) -> int:
        """How many connections are out of the pool now, but for those that are kept for a read and may be taken."""
        gate = self.db.supply.gate
        return self.pool.checkedout() - gate.queue.spare  # type: ignore[attr-defined, no-any-return]

    # ------------------------------------------------------------------ several at one time

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run *coroutine* to its end from code that is not a coroutine."""
        raise NotImplementedError

    async def spawn(
        self, *factories: Callable[[], Coroutine[Any, Any, Any]], inherit: bool | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:  # fmt: skip
        """Run several cases at one time, each in a thread or task that bears the name of its function.

        Waits for all of them, then gives their results in order. Errors are raised then: one as it is, several as an
        exception group, or given among the results with *return_exceptions*.

        *inherit* says whether they see the context variables of the caller: as they do in tasks (the default there),
        as they do not in threads (the default there).
        """
        raise NotImplementedError

    def barrier(self, parties: int) -> Any:
        """``await barrier.wait()`` goes on when that many are waiting."""
        raise NotImplementedError

    def event(self) -> Any:
        """``event.set()`` lets all go on that wait in ``await event.wait()``."""
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def until(self, condition: Callable[[], Any]) -> None:
        """Go on when *condition* holds; for what is counted, as ``face.db.status().waiting == 3``."""
        ends = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > ends:
                raise TimeoutError
            await self.sleep(0.001)

    async def close(self) -> None:
        """Close the database; closing twice is fine."""
        if not self.closed:
            self.closed = True
            await settle(self.db.close())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.driver!r})"


class SyncFace(Face):
    """`Database`, with threads."""

    is_async = False

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return drive(coroutine)

    async def spawn(
        self, *factories: Callable[[], Coroutine[Any, Any, Any]], inherit: bool | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:  # fmt: skip
        results: list[Any] = [None] * len(factories)

        def work(index: int, factory: Callable[[], Coroutine[Any, Any, Any]]) -> None:
            try:
                results[index] = drive(factory())
            except BaseException as error:
                results[index] = error

        threads = []
        for index, factory in enumerate(factories):
            context = contextvars.copy_context() if inherit else contextvars.Context()
            threads.append(
                threading.Thread(target=context.run, args=(work, index, factory), name=_name(factory, index), daemon=True)
            )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _results(results, return_exceptions)

    def barrier(self, parties: int) -> "_ThreadBarrier":
        return _ThreadBarrier(parties)

    def event(self) -> "_ThreadEvent":
        return _ThreadEvent()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncFace(Face):
    """`AsyncDatabase`, with tasks. All faces of a test share one event loop."""

    is_async = True

    def __init__(self, db: Any, driver: str = "", dialect: str = "", *, runner: asyncio.Runner) -> None:
        super().__init__(db, driver, dialect)
        self.runner = runner

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine, context=contextvars.copy_context())

    async def spawn(
        self, *factories: Callable[[], Coroutine[Any, Any, Any]], inherit: bool | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:  # fmt: skip
        loop = asyncio.get_running_loop()
        tasks = []
        for index, factory in enumerate(factories):
            context = contextvars.Context() if inherit is False else contextvars.copy_context()
            # The factory is called inside the task, as it is called inside the thread.
            tasks.append(loop.create_task(_begin(factory), name=_name(factory, index), context=context))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return _results(results, return_exceptions)

    def barrier(self, parties: int) -> "_TaskBarrier":
        return _TaskBarrier(parties)

    def event(self) -> "_TaskEvent":
        return _TaskEvent()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _ThreadBarrier(threading.Barrier):
    async def wait(self) -> None:  # type: ignore[override]
        super().wait(PATIENCE)


class _TaskBarrier(asyncio.Barrier):
    async def wait(self) -> None:  # type: ignore[override]
        async with asyncio.timeout(PATIENCE):
            await super().wait()


class _ThreadEvent(threading.Event):
    async def wait(self) -> None:  # type: ignore[override]
        if not super().wait(PATIENCE):
            raise TimeoutError


class _TaskEvent(asyncio.Event):
    async def wait(self) -> None:  # type: ignore[override]
        async with asyncio.timeout(PATIENCE):
            await super().wait()


def face_of(value: Any) -> Any:
    """A session in its face, anything else as it is."""
    return SessionFace(value) if isinstance(value, Session | AsyncSession) else value


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, SessionFace) else value


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(fn)
    except NameError:  # a name of a function's own scope: leave the texts
        return dict(fn.__annotations__)


async def _begin(factory: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await factory()


def _name(factory: Any, index: int) -> str:
    while isinstance(factory, functools.partial):
        factory = factory.func
    name = getattr(factory, "__name__", "")
    return name if name.isidentifier() else f"worker-{index}"


def _results(results: list[Any], return_exceptions: bool) -> list[Any]:
    errors = [result for result in results if isinstance(result, BaseException)]
    if return_exceptions or not errors:
        return results
    if len(errors) == 1:
        raise errors[0]
    message = "several workers failed"
    raise BaseExceptionGroup(message, errors)
