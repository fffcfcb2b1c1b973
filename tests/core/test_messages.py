"""What the errors and warnings of tenure say. How each is provoked stands in support/provocations.py."""

import importlib
import logging
import pkgutil
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

import tenure
from tenure import callsite
from tenure.core.options import GUARDS
from tenure.exceptions import TenureError

from support import provocations
from support.models import User
from support.provocations import ELSEWHERE, PROVOCATIONS, VALUE, provoke
from support.servers import DRIVERS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "tenure").rglob("*.py"))
HERE = Path(provocations.__file__).name
PASSWORD = "s3cret"

pytestmark = pytest.mark.drivers("sqlite", "aiosqlite", "psycopg", "asyncpg")


def subclasses(kind):
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def all_slugs():
    """Those of every subclass of TenureError, of the guards, and of every message that the source writes."""
    for found in pkgutil.walk_packages(tenure.__path__, "tenure."):
        try:
            importlib.import_module(found.name)
        except ImportError:  # an adapter whose framework is not installed; errors are defined in tenure.exceptions
            continue
    written = {slug for path in SOURCES for slug in re.findall(r" \[([a-z]+(?:-[a-z]+)*)\]\"", path.read_text())}
    return {one.slug for one in subclasses(TenureError)} | set(GUARDS) | written


def headings():
    return set(re.findall(r"^## ([a-z-]+)$", (ROOT / "docs" / "reference" / "messages.md").read_text(), re.MULTILINE))


def test_every_message_is_provoked():
    """R50: there is no error and no warning which is not provoked, here or by a test that is named."""
    known = [*PROVOCATIONS, *ELSEWHERE]

    assert sorted(known) == sorted(all_slugs()), "write a provocation in tests/support/provocations.py"


def test_what_is_provoked_elsewhere_is():
    """R50: a test that is to provoke a message is there, and its file looks at the message or its class."""
    classes = {one.slug: one.__name__ for one in subclasses(TenureError)}
    for slug, named in ELSEWHERE.items():
        path, _, test = named.partition("::")
        source = (ROOT / path).read_text()

        assert re.search(rf"^ *(async )?def {test}\(", source, re.MULTILINE), named
        assert f"[{slug}]" in source or re.search(rf"\b{classes.get(slug, slug)}\b", source), named


@pytest.fixture
def apt(url, watch, driver):
    """A face with a pool of one connection, and a password that PostgreSQL does not ask for, on which the slug can be provoked."""

    def make(slug):
        database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
        address = url if url.get_backend_name() == "sqlite" else url.set(password=PASSWORD)
        face = watch(database(address, pool_size=1, max_overflow=0, pool_timeout=2), driver)
        provoked = PROVOCATIONS[slug]
        if face.dialect not in provoked.dialects or ("async" if face.is_async else "sync") not in provoked.faces:
            pytest.skip("cannot be provoked here")
        return face

    return make


@pytest.mark.parametrize("slug", sorted(PROVOCATIONS))
async def test_a_message_shows_the_users_line_and_its_page(apt, caplog, slug):
    """R50: each error and warning shows a line of the code that caused it, none of tenure's, and ends with a slug that has a page."""
    provoked = PROVOCATIONS[slug]
    error, said = await provoke(provoked, apt(slug), caplog.records)

    shown = re.findall(r"\b(\w+\.py):(\d+)", said)
    raised = [] if error is None else [callsite.of_error(error)[1]]
    lines = raised if provoked.names_no_line else [int(line) for _, line in shown]
    assert not isinstance(error, TenureError) or error.slug == slug
    assert re.search(rf" \[{slug}\]$", said), said
    assert slug in headings()
    assert any(line in provoked.lines() for line in lines), said
    assert {file for file, _ in shown} <= {HERE}, said
    assert "unknown line" not in said


def test_no_message_is_provoked_for_nothing():
    """R50: the test above fails for a message that does not show a line of its provocation."""
    assert all(1 < len(one.lines()) < 40 for one in PROVOCATIONS.values())


@pytest.mark.parametrize("slug", sorted(PROVOCATIONS))
async def test_a_message_shows_no_value_and_no_password(apt, caplog, slug):
    """R58: no error, no note and no line of the log, at DEBUG too, shows the URL's password or a value of a statement."""
    caplog.set_level(logging.DEBUG, "tenure")
    error, said = await provoke(PROVOCATIONS[slug], apt(slug), caplog.records)

    told = [said, *getattr(error, "__notes__", [])]
    if isinstance(error, TenureError):
        told += [repr(error), str(vars(error))]
    told += [logging.Formatter().format(record) for record in caplog.records if record.name == "tenure"]
    assert [text for text in told if VALUE in text or PASSWORD in text] == []


STATEMENTS = {
    "a parameter": select(User.id).where(User.name == VALUE).with_for_update(),
    "a literal": text(f"UPDATE users SET balance = 815 WHERE name = '{VALUE}'"),
    "a parameter of text": text("UPDATE users SET balance = 815 WHERE name = :name").bindparams(name=VALUE),
    "a literal column": select(sa.literal_column(f"'{VALUE}'")).with_for_update().select_from(User),
    "a literal bind": text(
        str(sa.update(User).where(User.name == VALUE).values(balance=815).compile(compile_kwargs={"literal_binds": True}))
    ),
    "a literal when executed": sa.update(User)
    .where(User.name == sa.bindparam("name", VALUE, literal_execute=True))
    .values(balance=815),
    "a list": sa.update(User).where(User.name.in_([VALUE])).values(balance=815),
    "a comment": text(f"UPDATE users SET balance = 0 /* {VALUE} */"),
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_what_is_shown_of_a_holder(apt, name):
    """R58: nothing that a database, a unit, a lease or a report of a holder shows of itself holds the password or a value."""
    face = apt("no-unit")
    async with face.unit() as session:
        await session.execute(STATEMENTS[name])
        held = face.db.holders()[0]._replace(age=0.0)  # whose digits may be anything
        (lease,) = face.db.supply.ledger.leases()
        shown = [repr(one) for one in (face.db, face.db.supply, face.current, lease, held, face.db.status(), session.raw)]

    assert held.statement.split()[0] in ("SELECT", "UPDATE")
    assert "users" in held.statement
    assert [
        one for one in [*shown, *map(str, held)] if VALUE in one or PASSWORD in one or "815" in one.partition(" at 0x")[0]
    ] == []
