"""A program for threads, as its author's type checker sees it."""

import threading
from collections.abc import Mapping
from typing import assert_type

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tenure import Database, Retry, Unit
from tenure.exceptions import RollbackOnly, TenureError


class Base(DeclarativeBase): ...


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


db = Database(
    "sqlite:///app.db", name="main", pool_size=5, guards={"foreign-context": "warn"}, session_options={"autoflush": False}
)
other = Database(create_engine("sqlite://"), hold="transaction", isolation="SERIALIZABLE", guards="off")
assert_type(db.engine, Engine)


# ---------------------------------------------------------------------------------------- blocks

with db.unit() as session:
    assert_type(session, Session)
    session.add(Person(name="ada"))

with db.unit as session:
    assert_type(session, Session)

settings: Mapping[str, str | int | float | bool] = {"app.tenant": 7}
with db.unit(
    readonly=True, propagation="nested", isolation="READ COMMITTED", hold="auto", settings=settings, name="report"
) as session:
    assert_type(session.scalars(select(Person)).all()[0].name, str)


# ---------------------------------------------------------------------------- decorated functions


@db.unit
def rename(session: Session, person_id: int, name: str) -> bool:
    person = session.get(Person, person_id)
    if person is None:
        return False
    person.name = name
    return True


assert_type(rename(1, "ada"), bool)
assert_type(rename(1, name="ada"), bool)


@db.unit(retry=3, isolation="SERIALIZABLE")
def transfer(session: Session, source: int, target: int, *, amount: int = 1) -> None: ...


transfer(1, 2)
transfer(1, 2, amount=5)


@db.unit(retry=Retry(attempts=5, first=0.1))
def names(*, session: Session, limit: int = 10) -> list[str]:
    return list(session.scalars(select(Person.name).limit(limit)))


assert_type(names(limit=5), list[str])
assert_type(names(), list[str])


@db.unit
def count() -> int:
    return len(db.session.scalars(select(Person)).all())


assert_type(count(), int)


# ------------------------------------------------------------------------------------------ methods


class Service:
    @db.unit
    def add(self, session: Session, name: str) -> Person:
        person = Person(name=name)
        session.add(person)
        return person

    @db.unit(readonly=True)
    def find(self, session: Session, name: str) -> Person | None:
        return session.scalar(select(Person).where(Person.name == name))

    @db.unit
    def count(self, *, session: Session) -> int:
        return len(session.scalars(select(Person)).all())


service = Service()
assert_type(service.add("ada"), Person)
assert_type(service.find(name="ada"), Person | None)
assert_type(service.count(), int)


# ------------------------------------------------------------------------------ the unit, and the rest

assert_type(db.session, Session)
assert_type(db.current, Unit)
assert_type(db.current.session, Session)
db.current.release()
db.current.rollback_only("a dry run")
db.current.on_commit(print, "stored", flush=True)
db.on_commit(print, "stored")
db.on_rollback(rename, 1, "ada")

thread = threading.Thread(target=db.unit(count))

try:
    count()
except RollbackOnly as error:
    assert_type(error.slug, str)
except TenureError as error:
    assert_type(error.message, str)

assert_type(db.status().in_use, int)
assert_type(db.status().capacity, int | None)
for holder in db.holders():
    assert_type(holder.unit, str)
    assert_type(holder.age, float)
db.close()
