"""What a type checker must not let pass. Each line is expected to be an error; an unused `ignore` is one too."""

import falcon
from sqlalchemy.orm import Session

from tenure import AsyncDatabase, Database
from tenure.web.falcon import in_units

db = Database("sqlite:///app.db")
aio = AsyncDatabase("sqlite+aiosqlite:///app.db")


@db.unit
def rename(session: Session, person_id: int, name: str) -> bool:
    return session.info == {person_id: name}


rename("one", "ada")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
rename(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
db.unit(propagation="nestled")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
db.unit(patience=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
Database("sqlite://", hold="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Database("sqlite://", guards={"unit-ended": "on"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]


@aio.unit  # type: ignore[type-var, arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
def plain(number: int) -> int:
    return number


with aio.unit() as session:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues, reportAttributeAccessIssue]
    ...

in_units(falcon.App(), aio)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
