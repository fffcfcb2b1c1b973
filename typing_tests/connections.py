"""What a program says about connections, as its author's type checker sees it."""

from typing import assert_type

from sqlalchemy import text
from sqlalchemy.orm import Session

from tenure import Admission, AsyncDatabase, Database, Limits
from tenure.exceptions import CommitUnknown, DeadlineExceeded, Overloaded, PoolExhausted

db = Database(
    "postgresql+psycopg://app@db/app",
    admission=Admission(max_waiting=40, max_wait=2.0, target=None),
    limits=Limits(idle=10.0),
    liveness=30.0,
    pooler="pgbouncer",
)
adb = AsyncDatabase(
    "postgresql+asyncpg://app@db/app", admission=Admission(max_wait=1.5), replicas=["postgresql+asyncpg://app@copy/app"]
)


@db.unit(timeout=1.5, verify_commit=True)
def pay(session: Session, amount: int) -> int:
    session.execute(text("UPDATE accounts SET balance = balance - :amount"), {"amount": amount})
    return amount


def careful(amount: int) -> float:
    try:
        assert_type(pay(amount), int)
    except Overloaded as error:
        return assert_type(error.retry_after, float)
    except PoolExhausted as error:
        print(assert_type(error.verdict, str))
    except (DeadlineExceeded, CommitUnknown) as error:
        print(error.message)
    return 0.0


def watch() -> None:
    status = db.status()
    assert_type(status.waiting, int)
    assert_type(status.capacity, int | None)
    for holder in db.holders():
        assert_type(holder.takeable, bool)
    print(db.drain(5.0).stuck)


async def leave() -> None:
    async with adb.unit(readonly=True, timeout=0.5) as session:
        await session.execute(text("SELECT 1"))
    await adb.drain(5.0)
