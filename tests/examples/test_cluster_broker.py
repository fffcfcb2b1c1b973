"""The cluster example's own RabbitMQ: started on free ports, killed, started again, and gone at the end."""

import kombu
import pytest

from examples.cluster import broker as brokers

from support import servers
from support.workers import told_of


@pytest.fixture
def own(tmp_path):
    if brokers.installed() is None:
        remedy = "Install it (Debian: apt-get install rabbitmq-server)."
        servers.give_up(servers.ServerMissingError("RabbitMQ", "the program rabbitmq-server is not installed", remedy))
    with brokers.broker("own", tmp_path / "rabbitmq") as found:
        yield found
    assert told_of(tmp_path) == []


def test_what_it_has_confirmed_outlives_it(own):
    """R27: a message that RabbitMQ has confirmed is there after SIGKILL, so the outbox may take it for sent."""
    with kombu.Connection(own.url, transport_options={"confirm_publish": True}) as connection:
        queue = connection.SimpleQueue("receipts")
        queue.put({"order": 1})
        queue.close()
    own.program.kill()
    assert own.trouble()
    own.program.start()

    assert own.waiting("receipts") == 1
    own.drop("receipts")
