"""BEGIN in one round trip with the first statement of a transaction, on psycopg. docs/decisions/0012-pipelined-begin.md says why this is safe.

psycopg begins a transaction by itself, with a round trip of its own. While a connection is leased for a transaction its cursors
are of the classes below: they send BEGIN, the unit's settings and the first statement together, in psycopg's pipeline mode, which
is left again before ``execute()`` returns. Whatever cannot be sent in a pipeline finds its transaction begun just before.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, Self

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy.pool import PoolProxiedConnection

from tenure.engines import autocommit

_OPENING: Final = "tenure.opening"  # in the info of a connection: its Opening
_PAYS: Final = "tenure.pipeline_pays"  # in the info of a connection: whether it is worth it there
_IDLE: Final = TransactionStatus.IDLE


class Opening:
    """How a transaction begins on one connection, for as long as it is leased."""

    __slots__ = ("factories", "info", "settings")

    def __init__(self, info: dict[Any, Any], settings: Mapping[str, str], factories: tuple[Any, Any]) -> None:
        self.info = info
        self.settings = settings
        self.factories = factories

    def due(self, connection: Any) -> bool:
        """Whether a transaction is still to begin. One who has switched autocommit on himself wants none."""
        return connection.pgconn.transaction_status == _IDLE and (autocommit.is_on(self.info) or not connection.autocommit)

    def statements(self, connection: Any) -> Iterator[tuple[str, list[str] | None]]:
        """What begins it, with the isolation and access that psycopg was told."""
        begin = ["BEGIN"]
        if connection.isolation_level is not None:
            begin.append("ISOLATION LEVEL " + psycopg.IsolationLevel(connection.isolation_level).name.replace("_", " "))
        if connection.read_only is not None:
            begin.append("READ ONLY" if connection.read_only else "READ WRITE")
        if connection.deferrable is not None:
            begin.append("DEFERRABLE" if connection.deferrable else "NOT DEFERRABLE")
        yield " ".join(begin), None
        if self.settings:
            calls = ", ".join("set_config(%s, %s, true)" for _ in self.settings)
            yield f"SELECT {calls}", [text for pair in self.settings.items() for text in pair]

    def failed(self, connection: Any, error: BaseException, pipeline: Any, said: list[Any]) -> bool:
        """Say so where the settings were refused. Returns whether the connection is in a pipeline still, and of no use."""
        if connection.closed and pipeline is not None:
            # Undocumented: what is awaited. Interrupted twice, psycopg leaves a generator that would ask the closed connection for
            # it, and Python writes "Exception ignored". tests/core/test_cancellation.py fails now and then without this.
            pipeline.result_queue.clear()
        refused = [cursor.pgresult is None for cursor in said] == [False, True]
        if refused and getattr(error, "sqlstate", None):
            error.add_note(f"tenure: it was settings={sorted(self.settings)}, sent along with the statement, that were refused.")
        return bool(connection.info.pipeline_status != PipelineStatus.OFF)


def fits(query: Any, params: Any) -> bool:
    """Whether *query* means the same in a pipeline: COPY and several statements at once, which take no parameters, do not."""
    return isinstance(query, str) and (bool(params) or (";" not in query and "copy" not in query.lower()))


# -- psycopg.Connection ------------------------------------------------------------------------------------


@contextmanager
def _begun(opening: Opening, connection: psycopg.Connection[Any]) -> Generator[None]:
    """A pipeline with BEGIN in front."""
    if not connection.autocommit:
        connection.autocommit = True  # or psycopg would begin one as well; nothing is sent for it
    autocommit.note(opening.info)
    pipeline = stopped = None
    said: list[Any] = []
    handled = sys.exception()
    try:
        with connection.pipeline() as pipeline:
            for query, params in opening.statements(connection):
                said.append(psycopg.Cursor(connection))
                said[-1].execute(query, params, prepare=False)
            yield
    except BaseException as error:
        if opening.failed(connection, error, pipeline, said):
            connection.close()
            if pipeline is not None:
                pipeline.result_queue.clear()  # as in failed()
            stopped = _hidden(error, handled)
        if stopped is None:
            raise
    if stopped is not None:
        raise stopped


def _hidden(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """What stopped the wait for an answer, as gevent's Timeout, Celery's soft time limit or an error of a signal's handler, where psycopg
    raises in its place that the pipeline cannot be left. *handled* was being handled when the statement was sent.
    """
    found = error.__context__
    own = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    return found if own and found is not handled and not isinstance(found, (psycopg.Error, OSError)) else None


class Cursor(psycopg.Cursor[Any]):
    """A cursor that begins the transaction."""

    def __init__(self, opening: Opening, connection: psycopg.Connection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self._opening = opening

    def _begin(self) -> None:
        if self._opening.due(self.connection):
            with _begun(self._opening, self.connection):
                pass

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        if not fits(query, params):
            self._begin()
        elif self._opening.due(self.connection):
            with _begun(self._opening, self.connection):
                return super().execute(query, params, **options)
        return super().execute(query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        if not self._opening.due(self.connection):
            return super().executemany(query, params_seq, **options)
        with _begun(self._opening, self.connection):
            return super().executemany(query, params_seq, **options)

    def copy(self, *args: Any, **options: Any) -> Any:
        self._begin()
        return super().copy(*args, **options)

    def stream(self, *args: Any, **options: Any) -> Iterator[Any]:
        self._begin()
        return super().stream(*args, **options)


class ServerCursor(psycopg.ServerCursor[Any]):
    """The same for a cursor on the server, whose DECLARE needs more than a pipeline."""

    def __init__(self, opening: Opening, connection: psycopg.Connection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self._opening = opening

    def execute(self, *args: Any, **options: Any) -> Self:
        if self._opening.due(self.connection):
            with _begun(self._opening, self.connection):
                pass
        return super().execute(*args, **options)


# -- psycopg.AsyncConnection -------------------------------------------------------------------------------


@asynccontextmanager
async def _begun_async(opening: Opening, connection: psycopg.AsyncConnection[Any]) -> AsyncGenerator[None]:
    if not connection.autocommit:
        await connection.set_autocommit(True)
    autocommit.note(opening.info)
    pipeline = None
    said: list[Any] = []
    try:
        async with connection.pipeline() as pipeline:
            for query, params in opening.statements(connection):
                said.append(psycopg.AsyncCursor(connection))
                await said[-1].execute(query, params, prepare=False)
            yield
    except BaseException as error:
        if opening.failed(connection, error, pipeline, said):
            await connection.close()  # waits for nothing
        raise


class AsyncCursor(psycopg.AsyncCursor[Any]):
    """As ``Cursor``."""

    def __init__(self, opening: Opening, connection: psycopg.AsyncConnection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self._opening = opening

    async def _begin(self) -> None:
        if self._opening.due(self.connection):
            async with _begun_async(self._opening, self.connection):
                pass

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        if not fits(query, params):
            await self._begin()
        elif self._opening.due(self.connection):
            async with _begun_async(self._opening, self.connection):
                return await super().execute(query, params, **options)
        return await super().execute(query, params, **options)

    async def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        if not self._opening.due(self.connection):
            return await super().executemany(query, params_seq, **options)
        async with _begun_async(self._opening, self.connection):
            return await super().executemany(query, params_seq, **options)

    @asynccontextmanager
    async def copy(self, *args: Any, **options: Any) -> AsyncGenerator[Any]:
        await self._begin()
        async with super().copy(*args, **options) as copying:
            yield copying

    async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        await self._begin()
        async for row in super().stream(*args, **options):
            yield row


class AsyncServerCursor(psycopg.AsyncServerCursor[Any]):
    """As ``ServerCursor``."""

    def __init__(self, opening: Opening, connection: psycopg.AsyncConnection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self._opening = opening

    async def execute(self, *args: Any, **options: Any) -> Self:
        if self._opening.due(self.connection):
            async with _begun_async(self._opening, self.connection):
                pass
        return await super().execute(*args, **options)


# -- the connections of a pool -----------------------------------------------------------------------------

_OURS: Final[dict[Any, tuple[Any, Any]]] = {
    (psycopg.Cursor, psycopg.ServerCursor): (Cursor, ServerCursor),
    (psycopg.AsyncCursor, psycopg.AsyncServerCursor): (AsyncCursor, AsyncServerCursor),
}


def is_supported() -> bool:
    """Whether the installed libpq, 14 or later, has pipelines."""
    return psycopg.Pipeline.is_supported()


def pays(driver: Any) -> bool:
    """Whether a round trip to the server of a connection costs more than a pipeline: not on a unix socket."""
    return not bytes(driver.pgconn.host).startswith((b"/", b"@"))


def prepare(connection: PoolProxiedConnection, settings: Mapping[str, str]) -> bool:
    """Have a connection that was just taken begin its transactions so.

    False where that would not pay, or where its cursors are of the application's own class.
    """
    driver: Any = connection.driver_connection
    if (worth := connection.info.get(_PAYS)) is None:
        worth = connection.info[_PAYS] = pays(driver)
    if not worth:
        return False
    factories = (driver.cursor_factory, driver.server_cursor_factory)
    ours = _OURS.get(factories)
    if ours is None:
        return False
    opening = connection.info[_OPENING] = Opening(connection.info, settings, factories)
    driver.cursor_factory, driver.server_cursor_factory = (partial(one, opening) for one in ours)
    return True


def undo(connection: PoolProxiedConnection) -> None:
    """Have psycopg begin transactions in its own way again, and hand its switch to whoever wants autocommit."""
    _undo(connection.driver_connection, connection.info)
    if autocommit.is_on(connection.info) and connection.driver_connection.pgconn.transaction_status == _IDLE:  # type: ignore[union-attr]
        autocommit.switch_back(connection.dbapi_connection, connection)


def _undo(driver: Any, info: dict[Any, Any]) -> None:
    opening: Opening | None = info.pop(_OPENING, None)
    if opening is not None:
        driver.cursor_factory, driver.server_cursor_factory = opening.factories


def switch_back(connection: Any, record: Any) -> None:
    """Pool event ``checkin``: nothing of this is left on the connection."""
    if connection is None:
        return
    if record.driver_connection.pgconn.transaction_status != _IDLE and autocommit.is_on(record.info):
        record.invalidate()  # begun by hand, under pool_reset_on_return=None: it could not be switched back
        return
    _undo(record.driver_connection, record.info)
    autocommit.switch_back(connection, record)
