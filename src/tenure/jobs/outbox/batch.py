"""One batch of messages: which are taken, what becomes of each, and what is stored of that. Knows neither face, and sends nothing.

The rows of a batch stay locked until it is stored (``FOR UPDATE SKIP LOCKED``), so that relays beside each other take others, and those
of a relay that is killed are free at once. SQLite locks no rows; there one relay works at a time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from sqlalchemy import Table, delete, select, update
from sqlalchemy.orm import Session

from tenure.core.options import Retry
from tenure.exceptions import brief
from tenure.jobs.clock import Now
from tenure.jobs.outbox.table import DEAD, LONGEST_ERROR, PENDING, SENT

_IN_A_ROW: Final = 3  # so many failures one after another are the broker's, not the messages'
_SWEPT: Final = 1_000  # rows that are deleted at once


class Message(NamedTuple):
    """A message, as a relay sends it.

    Attributes:
        id: Its number in the table; the same each time that it is sent.
        topic: What it is about.
        args: What was stored with it, by position.
        kwargs: And by name.
        attempt: Which attempt to send it this is, from 1 on.

    """

    id: int
    topic: str
    args: list[Any]
    kwargs: dict[str, Any]
    attempt: int


class Failed(NamedTuple):
    """A message that was not sent, and what becomes of it.

    Attributes:
        message: Which.
        error: Why.
        dead: Whether it is given up.
        wait: Else, seconds until it is tried again.
        news: Whether nobody knows yet that messages of its topic fail.

    """

    message: Message
    error: Exception
    dead: bool
    wait: float
    news: bool


def _locked(statement: Any, locks: bool) -> Any:
    return statement.with_for_update(skip_locked=True) if locks else statement


def claim(session: Session, table: Table, size: int, topics: Collection[str] | None, *, locks: bool) -> list[Message]:
    """Take up to *size* messages that are due, in the order of their numbers; of *topics* only, if not None.

    With *locks* others pass over them. SQLite has one lock for all, so that nobody could write while they are being sent.
    """
    columns = (table.c.id, table.c.topic, table.c.arguments, table.c.attempts)
    due = select(*columns).where(table.c.state == PENDING, table.c.due <= Now()).order_by(table.c.id).limit(size)
    if topics is not None:
        due = due.where(table.c.topic.in_(sorted(topics)))
    found: list[Message] = []
    rows: Any = session.execute(_locked(due, locks))
    for number, topic, arguments, attempts in rows:
        args, kwargs = json.loads(arguments)
        found.append(Message(number, topic, args, kwargs, attempts + 1))
    return found


class Batch:
    """What has become of the messages of one batch so far.

    Args:
        table: The outbox's.
        retry: When a message is tried again, and how often.
        keep: Seconds for which a message that was sent is kept; 0: it is deleted at once.
        failing: The topics of which the last message failed, over all batches; kept here.

    """

    def __init__(self, table: Table, retry: Retry, keep: float, failing: set[str]) -> None:
        self._table = table
        self._retry = retry
        self._keep = keep
        self._failing = failing
        self._row = 0
        self.interrupted: BaseException | None = None
        self.sent: list[int] = []
        self.failed: list[Failed] = []

    @property
    def over(self) -> bool:
        """Whether no more is to be sent of it."""
        return self.hopeless or self.interrupted is not None

    @property
    def hopeless(self) -> bool:
        """Whether so many have failed one after another that the rest had better wait; it costs them no attempt."""
        return self._row >= _IN_A_ROW

    @contextmanager
    def sending(self, message: Message) -> Generator[None]:
        """Within the block *message* is sent: what becomes of it is noted. An interruption goes on once that is stored."""
        try:
            yield
        except Exception as error:  # whatever the broker's library raises
            self._did_not_go(message, error)
        except BaseException as error:
            self.interrupted = error
        else:
            self._went(message)

    def _went(self, message: Message) -> None:
        self._row = 0
        self._failing.discard(message.topic)
        self.sent.append(message.id)

    def _did_not_go(self, message: Message, error: Exception) -> None:
        self._row += 1
        news = message.attempt == 1 and message.topic not in self._failing
        self._failing.add(message.topic)
        wait = min(self._retry.longest, self._retry.first * 2.0 ** min(message.attempt - 1, 64))
        self.failed.append(Failed(message, error, message.attempt >= self._retry.attempts, wait, news))

    def store(self, session: Session) -> None:
        """Write it all down."""
        table = self._table
        if self.sent and self._keep:
            session.execute(update(table).where(table.c.id.in_(self.sent)).values(state=SENT, sent=Now(), error=None))
        elif self.sent:
            session.execute(delete(table).where(table.c.id.in_(self.sent)))
        for message, error, dead, wait, _ in self.failed:
            values = {"attempts": message.attempt, "error": brief(error)[:LONGEST_ERROR], "state": DEAD if dead else PENDING}
            session.execute(update(table).where(table.c.id == message.id).values(**values, due=Now() + wait))


def sweep(session: Session, table: Table, keep: float, *, locks: bool) -> int:
    """Delete some of the messages that were sent more than *keep* seconds ago; how many it were."""
    old = select(table.c.id).where(table.c.state == SENT, table.c.sent < Now() - keep).order_by(table.c.id).limit(_SWEPT)
    numbers = list(session.scalars(_locked(old, locks)))
    if numbers:
        session.execute(delete(table).where(table.c.id.in_(numbers)))
    return len(numbers)
