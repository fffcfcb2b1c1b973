"""A program for asyncio, as its author's type checker sees it."""

import asyncio
from typing import assert_type

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import AsyncDatabase, AsyncUnit, Retry


class Base(DeclarativeBase): ...


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


db = AsyncDatabase("sqlite+aiosqlite:///app.db", pool_size=5, finish_within=2.5)
other = AsyncDatabase(create_async_engine("sqlite+aiosqlite://"), name="other")
assert_type(db.engine, AsyncEngine)


@db.unit
async def rename(session: AsyncSession, person_id: int, name: str) -> bool:
    person = await session.get(Person, person_id)
    if person is None:
        return False
    person.name = name
    return True


@db.unit(retry=Retry(attempts=2), readonly=True)
async def names(*, session: AsyncSession, limit: int = 10) -> list[str]:
    return list(await session.scalars(select(Person.name).limit(limit)))


class Service:
    @db.unit
    async def add(self, session: AsyncSession, name: str) -> Person:
        person = Person(name=name)
        session.add(person)
        return person


async def send_mail(address: str) -> None: ...


async def main() -> None:
    async with db.unit(name="main") as session:
        assert_type(session, AsyncSession)
        assert_type((await session.scalars(select(Person))).all()[0].name, str)

    assert_type(await rename(1, "ada"), bool)
    assert_type(await names(limit=5), list[str])
    assert_type(await Service().add("ada"), Person)
    task = asyncio.create_task(rename(1, name="ada"))
    assert_type(await task, bool)
    async with asyncio.TaskGroup() as group:
        listing = group.create_task(names())
    assert_type(listing.result(), list[str])
    both = await asyncio.gather(names(), rename(1, "ada"))
    assert_type(both, tuple[list[str], bool])

    assert_type(db.session, AsyncSession)
    assert_type(db.current, AsyncUnit)
    await db.current.release()
    db.on_commit(send_mail, "ada@example.org")
    db.current.on_rollback(print, "not stored")
    assert_type(db.status().in_use, int)
    await db.close()
