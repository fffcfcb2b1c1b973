"""``python units.py gevent URL``: 50 greenlets on a pool of 5, some of them killed; says in JSON what came of it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from patched import Timeout, sleep, spawn, wait_for  # isort: skip - before anything else is imported

import itertools
import json
import logging
import signal

from sqlalchemy import event, text

from tenure import Database
from tenure.exceptions import NoUnit

signal.alarm(45)  # should it stand still
logging.basicConfig(stream=sys.stderr)
db = Database(sys.argv[2], pool_size=5, max_overflow=0)
POSTGRESQL = sys.argv[2].startswith("postgresql")
SLEEP = "SELECT pg_sleep({})" if POSTGRESQL else "SELECT SLEEP({})"
ME = "SELECT pg_backend_pid()" if POSTGRESQL else "SELECT connection_id()"
numbers, sessions, backends, foreign, killed = itertools.count(), {}, {}, [], []


def insert(session, name):
    name = name if name.startswith("u") else f"{name} {next(numbers)}"
    session.execute(text("INSERT INTO users (name, balance) VALUES (:name, 0)"), {"name": name})
    return session.scalar(text(ME))


def work(number):
    with db.unit(name=f"work {number}") as session:
        backends[number] = insert(session, f"u{number}")
        if backends[number] in killed:
            foreign.append(number)
        sessions[number] = session
        session.execute(text(SLEEP.format(30 if number % 5 == 0 else 0.02)))
        if db.session is not session or db.current.name != f"work {number}":
            foreign.append(number)


def tick():
    while True:
        ticks.append(1)
        sleep(0.01)


greenlets = [spawn(work, number) for number in range(50)]
ticks = []
ticking = spawn(tick)
victims = set(range(0, 50, 5))
while victims:
    sleep(0.005)
    for number in [one for one in victims if one in sessions]:  # it is in its last query
        victims.remove(number)
        killed.append(backends[number])
        greenlets[number].kill()
wait_for(greenlets)
ticking.kill()
found = {"ticks": len(ticks), "foreign": foreign, "sessions": len({id(one) for one in sessions.values()})}
found["after kills"] = [db.status().in_use, db.status().discarded, db.status().waiting]
with db.unit() as session:
    names = session.scalars(text("SELECT name FROM users")).all()
    found["stored"] = [len(names), [one for one in names if int(one[1:]) % 5 == 0]]


def timed_out():
    try:
        with Timeout(0.05), db.unit() as session:
            insert(session, "late")
            session.execute(text(SLEEP.format(30)))
    except Timeout as error:
        found["timeout"] = [error.tenure_outcome.value, error.__notes__[-1]]


def hold():
    with db.unit() as session:
        insert(session, "holder")
        session.execute(text(SLEEP.format(30)))


def in_commit():
    with db.unit() as session:
        insert(session, "in commit")
        event.listen(db.engine, "commit", lambda _: sleep(30), once=True)


wait_for([spawn(timed_out)])
holders = [spawn(hold) for _ in range(5)]
while sum(one.running for one in db.holders()) < 5:
    sleep(0.005)
found["holder"] = db.holders()[0].owner
found["line"] = db.holders()[0].site
queued = spawn(work, 1)
while not db.status().waiting:
    sleep(0.005)
queued.kill()
for one in holders:
    one.kill()
wait_for([queued, *holders])
committing = spawn(in_commit)
sleep(0.1)
committing.kill()
wait_for([committing])


def abandoned():
    left.append(db.unit())
    insert(left[-1].__enter__(), "abandoned")


left = []
wait_for([spawn(abandoned) for _ in range(5)])
with db.unit() as session:  # all five are out, their greenlets dead
    found["late"] = session.scalar(text("SELECT count(*) FROM users WHERE name NOT LIKE 'u%'"))
left.clear()
status = db.status()
found["end"] = [status.in_use, status.waiting, status.cancelled, status.leaked, len(db.holders()), len(db.units.now())]
try:
    db.session  # noqa: B018
except NoUnit as error:
    found["no unit"] = str(error)
print(json.dumps(found))
