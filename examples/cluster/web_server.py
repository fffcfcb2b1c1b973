"""gunicorn's configuration: ``gunicorn -c python:examples.cluster.web_server examples.cluster.web:app``."""

from __future__ import annotations

from typing import Any

from examples.cluster import settings

bind = f"fd://{settings.SOCKET}"
worker_class = "gthread"
workers = settings.ROLES["web"].processes
threads = 6
graceful_timeout = 8
loglevel = "warning"
control_socket_disable = True  # from gunicorn 25.1 on; it would be the same for both nodes


def post_worker_init(_worker: Any) -> None:
    from examples.cluster import ledger

    ledger.note("up")


def worker_exit(_server: Any, _worker: Any) -> None:
    from examples.cluster import shop

    shop.leave()
