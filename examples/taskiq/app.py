"""taskiq on streams of Redis: ``taskiq worker examples.taskiq.app:broker``, and ``python -m examples.taskiq.app bread milk``."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisStreamBroker

from examples import mailing
from examples.mailing import Letter, Order
from tenure import AsyncDatabase
from tenure.jobs.taskiq import install

broker = RedisStreamBroker(mailing.broker("redis://127.0.0.1"), queue_name=mailing.QUEUE)
db = AsyncDatabase(mailing.DATABASE.replace("sqlite:", "sqlite+aiosqlite:"))
install(broker, db)


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close(_: TaskiqState) -> None:
    await db.close()


@broker.task(task_name="write")  # this module is __main__ where orders are placed, and the worker knows it by another name
async def write(order_id: int) -> None:
    session = db.session
    if await session.get(Letter, order_id) is None:
        order = await session.get_one(Order, order_id)
        session.add(Letter(order_id=order_id, text=f"Your {order.item} is on its way."))


@db.unit
async def place(session: AsyncSession, item: str) -> None:
    order = Order(item=item)
    session.add(order)
    await session.flush()
    db.on_commit(write.kiq, order.id)  # the worker finds the order


async def main() -> None:
    await broker.startup()
    async with db.engine.begin() as connection:
        await connection.run_sync(mailing.Base.metadata.create_all)
    for item in mailing.ITEMS:
        await place(item)
    await broker.shutdown()
    await db.close()


if __name__ == "__main__":
    asyncio.run(main())
