"""The Dramatiq broker of the tests' workers."""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from jobs.workers import body
from tenure.jobs.dramatiq import install

QUEUE = os.environ["WORKER_QUEUE"]
broker = RabbitmqBroker(url=os.environ["WORKER_BROKER"])
install(broker, body.db)
keep = dramatiq.actor(body.keep, actor_name="shop.keep", queue_name=QUEUE, broker=broker)
stubborn = dramatiq.actor(
    body.stubborn, actor_name="shop.stubborn", queue_name=QUEUE, broker=broker, min_backoff=1, max_backoff=1
)
