"""The brokers that tests use where there is one: Redis and RabbitMQ, each queue under a name of its own."""

import os
import uuid
from functools import cache
from typing import Any

import kombu
import redis

from support.servers import ServerMissingError, give_up

_ADDRESSES = {
    "Redis": ("TENURE_TEST_REDIS", "redis://127.0.0.1:6379/0"),
    "RabbitMQ": ("TENURE_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672/%2F"),
}


def found(broker: str) -> str:
    """The address of *broker*, ``"Redis"`` or ``"RabbitMQ"``; without it the test is skipped, or fails where it is required."""
    missing = _missing(broker)
    if missing is not None:
        give_up(missing)
    return address(broker)


def address(broker: str) -> str:
    variable, default = _ADDRESSES[broker]
    return os.environ.get(variable, default)


def queue() -> str:
    """A name that no other queue has."""
    return f"tenure-{uuid.uuid4().hex[:12]}"


def options(name: str) -> dict[str, Any]:
    """Celery's ``broker_transport_options`` for this queue. On Redis what a worker took and did not do is for the next one to start,
    and everything has keys of its own; RabbitMQ, which sees that its client is gone, needs none of this.
    """
    return {"visibility_timeout": 0.1, "global_keyprefix": name}


def drop(broker: str, name: str) -> None:
    """Remove a queue with what is in it."""
    with kombu.Connection(address(broker), transport_options=options(name)) as connection:
        connection.default_channel.queue_delete(name)
    if broker == "Redis":
        with redis.Redis.from_url(address(broker)) as client:
            for key in client.scan_iter(f"{name}*"):
                client.delete(key)


@cache
def _missing(broker: str) -> ServerMissingError | None:
    try:
        with kombu.Connection(address(broker), connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
    except Exception as error:
        remedy = f"Start one there (Debian: {broker.lower()}-server), or set {_ADDRESSES[broker][0]}=URL."
        return ServerMissingError(broker, f"{address(broker)} does not answer ({error})", remedy)
    return None
