"""The relay: takes batches of messages and sends them until it is told to stop. Two shells, which decide nothing."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from tenure import callsite
from tenure.core.aio import AsyncDatabase
from tenure.core.database import Database
from tenure.core.shield import finish
from tenure.exceptions import BadOption, DatabaseClosed, DatabaseDraining, OutboxMissing
from tenure.jobs.outbox.batch import Batch
from tenure.jobs.outbox.course import BaseRelay, Done, heeding_sigterm

_SHIELD: Final = 10.0  # seconds that giving back the lock may take once the task is cancelled


class Relay(BaseRelay):
    """Sends the messages of an ``Outbox``; made by ``Outbox.relay``."""

    def __init__(self, database: Database, table: Table, send: Any, **options: Any) -> None:
        super().__init__(database, table, send, **options)
        self.database = database

    def run(self) -> None:
        """Send until ``stop()`` is called, the process gets SIGTERM, or the database is drained.

        In the main thread SIGTERM is heeded: the message that is being sent is finished, what was sent is stored, and this returns.
        A database that does not answer is tried again, with longer and longer waits, and logged (``relay-failed``).

        Raises:
            OutboxMissing: The database has no such table.
            BadOption: The server is too old to pass over locked rows.

        """
        site = callsite.here(2)
        with heeding_sigterm(self):
            while not self.stopping:
                try:
                    pause = self._pause_after(self._step(site))
                except (DatabaseDraining, DatabaseClosed):
                    return
                except (OutboxMissing, BadOption):
                    raise
                except Exception as error:  # whatever it is, messages must not lie for want of a relay that has given up
                    pause = self._troubled(error, site)
                ends = time.monotonic() + pause
                while left := self._left(ends):
                    time.sleep(left)

    def step(self) -> int:
        """Take one batch and send it, for tests and for schedulers; how many messages were sent.

        Raises:
            OutboxMissing: The database has no such table.
            BadOption: The server is too old to pass over locked rows.

        """
        return self._step(callsite.here(2)).sent

    def _step(self, site: callsite.Site | None) -> Done:
        lock = self._lock()
        if lock is not None and not lock.acquire():
            return Done(0, more=False)  # another relay works, and here one is enough
        try:
            done = self._batch()
            if not done.more and self._sweep_is_due():
                with self.database.unit(**self._options()) as session:
                    self._sweep(session)
        except DBAPIError as error:
            why = None
            with suppress(Exception), self.database.engine.connect() as connection:  # one that does not answer cannot say why
                why = self._explained(connection, site)
            if why is not None:
                raise why from error
            raise
        finally:
            if lock is not None:
                lock.release()
        return done

    def _batch(self) -> Done:
        batch, place = Batch(self.table, self._retry, self._keep, self._failing), self.database.current_place
        with self.database.unit(**self._options()) as session:
            messages = self._claim(session)
            for message in messages:
                if self.stopping or batch.over:
                    break
                with place.afterwards(), batch.sending(message):  # what is called has no part in this unit
                    self._call(message)
            batch.store(session)
        return self._after(batch, len(messages))


class AsyncRelay(BaseRelay):
    """Sends the messages of an ``AsyncOutbox``; made by ``AsyncOutbox.relay``."""

    def __init__(self, database: AsyncDatabase, table: Table, send: Any, **options: Any) -> None:
        super().__init__(database, table, send, **options)
        self.database = database

    async def run(self) -> None:
        """As ``Relay.run``. A cancellation ends it too, once what was sent is stored."""
        site = callsite.here(2)
        with heeding_sigterm(self):
            while not self.stopping:
                try:
                    pause = self._pause_after(await self._step(site))
                except (DatabaseDraining, DatabaseClosed):
                    return
                except (OutboxMissing, BadOption):
                    raise
                except Exception as error:  # whatever it is, messages must not lie for want of a relay that has given up
                    pause = self._troubled(error, site)
                ends = time.monotonic() + pause
                while left := self._left(ends):  # noqa: ASYNC110 - a signal or another thread may stop it, so this is no Event
                    await asyncio.sleep(left)

    async def step(self) -> int:
        """As ``Relay.step``."""
        return (await self._step(callsite.here(2))).sent

    async def _step(self, site: callsite.Site | None) -> Done:
        lock = self._lock()
        if lock is not None and not await greenlet_spawn(lock.acquire):
            return Done(0, more=False)  # another relay works, and here one is enough
        try:
            done = await self._batch()
            if not done.more and self._sweep_is_due():
                async with self.database.unit(**self._options()) as session:
                    await session.run_sync(self._sweep)
        except DBAPIError as error:
            why = None
            with suppress(Exception):  # one that does not answer cannot say why
                async with self.database.engine.connect() as connection:
                    why = await connection.run_sync(self._explained, site)
            if why is not None:
                raise why from error
            raise
        finally:
            if lock is not None:
                await finish(greenlet_spawn(lock.release), _SHIELD)
        return done

    async def _batch(self) -> Done:
        batch, place = Batch(self.table, self._retry, self._keep, self._failing), self.database.current_place
        async with self.database.unit(**self._options()) as session:
            messages = await session.run_sync(self._claim)
            for message in messages:
                if self.stopping or batch.over:
                    break
                with place.afterwards(), batch.sending(message):  # what is called has no part in this unit
                    result = self._call(message)
                    if inspect.isawaitable(result):
                        await result
            await session.run_sync(batch.store)
        return self._after(batch, len(messages))
