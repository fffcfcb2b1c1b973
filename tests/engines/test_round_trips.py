"""How many round trips units take: the table in docs/explanation/round-trips.md, counted row by row."""

import itertools
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.models import User

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "round-trips.md"
MYSQL = {"REPEATABLE READ": {}, "READ COMMITTED": {"isolation_level": "READ COMMITTED"}}
COLUMNS = {  # of the page, by driver: the heading, and how the Database is made
    "psycopg": {"psycopg": {}},
    "psycopg_async": {"psycopg": {}},
    "asyncpg": {"asyncpg": {}},
    "pymysql": MYSQL,
    "aiomysql": MYSQL,
    "asyncmy": MYSQL,
}
KEY = -1  # no key that the server gives
UPDATE = sa.update(User).where(User.id == KEY).values(balance=1)


def insert(count=1, times=1):
    """Store as many users, in as many flushes."""

    def work(session):
        for _ in range(times):
            session.add_all([User(name=f"{next(session.info['numbers'])}") for _ in range(count)])
            session.flush()

    return work


def change(session):
    session.get(User, KEY).balance += 1


def in_savepoint(session):
    with session.begin_nested():
        session.execute(UPDATE)


UNITS = {
    "nothing": (lambda s: s.in_transaction(), {}),
    "one read": (lambda s: s.get(User, KEY), {}),
    "three reads": (lambda s: [s.scalar(sa.select(User.name).where(User.id == n)) for n in (KEY, 1, 2)], {}),
    "one read, `readonly=True`": (lambda s: s.get(User, KEY), {"readonly": True}),
    '`text("SELECT …")`, `readonly=True`': (lambda s: s.execute(sa.text("SELECT 1")).all(), {"readonly": True}),
    "one write": (lambda s: s.execute(UPDATE), {}),
    "a read by key, then its change": (change, {}),
    "an insert of one object": (insert(), {}),
    "an insert of 100 objects": (insert(100), {}),
    "three flushes": (insert(times=3), {}),
    "one write, rolled back": (lambda s: (s.execute(UPDATE), s.rollback()), {}),
    "one write in a savepoint": (in_savepoint, {}),
    "`connection()`, one write on it": (lambda s: s.connection().execute(sa.update(User.__table__).values(balance=1)), {}),
    '`hold="transaction"`, one read': (lambda s: s.get(User, KEY), {"hold": "transaction"}),
    '`isolation="SERIALIZABLE"`, one write': (lambda s: s.execute(UPDATE), {"isolation": "SERIALIZABLE"}),
    "`settings={…}`, one read": (lambda s: s.get(User, KEY), {"settings": {"app.tenant": "7"}}),
    "`settings={…}`, one write": (lambda s: s.execute(UPDATE), {"settings": {"app.tenant": "7"}}),
}


def column(heading):
    """One column of the page: a number for each unit."""
    tables = re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.MULTILINE)
    for lines in ([[cell.strip() for cell in line.strip("|\n").split("|")] for line in one.splitlines()] for one in tables):
        if heading in lines[0]:
            place = lines[0].index(heading)
            return {line[0]: int(line[place]) for line in lines[2:] if line[place] != "-"}
    raise LookupError(heading)


async def counted(face, proxy, name, numbers):
    """The round trips of a warm unit: what it takes again and again."""
    work, options = UNITS[name]
    found = []
    for _ in range(10):  # psycopg prepares a statement when it is seen for the sixth time
        with proxy.count() as trips:
            async with face.unit(**options) as session:
                session.raw.info["numbers"] = numbers
                await session.run_sync(work)
        found.append(trips.number)
    assert len(set(found[-3:])) == 1, found
    return found[-1]


@pytest.mark.drivers(*COLUMNS)
async def test_the_table_is_what_is_counted(make_face, proxy, driver):
    """R32: a warm unit takes exactly the round trips that docs/explanation/round-trips.md says, one after another, no more."""
    numbers = itertools.count()
    for heading, options in COLUMNS[driver].items():
        face = make_face(through=proxy, **options)
        async with face.unit() as session:
            session.add(User(id=KEY, name="ada"))
        units = [name for name in UNITS if face.dialect == "postgresql" or "settings" not in name]
        found = {name: await counted(face, proxy, name, numbers) for name in units}
        async with face.unit() as session:
            await session.execute(sa.delete(User))

        assert found == column(heading)
