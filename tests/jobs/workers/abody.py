"""As body.py, for runners on an event loop."""

import asyncio
import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import select

from jobs.workers.body import say, third
from tenure import AsyncDatabase

from support.models import User

url = sa.make_url(os.environ["WORKER_DATABASE"]).set(drivername="postgresql+asyncpg")
db = AsyncDatabase(
    url.difference_update_query(["application_name"]),
    connect_args={"server_settings": {"application_name": url.query["application_name"]}},
    pool_size=4,
    max_overflow=0,
)


async def _stay(where):
    say(where, os.getpid())
    await asyncio.sleep(60)


async def keep(name, where="", marker=""):
    """Store a row for this run; the first one stays *where*, ``before`` or ``after`` the COMMIT, for ever."""
    session = db.session
    first = bool(marker) and not Path(marker).exists()
    if first:
        Path(marker).touch()
    number = len((await session.scalars(select(User.name).where(User.name.startswith(name)))).all())
    session.add(User(name=f"{name} {number}"))
    await session.flush()
    if first and where == "after":
        db.on_commit(_stay, where)
    elif first and where == "before":
        await _stay(where)
    elif first:
        say(where, os.getpid())
    db.on_commit(say, "stored", name, os.getpid(), db.current.name)


async def stubborn(name, file):
    """Store a row, and fail, but for the third run."""
    await keep(name)
    third(file)
