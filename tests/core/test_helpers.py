"""A unit's own helpers: threads and tasks that work in it while its owner waits."""

import pytest
import sqlalchemy as sa
from sqlalchemy import select

from tenure.core.events import UnitLeaked

from support.models import User
from support.probe import stored

pytestmark = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg", "psycopg_async")


async def test_a_helper_that_has_ended_takes_nothing_with_it(make_face, told):
    """R47: a unit is its opener's for as long as that lives; who waits for its connection may not take it for a leak."""
    face = make_face(pool_size=1, max_overflow=0, pool_timeout=0.1)

    async def helper():
        face.session.add(User(name="ada"))
        await face.session.flush()

    async def other():
        async with face.unit() as session:
            return await session.scalar(select(User.name))

    async with face.unit() as session:
        await face.spawn(helper, inherit=True)
        (error,) = await face.spawn(other, inherit=False, return_exceptions=True)
        assert isinstance(error, sa.exc.TimeoutError)
        session.add(User(name="bob"))

    assert (stored(face), told.of(UnitLeaked), face.out()) == (["ada", "bob"], [], 0)
