"""Messages that must not be lost: stored by the unit that they tell of, sent by a relay afterwards, at least once."""

from tenure.jobs.outbox.batch import Message
from tenure.jobs.outbox.box import AsyncOutbox, Outbox
from tenure.jobs.outbox.numbers import Numbers
from tenure.jobs.outbox.relay import AsyncRelay, Relay
from tenure.jobs.outbox.table import table

__all__ = ["AsyncOutbox", "AsyncRelay", "Message", "Numbers", "Outbox", "Relay", "table"]
