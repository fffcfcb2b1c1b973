"""Tenants kept apart by row security: docs/how-to/tenants.md, and what becomes of the setting however a unit ends."""

import asyncio
import contextlib
import io
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, select, text
from sqlalchemy.pool import NullPool

import tenure

from support.face import PATIENCE
from support.servers import DRIVERS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "tenants.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}

pytestmark = pytest.mark.dialects("postgresql")

invoices = sa.Table("invoices", sa.MetaData(), sa.Column("tenant", sa.Text), sa.Column("amount", sa.Integer))
SEEN = select(invoices.c.tenant).order_by(invoices.c.tenant)
SETTING = select(sa.func.current_setting("app.tenant", True))


@pytest.fixture
def page(url, monkeypatch):
    """What the page defines, run block by block up to a given one; its role and table are gone afterwards."""
    monkeypatch.setenv("DATABASE_URL", url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
    names = {}

    def run(blocks=None):
        said, shown = io.StringIO(), ""
        for source, output in BLOCK.findall(PAGE.read_text())[:blocks]:
            shown += output
            with contextlib.redirect_stdout(said):
                exec(compile(source, str(PAGE), "exec", dont_inherit=True), names)
        return said.getvalue(), shown

    yield run
    if "db" in names:
        names["db"].close()
    owner = sa.create_engine(url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS invoices"))
        connection.execute(text("DROP ROLE IF EXISTS shop_app"))


@pytest.mark.drivers("psycopg")
def test_the_page(page):
    """R60: the examples of the page print what it shows."""
    printed, shown = page()
    assert printed == shown


@pytest.fixture
def shop(page, url, watch, driver):
    """A face that connects as the application does, with one connection; each tenant has a row."""
    page(1)
    database = tenure.AsyncDatabase if DRIVERS[driver].is_async else tenure.Database
    face = watch(database(url.set(username="shop_app"), **ONE), driver)

    async def fill():
        for tenant in "ab":
            async with face.unit(settings={"app.tenant": tenant}) as session:
                await session.execute(insert(invoices).values(tenant=tenant, amount=1))

    face.run(fill())
    return face


async def _returns(face, session):
    pass


async def _raises(face, session):
    raise LookupError


async def _fails_in_the_database(face, session):
    await session.execute(text("SELECT 1 / 0"))


async def _is_killed(face, session):
    backend = await session.scalar(text("SELECT pg_backend_pid()"))
    owner = sa.create_engine(face.sync_engine.url.set(drivername="postgresql+psycopg", username="postgres"), poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend({backend}, 5000)"))
    await session.execute(SEEN)


async def _is_cancelled(face, session):
    if not face.is_async:
        raise KeyboardInterrupt
    asyncio.current_task().cancel()
    await session.execute(text("SELECT pg_sleep(10)"))


@pytest.mark.parametrize("ends", [_returns, _raises, _fails_in_the_database, _is_killed, _is_cancelled])
async def test_nobody_else_sees_the_setting(shop, ends):
    """R60: A commits midway, reads, and ends; its late read had A's setting, and neither B nor a unit without settings saw it."""
    late = []

    async def a():
        async with shop.unit(settings={"app.tenant": "a"}) as session:
            await session.execute(insert(invoices).values(tenant="a", amount=2))
            await session.commit()
            late.append((await session.scalar(SETTING), (await session.scalars(SEEN)).all()))
            await ends(shop, session)

    if ends is _returns:
        await a()
    else:
        with contextlib.suppress(LookupError, sa.exc.DBAPIError, KeyboardInterrupt, asyncio.CancelledError):
            await asyncio.wait_for(asyncio.ensure_future(a()), PATIENCE) if shop.is_async else await a()
    async with shop.unit(settings={"app.tenant": "b"}) as session:
        b = await session.scalar(SETTING), (await session.scalars(SEEN)).all()
    async with shop.unit() as session:
        nobody = [(await session.scalars(SEEN)).all(), await session.scalar(SETTING) or ""]
        nobody += [(await session.scalars(SEEN.with_for_update())).all(), await session.scalar(SETTING) or ""]

    assert late == [("a", ["a", "a"])]
    assert b == ("b", ["b"])
    assert nobody == [[], "", [], ""]
    assert shop.out() == 0


async def test_a_tenant_writes_no_row_of_another(shop):
    """R60: the policy refuses it, which needs a role that no policy passes by."""
    async with shop.unit() as session:
        assert await session.scalar(text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")) is False
    with pytest.raises(sa.exc.DBAPIError, match="row-level security"):
        async with shop.unit(settings={"app.tenant": "b"}) as session:
            await session.execute(insert(invoices).values(tenant="a", amount=3))
