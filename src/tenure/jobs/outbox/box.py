"""Where messages are put: into the transaction of the unit that they tell of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Table, select, update
from sqlalchemy.orm import Session

from tenure import callsite
from tenure.callsite import words
from tenure.core.aio import AsyncDatabase
from tenure.core.database import Database
from tenure.core.options import Retry
from tenure.exceptions import BadOption
from tenure.jobs.clock import Now
from tenure.jobs.outbox.batch import Message
from tenure.jobs.outbox.course import RETRY
from tenure.jobs.outbox.numbers import Numbers, count
from tenure.jobs.outbox.relay import AsyncRelay, Relay
from tenure.jobs.outbox.table import DEAD, LONGEST_TOPIC, PENDING, row_class_of


class _Box:
    """What both faces of an outbox share."""

    def __init__(self, database: Database | AsyncDatabase, table: Table) -> None:
        self.table = table
        self._database = database
        self._row_class = row_class_of(table)

    def put(self, topic: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store a message with the current unit: it is sent if that commits, and only then. Nothing is awaited.

        Args:
            topic: What it is about; a relay finds by it where to send it. At most 190 characters.
            args: What the receiver is called with: numbers, text, lists and mappings, as JSON has them.
            kwargs: The same, by name.

        Raises:
            NoUnit: No unit is open here.
            BadOption: The topic is empty or too long, or an argument is not JSON.
            OutboxMissing: When the unit writes, that is at its next flush or at its end: the database has no such table.

        """
        site = callsite.here(2)
        if not isinstance(topic, str) or not topic.strip() or len(topic) > LONGEST_TOPIC:
            raise BadOption(f"put({topic!r}, …) at {words(site)}: give a topic, a text of at most {LONGEST_TOPIC} characters.")
        try:
            arguments = json.dumps([args, kwargs], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadOption(
                f"put({topic!r}, …) at {words(site)}: its arguments cannot be stored as JSON ({error}). Give numbers, text, lists and"
                " mappings, such as the id of a row."
            ) from None
        self._database.session.add(self._row_class(topic, arguments, site))


class Outbox(_Box):
    """The outbox of a ``Database``.

    Args:
        database: Whose units the messages are stored with.
        table: Where, from ``outbox.table(metadata)``.

    Raises:
        BadOption: *database* or *table* is something else.

    """

    def __init__(self, database: Database, table: Table) -> None:
        if not isinstance(database, Database):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadOption(f"Outbox({type(database).__name__}, …): give a Database. For an AsyncDatabase there is AsyncOutbox.")
        super().__init__(database, table)
        self.database = database

    def relay(
        self,
        send: Mapping[str, Callable[..., Any]] | Callable[[Message], Any],
        *,
        batch: int = 100,
        poll: float = 0.5,
        retry: Retry | int = RETRY,
        keep: float = 86_400.0,
    ) -> Relay:
        """What sends the messages. Several may work at once, in as many processes.

        Args:
            send: From each topic to what is called with a message's arguments, as ``{"receipt": receipt.delay}``; messages of other
                topics are left alone. Or one function for all, which is given the ``Message``.
            batch: How many messages are taken at once; if the relay is killed, at most these are sent a second time. Default 100.
            poll: Seconds between two looks when there was nothing to do. Default 0.5.
            retry: How often a message is tried, and the waits in between, in seconds, each twice the one before. Default
                ``Retry(20, first=1.0, longest=3600.0)``, over nine hours.
            keep: Seconds after which messages that were sent are deleted; 0: at once. Default 86,400, a day.

        Raises:
            BadOption: A value is impossible, or the database cannot do it.
            UnsupportedCallable: What is to be called is no function, or one that would have to be awaited.

        """
        return Relay(self.database, self.table, send, batch=batch, poll=poll, retry=retry, keep=keep)

    def numbers(self) -> Numbers:
        """How many messages wait, were sent and are dead, and the lag."""
        with self.database.unit(propagation="new", name=f"numbers of {self.table.name}") as session:
            return count(session, self.table)

    def dead(self, limit: int = 100) -> list[tuple[Message, str]]:
        """Messages that were given up, the oldest first, at most *limit*, each with what its last attempt failed of."""
        with self.database.unit(propagation="new", name=f"dead of {self.table.name}") as session:
            return _dead(session, self.table, limit)

    def revive(self, *numbers: int) -> int:
        """Let messages that were given up be tried anew, those of these *numbers* or all; how many it were."""
        with self.database.unit(propagation="new", name=f"revive of {self.table.name}") as session:
            return _revive(session, self.table, numbers)


class AsyncOutbox(_Box):
    """The outbox of an ``AsyncDatabase``; as ``Outbox``."""

    def __init__(self, database: AsyncDatabase, table: Table) -> None:
        if not isinstance(database, AsyncDatabase):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadOption(f"AsyncOutbox({type(database).__name__}, …): give an AsyncDatabase. For a Database there is Outbox.")
        super().__init__(database, table)
        self.database = database

    def relay(
        self,
        send: Mapping[str, Callable[..., Any]] | Callable[[Message], Any],
        *,
        batch: int = 100,
        poll: float = 0.5,
        retry: Retry | int = RETRY,
        keep: float = 86_400.0,
    ) -> AsyncRelay:
        """As ``Outbox.relay``. What is called may be a plain function or ``async def``; a plain one must not block."""
        return AsyncRelay(self.database, self.table, send, batch=batch, poll=poll, retry=retry, keep=keep)

    async def numbers(self) -> Numbers:
        """As ``Outbox.numbers``."""
        async with self.database.unit(propagation="new", name=f"numbers of {self.table.name}") as session:
            return await session.run_sync(count, self.table)

    async def dead(self, limit: int = 100) -> list[tuple[Message, str]]:
        """As ``Outbox.dead``."""
        async with self.database.unit(propagation="new", name=f"dead of {self.table.name}") as session:
            return await session.run_sync(_dead, self.table, limit)

    async def revive(self, *numbers: int) -> int:
        """As ``Outbox.revive``."""
        async with self.database.unit(propagation="new", name=f"revive of {self.table.name}") as session:
            return await session.run_sync(_revive, self.table, numbers)


def _dead(session: Session, table: Table, limit: int) -> list[tuple[Message, str]]:
    columns = (table.c.id, table.c.topic, table.c.arguments, table.c.attempts, table.c.error)
    rows = session.execute(select(*columns).where(table.c.state == DEAD).order_by(table.c.id).limit(limit))
    found: list[tuple[Message, str]] = []
    for number, topic, arguments, attempts, error in rows:
        args, kwargs = json.loads(arguments)
        found.append((Message(number, topic, args, kwargs, attempts), error))
    return found


def _revive(session: Session, table: Table, numbers: tuple[int, ...]) -> int:
    statement = update(table).where(table.c.state == DEAD).values(state=PENDING, attempts=0, due=Now())
    if numbers:
        statement = statement.where(table.c.id.in_(numbers))
    changed: Any = session.execute(statement)
    return int(changed.rowcount)
