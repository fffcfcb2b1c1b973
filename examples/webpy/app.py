"""A market on web.py: the whole of tenure in a small application.

    python -m examples.webpy.app sqlite:///market.db 8080

and open http://127.0.0.1:8080/. Ctrl-C or SIGTERM closes it, within ``MARKET_GRACE`` seconds, by default 8.
`make demo` drives it with 24 clients and takes account.

=============  ==========================================================================================================
``models.py``  accounts, payments, orders: declarative models, and what it means to pay
``shop.py``    the pages and the JSON; ``def GET(self, session)``
``jobs.py``    three scheduled jobs, and a courier who is a plain thread
``app.py``     puts them together: the one place that knows the ``Database``
=============  ==========================================================================================================

Look for what is *not* there: no ``sessionmaker``, no ``commit()``, no ``rollback()``, no ``session.close()``. Requests, jobs and
the thread are units of work of one ``Database``. Each begins at its first use of the database, ends once, and holds one of the
five connections only while it needs one, so that ten request threads, four job threads and the courier get along on them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import closing
from typing import Any

import web
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from examples.webpy import jobs, models, shop
from tenure import Database
from tenure.core.drain import Drained
from tenure.jobs.apscheduler import in_units
from tenure.web.webpy import processor

web.config.debug = False
GRACE = float(os.environ.get("MARKET_GRACE", "8"))


class Market:
    """The pages, the jobs and the courier, on one ``Database``."""

    def __init__(self, url: str) -> None:
        self.db = db = Database(url, pool_size=5, max_overflow=0)
        models.Base.metadata.create_all(db.engine)
        db.unit(models.open_accounts)()

        self.app = web.application(shop.urls, vars(shop), autoreload=False)
        self.app.add_processor(processor(db))
        self.app.add_processor(web.loadhook(lambda: web.ctx.update(db=db, courier=self.courier)))
        self.app.internalerror = shop.problem

        self.courier = jobs.Courier(db)
        self.scheduler = BackgroundScheduler(timezone="UTC", executors={"default": in_units(ThreadPoolExecutor(4), db)})
        for job in (jobs.solidarity, jobs.report, jobs.rates):
            self.scheduler.add_job(job, "interval", args=[db], seconds=0.2, id=job.__name__, max_instances=3)

    def serve(self, port: int = 0) -> Drained:
        """Serve until SIGTERM or Ctrl-C, on a free port if none is given. Gives back what did not come to its end by itself."""
        asked_to_stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked_to_stop.set())
        server: Any = web.httpserver.WSGIServer(("127.0.0.1", port), self.app.wsgifunc())  # web.py's own
        server.request_queue_size = 128  # who may wait to be accepted; more than that, by default 5, are refused for a second
        server.prepare()
        print("http://{}:{}/".format(*server.bind_addr), flush=True)
        self.courier.start()
        self.scheduler.start()
        threading.Thread(target=server.serve, name="web").start()

        asked_to_stop.wait()
        ending = threading.Thread(target=self._end, args=(server,), daemon=True)  # a request that is stuck would keep it for ever
        ending.start()
        ending.join(GRACE / 2)
        return self.db.drain(GRACE / 2)

    def _end(self, server: Any) -> None:
        server.stop()  # requests under way are answered
        self.scheduler.shutdown()  # jobs under way end
        self.courier.finish()


def main(url: str = os.environ.get("MARKET_DATABASE", "sqlite:///market.db"), port: str = "0") -> None:
    market = Market(url)
    with closing(market.db):
        drained = market.serve(int(port))
    leave(drained)


def leave(drained: Drained) -> None:
    """Python would wait for threads that are stuck."""
    if drained.stuck:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
