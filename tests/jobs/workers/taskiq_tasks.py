"""The taskiq broker of the tests' workers, on streams of Redis, which have acknowledgements."""

import os

from taskiq import SimpleRetryMiddleware
from taskiq_redis import RedisStreamBroker

from jobs.workers import abody
from tenure.jobs.taskiq import install

broker = RedisStreamBroker(url=os.environ["WORKER_BROKER"], queue_name=os.environ["WORKER_QUEUE"], idle_timeout=100)
broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=5))
install(broker, abody.db)
keep = broker.register_task(abody.keep, task_name="shop.keep")


stubborn = broker.register_task(abody.stubborn, task_name="shop.stubborn", retry_on_error=True)
