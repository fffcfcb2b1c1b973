"""The Dramatiq broker of the tests' workers, on RabbitMQ or Redis."""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from jobs.workers import body
from tenure.jobs.dramatiq import install

QUEUE = os.environ["WORKER_QUEUE"]
ADDRESS = os.environ["WORKER_BROKER"]
# On Redis a worker looks at each turn for others that have not said for 100 ms that they live; for itself it is never dead.
broker = (
    RedisBroker(url=ADDRESS, namespace=QUEUE, heartbeat_timeout=100, maintenance_chance=1_000_000)
    if ADDRESS.startswith("redis")
    else RabbitmqBroker(url=ADDRESS)
)
install(broker, body.db)
keep = dramatiq.actor(body.keep, actor_name="shop.keep", queue_name=QUEUE, broker=broker)
fall = dramatiq.actor(body.fall, actor_name="shop.fall", queue_name=QUEUE, broker=broker, max_retries=0)
stubborn = dramatiq.actor(
    body.stubborn, actor_name="shop.stubborn", queue_name=QUEUE, broker=broker, min_backoff=1, max_backoff=1
)
