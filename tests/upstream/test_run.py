"""The judgement of `make upstream`; the run itself is too long for `make test`."""

import pytest

from upstream import orm_suite, run
from upstream.orm_suite import Result
from upstream.run import Verdict


def _result(**changes) -> Result:
    given = {"passed": frozenset(["p"]), "failed": {"f": "Traceback"}, "skipped": 0, "swapped": 5, "left": 1}
    return Result(**{**given, **changes})


@pytest.mark.parametrize(
    ("result", "listed", "verdict", "good"),
    [
        (_result(), {"f": "why"}, Verdict([], [], []), True),
        (_result(), {}, Verdict(["f"], [], []), False),
        (_result(), {"f": "why", "p": "why"}, Verdict([], ["p"], []), False),
        (_result(), {"f": "why", "x": "why"}, Verdict([], [], ["x"]), True),
        (_result(swapped=0), {"f": "why"}, Verdict([], [], []), False),
        (_result(left=run.MOST_LEFT + 1), {"f": "why"}, Verdict([], [], []), False),
    ],
    ids=["as listed", "unlisted", "mended", "not run", "nothing swapped", "too many left"],
)
def test_the_list_must_be_exact(result, listed, verdict, good, capsys):
    """A test that fails unlisted and one that is listed and passes fail the run; so do sessions that were not swapped."""
    assert run.compare(result, listed) == verdict
    assert run.report("sqlite", result, verdict, 1.0) is good


@pytest.mark.parametrize(("part", "most"), [("sqlite", 5), ("psycopg", 10), ("asyncpg", 10), ("flask-sqlalchemy", 15)])
def test_the_exceptions_are_few_and_reasoned(part, most):
    """Each exception has a reason, and there are few."""
    listed = run.exceptions(part)

    assert 0 < len(listed) <= most
    assert all(len(why) > 40 for why in listed.values())
    assert all(orm_suite.name(test) == test for test in listed)


def test_a_test_has_one_name_on_all_databases():
    """SQLAlchemy names a class after the database's version; the list does not."""
    full = "test/orm/test_session.py::SessionTest_postgresql+psycopg_async_18_4::test_x[a::b]"

    assert orm_suite.name(full) == "test/orm/test_session.py::SessionTest::test_x[a::b]"
