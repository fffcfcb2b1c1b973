"""The same pieces of work in asyncio, as far as a library has them there."""

from __future__ import annotations

import asyncio
from typing import Any

from advanced_alchemy.config import SQLAlchemyAsyncConfig
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from benchmarks.models import KEY, User
from tenure import AsyncDatabase

BASE = "async with AsyncSession(engine)"
TENURE = "tenure: async with db.unit()"


class AsyncPeer:
    """One variant in asyncio."""

    engine: AsyncEngine

    def __init__(self, url: URL) -> None:
        raise NotImplementedError

    async def nothing(self) -> None:
        raise NotImplementedError

    async def read(self) -> None:
        raise NotImplementedError

    async def insert(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self.engine.dispose()


class Plain(AsyncPeer):
    def __init__(self, url: URL) -> None:
        self.engine = create_async_engine(url)

    async def nothing(self) -> None:
        async with AsyncSession(self.engine):
            pass

    async def read(self) -> None:
        async with AsyncSession(self.engine) as session:
            await session.get(User, KEY)

    async def insert(self) -> None:
        async with AsyncSession(self.engine) as session:
            session.add(User(name="new"))
            await session.commit()


class Begun(AsyncPeer):
    def __init__(self, url: URL) -> None:
        self.engine = create_async_engine(url)
        self.make = async_sessionmaker(self.engine)

    async def nothing(self) -> None:
        async with self.make.begin():
            pass

    async def read(self) -> None:
        async with self.make.begin() as session:
            await session.get(User, KEY)

    async def insert(self) -> None:
        async with self.make.begin() as session:
            session.add(User(name="new"))


class Scoped(AsyncPeer):
    def __init__(self, url: URL) -> None:
        self.engine = create_async_engine(url)
        self.session = async_scoped_session(async_sessionmaker(self.engine), scopefunc=asyncio.current_task)

    async def nothing(self) -> None:
        self.session()
        await self.session.remove()

    async def read(self) -> None:
        await self.session.get(User, KEY)
        await self.session.remove()

    async def insert(self) -> None:
        self.session.add(User(name="new"))
        await self.session.commit()
        await self.session.remove()


class AdvancedAlchemy(AsyncPeer):
    def __init__(self, url: URL) -> None:
        self.config = SQLAlchemyAsyncConfig(connection_string=url.render_as_string(hide_password=False))
        self.engine = self.config.get_engine()

    async def nothing(self) -> None:
        async with self.config.get_session():
            pass

    async def read(self) -> None:
        async with self.config.get_session() as session:
            await session.get(User, KEY)

    async def insert(self) -> None:
        async with self.config.get_session() as session:
            session.add(User(name="new"))
            await session.commit()


class Tenure(AsyncPeer):
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, url: URL) -> None:
        self.db = AsyncDatabase(url, **self.options)
        self.engine = self.db.engine

    async def nothing(self) -> None:
        async with self.db.unit():
            pass

    async def read(self) -> None:
        async with self.db.unit() as session:
            await session.get(User, KEY)

    async def insert(self) -> None:
        async with self.db.unit() as session:
            session.add(User(name="new"))

    async def close(self) -> None:
        await self.db.close()


class TenureDecorated(Tenure):
    def __init__(self, url: URL) -> None:
        super().__init__(url)

        async def nothing(session: AsyncSession) -> None:
            pass

        async def read(session: AsyncSession) -> None:
            await session.get(User, KEY)

        async def insert(session: AsyncSession) -> None:
            session.add(User(name="new"))

        for function in (nothing, read, insert):
            setattr(self, function.__name__, self.db.unit(function))


PEERS: dict[str, type[AsyncPeer]] = {
    BASE: Plain,
    TENURE: Tenure,
    "tenure: @db.unit": TenureDecorated,
    "async with async_sessionmaker.begin()": Begun,
    "async_scoped_session + remove()": Scoped,
    "advanced-alchemy": AdvancedAlchemy,
}
