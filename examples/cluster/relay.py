"""Hands the messages of the outbox to RabbitMQ, until SIGTERM: ``python -m examples.cluster.relay``."""

from __future__ import annotations

import logging

from examples.cluster import ledger
from examples.cluster.shop import box, leave
from examples.cluster.tasks import receipt
from tenure import Retry

relay = box.relay(
    {"receipt": receipt.delay},
    batch=20,
    poll=0.1,
    retry=Retry(1000, first=0.2, longest=2.0),  # the broker may be away for as long as it likes
)

if __name__ == "__main__":
    logging.basicConfig()
    ledger.note("up")
    relay.run()
    leave()
