import gc
import threading

import sqlalchemy as sa

from tenure.engines.ledger import Holding, Lease, Ledger

from support.models import User
from support.probe import line


class Holds:
    """A holder that says what it was told to."""

    def __init__(self, name):
        self.name = name

    def holding(self):
        return Holding(self.name, None, threading.main_thread(), "SELECT ?")


def is_spare(_lease):
    return False


class Connection:
    """As far as the ledger knows one: by its identity."""


def held(ledger, name):
    holder = Holds(name)
    lease = Lease(holder)
    ledger.enter(lease)
    ledger.connected(lease, Connection())
    return holder, lease


def test_entered_and_left():
    """R36: a lease is known from its entry until it is left, by its connection; leaving twice is no matter."""
    ledger = Ledger()
    _kept, lease = held(ledger, "a")

    assert len(ledger) == 1
    assert ledger.lease_on(lease.connection) is lease
    assert ledger.lease_on(Connection()) is None
    ledger.leave(lease)
    ledger.leave(lease)
    assert len(ledger) == 0
    assert ledger.lease_on(lease.connection) is None
    assert ledger.reports(is_spare) == []


def test_the_oldest_comes_first():
    """R37: the reports name each holder with its age, the oldest first, whatever the order of their entry."""
    ledger = Ledger()
    kept = [held(ledger, name) for name in "abc"]
    for (_, lease), age in zip(kept, (1, 3, 2), strict=True):
        lease.since -= age

    reports = ledger.reports(is_spare)
    assert [one.unit for one in reports] == ["b", "c", "a"]
    assert [int(one.age) for one in reports] == [3, 2, 1]
    assert reports[0][1:3] == ("an unknown line", "thread 'MainThread'")


def test_a_holder_that_is_gone():
    """R47: the ledger keeps no holder alive; the lease stays known, for whoever gives the connection back."""
    ledger = Ledger()
    lease = held(ledger, "a")[1]
    gc.collect()

    assert lease.holder() is None
    assert ledger.leases() == [lease]
    assert ledger.reports(is_spare) == []


async def test_what_a_holder_reports(face):
    """R37: a report names the unit, its line, who works in it, its last statement, and that nothing is running now."""
    async with face.unit(name="POST /users") as session:
        opened = line(-1)
        await session.execute(sa.update(User).values(balance=1))
        (report,) = face.db.holders()

    assert (report.unit, report.site, report.running) == ("POST /users", opened, False)
    assert report.statement.split() == ["UPDATE", "users", "SET", "balance=:balance"]
    assert report.owner.startswith("task " if face.is_async else "thread ")
    assert 0 <= report.age < 30
    assert face.db.holders() == []
