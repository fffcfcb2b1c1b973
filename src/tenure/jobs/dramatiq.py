"""Dramatiq: each run of an actor, and each retry, is a unit named after the actor. It commits before the message is acknowledged."""

from __future__ import annotations

import inspect
from typing import Any

from dramatiq import Actor, Broker, Message, Middleware
from dramatiq.middleware import MiddlewareError

from tenure.core.database import Database
from tenure.core.inject import check
from tenure.exceptions import UnsupportedCallable
from tenure.jobs import job, sending


def install(broker: Broker, database: Database) -> None:
    """Let each run of each actor of *broker* be a unit of *database*; actors that are declared later, too.

    A run commits when its actor returns and rolls back when it raises. Dramatiq acknowledges the message after it. An actor that is
    called as a function joins. One that is decorated with ``@db.unit(...)`` has its own options and name.

    Raises:
        BadOption: *broker* is no ``Broker``, or was given *database* before, or *database* is no ``Database`` or was closed.
        UnsupportedCallable: An actor cannot carry a unit, as a generator. One that is declared later raises Dramatiq's
            ``MiddlewareError`` with the same words, for that is all which Dramatiq lets through.

    """
    job.check_runner(broker, Broker, "install(broker, db)")
    job.take(broker, database, Database, "install(broker, …)")
    untyped: Any = broker
    for actor in untyped.actors.values():
        _carry(actor, database)
    broker.add_middleware(_Units(database))


def _carry(actor: Actor[..., Any], database: Database) -> None:
    function: Any = actor.fn
    if inspect.iscoroutinefunction(inner := inspect.unwrap(function)):  # Dramatiq has put a plain function around it
        if not hasattr(function, "tenure_databases"):  # it has no unit of its own, as of an AsyncDatabase
            check(inner, is_async=False, instead=job.MAKE_IT_PLAIN)
        return
    actor.fn = job.in_unit(database, function, actor.actor_name, job.MAKE_IT_PLAIN)


class _Units(Middleware):
    def __init__(self, database: Database) -> None:
        self._database = database

    def before_declare_actor(self, broker: Broker, actor: Actor[..., Any]) -> None:  # noqa: ARG002
        try:
            _carry(actor, self._database)
        except UnsupportedCallable as error:
            raise MiddlewareError(str(error)) from error

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int) -> None:  # noqa: ARG002
        name = message.actor_name
        sending.noticed(f"message for {name!r}", f"db.on_commit({name}.send, …)")
