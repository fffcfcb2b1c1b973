"""The table in docs/reference/propagation.md, tried out row by row."""

import re
from pathlib import Path

import pytest
from sqlalchemy import select

from support.models import User
from support.servers import DRIVERS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "propagation.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| (nothing|a unit) \| ", line)
]


class OwnError(Exception):
    """What a part of the case fails with."""


class Case:
    """One row: runs it, and notes what can be seen."""

    def __init__(self, face, propagation, happens):
        self.face, self.propagation, self.happens = face, propagation, happens
        self.session, self.connections = "none", 0

    async def inner(self, outer=None):
        """The inner part; gives the name of what it raised."""
        try:
            async with self.face.unit(propagation=self.propagation) as session:
                self.session = "the outer's" if outer is not None and session.raw is outer.raw else "its own"
                session.add(User(name="inner"))
                await session.flush()
                self.connections = self.face.out()
                if self.happens.startswith("inner fails"):
                    raise OwnError
        except Exception as error:
            return "its error" if isinstance(error, OwnError) else type(error).__name__
        return "nothing"

    async def outer(self):
        """The outer unit around it; gives what both raised."""
        inner = ""
        try:
            async with self.face.unit() as session:
                await session.scalars(select(User))
                inner = await self.inner(session)
                session.add(User(name="outer"))
                if self.happens == "outer fails later":
                    raise OwnError
        except Exception as error:
            return inner, "its error" if isinstance(error, OwnError) else type(error).__name__
        return inner, "nothing"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(row[:3]))
async def test_the_row_is_true(make_face, driver, row):
    """R5: sessions, connections, rows and errors of nested units are those of one documented table."""
    around, propagation, happens, *expected = row
    face = make_face(isolation="READ COMMITTED" if DRIVERS[driver].dialect == "mysql" else None)
    case = Case(face, propagation, happens)

    if around == "a unit":
        inner, outer = await case.outer()
    else:
        inner, outer = await case.inner(), ""

    async with face.unit() as session:
        stored = ", ".join(sorted((await session.scalars(select(User.name))).all())) or "none"
    assert [case.session, str(case.connections), stored, inner, outer] == expected
    assert face.out() == 0


def test_the_table_is_read():
    """R5: the documented table has all five values, inside a unit and outside."""
    assert {(row[0], row[1]) for row in ROWS} == {
        (around, value) for around in ("nothing", "a unit") for value in ("required", "nested", "new", "never", "mandatory")
    }
