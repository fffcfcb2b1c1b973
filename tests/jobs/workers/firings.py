"""``python -m jobs.workers.firings KIND URL``: jobs under a scheduler of that kind; says in JSON what came of them."""

import sys

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()  # before anything else is imported

import datetime as dt
import json
import signal
import threading

from apscheduler import events as aps
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor

from tenure import AsyncDatabase, Database
from tenure.core import events
from tenure.jobs.apscheduler import in_units

from support.models import User

KIND, URL = sys.argv[1:3]
signal.alarm(45)  # should it stand still
db = (AsyncDatabase if KIND == "tornado_async" else Database)(URL, pool_size=4, max_overflow=0)
together, sessions, units = threading.Barrier(2, timeout=20), set(), []


def both(name):
    """Stores a row while the other firing of it has its session, too."""
    db.session.add(User(name=name))
    sessions.add(id(db.session))
    together.wait()


def fails(name):
    db.session.add(User(name=name))
    db.session.flush()
    raise LookupError(name)


async def stores_later(name):
    db.session.add(User(name=name))
    sessions.add(id(db.session))


async def fails_later(name):
    db.session.add(User(name=name))
    await db.session.flush()
    raise LookupError(name)


if KIND == "processes":  # what opens its unit by itself, wherever it runs

    @db.unit
    def kept(session, name):
        session.add(User(name=f"{name} {session.unit.name}"))

    @db.unit
    def dropped(session, name):
        session.add(User(name=name))
        session.flush()
        raise LookupError(name)


class Reader:
    def wants(self, kind):
        return kind is events.UnitClosed

    def __call__(self, event):
        units.append((event.unit, event.outcome.value))


def blocking():
    from apscheduler.schedulers.blocking import BlockingScheduler

    made = BlockingScheduler(executors={"default": in_units(ThreadPoolExecutor(4), db)}, timezone="UTC")
    return made, made.start, lambda: made.shutdown(wait=False)


def processes():
    from apscheduler.schedulers.blocking import BlockingScheduler

    made = BlockingScheduler(executors={"default": ProcessPoolExecutor(2)}, timezone="UTC")
    return made, made.start, lambda: made.shutdown(wait=False)


def gevent():
    from apscheduler.executors.gevent import GeventExecutor
    from apscheduler.schedulers.gevent import GeventScheduler

    made = GeventScheduler(executors={"default": in_units(GeventExecutor(), db)}, timezone="UTC")
    return made, lambda: made.start().join(), lambda: made.shutdown(wait=False)


def tornado():
    from apscheduler.executors.tornado import TornadoExecutor
    from apscheduler.schedulers.tornado import TornadoScheduler
    from tornado.ioloop import IOLoop

    loop = IOLoop()
    made = TornadoScheduler(io_loop=loop, executors={"default": in_units(TornadoExecutor(4), db)}, timezone="UTC")

    def run():
        made.start()
        loop.start()
        made.shutdown(wait=False)
        if KIND == "tornado_async":
            loop.asyncio_loop.run_until_complete(db.close())
        loop.close()

    return made, run, lambda: loop.add_callback(loop.stop)


tornado_async = tornado


def twisted():
    from apscheduler.executors.twisted import TwistedExecutor
    from apscheduler.schedulers.twisted import TwistedScheduler
    from twisted.internet import reactor

    made = TwistedScheduler(executors={"default": in_units(TwistedExecutor(), db)}, timezone="UTC")

    def run():
        made.start()
        reactor.run()

    return made, run, lambda: reactor.callFromThread(reactor.stop)


def main():
    made, run, stop = globals()[KIND]()
    ended = []

    def tell(event):
        ended.append(type(getattr(event, "exception", None)).__name__)
        if len(ended) == 3:
            stop()

    made.add_listener(tell, aps.EVENT_JOB_EXECUTED | aps.EVENT_JOB_ERROR)
    events.READERS.append(Reader())
    due = {"trigger": "date", "run_date": dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "misfire_grace_time": None}
    ways = {"tornado_async": lambda: (stores_later, fails_later), "processes": lambda: (kept, dropped)}
    stores, falls = ways.get(KIND, lambda: (both, fails))()
    for name in ("ada", "bob"):
        made.add_job(stores, args=[name], name=f"stores {name}", **due)
    made.add_job(falls, args=["eve"], name="fails", **due)
    run()
    found = {"ended": sorted(ended), "units": sorted(units), "sessions": len(sessions), "out": db.status().in_use}
    print(json.dumps(found))
    if KIND != "tornado_async":
        db.close()


if __name__ == "__main__":  # the processes of a pool import this file, too
    main()
