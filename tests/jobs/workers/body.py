"""What the jobs of all runners do, in a worker's process: write a row, say how far they are, and wait to be killed where they are told to."""

import io
import os
import threading
from pathlib import Path

from sqlalchemy import select, text

from tenure import Database

from support.models import User

OUT = io.FileIO(1, "w", closefd=False)  # unlike os.write(), eventlet lets it be
db = Database(os.environ["WORKER_DATABASE"], pool_size=4, max_overflow=0)

with db.unit() as opened:  # at import, as programs do: the processes of a worker that are forked later inherit the pool
    opened.scalars(select(User.id)).all()


def say(*words):
    """One line on the standard output of the worker, whatever the runner has made of ``sys.stdout``."""
    OUT.write((" ".join(map(str, words)) + "\n").encode())


def _stay(where):
    say(where, os.getpid())
    threading.Event().wait(60)


def keep(name, where="", marker=""):
    """Store a row for this run; the first one stays *where*, ``before`` or ``after`` the COMMIT, for ever."""
    session = db.session
    first = bool(marker) and not Path(marker).exists()
    if first:
        Path(marker).touch()
    number = len(session.scalars(select(User.name).where(User.name.startswith(name))).all())
    session.add(User(name=f"{name} {number}"))
    session.flush()
    if first and where == "after":
        db.on_commit(_stay, where)
    elif first and where == "before":
        _stay(where)
    elif first:
        say(where, os.getpid())
    db.on_commit(say, "stored", name, os.getpid(), db.current.name)


def fall(name):
    """Store a row, wait until the test lets it go on, and fail."""
    db.session.add(User(name=name))
    db.session.flush()
    say("falls", os.getpid())
    db.session.execute(text("SELECT pg_advisory_xact_lock_shared(4711)"))  # which ``slow_commit`` has
    raise LookupError(name)


def stubborn(name, file):
    """Store a row, and fail, but for the third run."""
    keep(name)
    third(file)


def third(file):
    """Raise, but at the third call with this *file*."""
    with Path(file).open("a") as runs:
        runs.write(".")
    if Path(file).stat().st_size < 3:
        raise LookupError(file)
