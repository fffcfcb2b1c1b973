"""An interruption (Ctrl-C, a signal handler's exception) can come at any line, those of tenure itself included."""

import gc
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

import tenure
from tenure.exceptions import NoUnit, UnitEnded

from support.models import User
from support.probe import Told, reading

SOURCES = str(Path(tenure.__file__).parent)
STRIDE = 7
"""Every seventh line of tenure that the scenario runs, so that the test takes two seconds; 1 has passed too."""


class Interruption(BaseException):
    """What a signal handler raises."""


class InterruptAt:
    """A trace function that raises at the n-th line which runs in tenure."""

    def __init__(self, line):
        self.line = line
        self.lines = 0

    def __call__(self, frame, kind, argument):
        code = frame.f_code
        # SQLAlchemy's pool loses count when a listener of "checkin" raises, as it does at its own lines around that call.
        if not code.co_filename.startswith(SOURCES) or _is_within(frame, ("switch_back", "_came_back")):
            return None
        return self._within

    def _within(self, frame, kind, argument):
        if kind == "line":
            self.lines += 1
            if self.lines == self.line:
                raise Interruption
        return self._within


def _is_within(frame, names):
    while frame is not None:
        if frame.f_code.co_name in names:
            return True
        frame = frame.f_back
    return False


def scenario(db):
    with db.unit() as session:
        session.scalar(sa.select(User.id))
        session.add(User(name="ada"))
        session.flush()
        with db.unit(propagation="nested"):
            session.add(User(name="bob"))
        db.on_commit(lambda: None)


def interrupted(db, line):
    """Run the scenario with an interruption; whether the line was reached, what was told, and what the exception knows."""
    trace, outcome = InterruptAt(line), None
    with reading(Told()) as told:
        sys.settrace(trace)
        try:
            scenario(db)
        except BaseException as error:
            outcome = getattr(error, "tenure_outcome", None)
        finally:
            sys.settrace(None)
        if db.status().in_use or not _nothing_current(db):
            gc.collect()  # what was cut off between two lines is left to the last net
    return trace.lines >= line, told.outcomes(), outcome and outcome.value


def _nothing_current(db):
    try:
        db.current  # noqa: B018
    except NoUnit:
        return True
    except UnitEnded:  # cut off within the very reset: until what has ended is gone
        return False
    return False


@pytest.mark.drivers("sqlite")
def test_an_interruption_at_any_line(small, monkeypatch):
    """R1: wherever an interruption comes, nothing is half stored, no outcome is untrue, no connection stays away."""
    monkeypatch.setattr(sys, "unraisablehook", lambda *args: None)  # an interrupted destructor
    face = small(pool_timeout=0.1)
    scenario(face.db)  # what is done at the first use only is done
    line, reached, wrong = 0, True, []
    while reached:
        line += STRIDE
        reached, told, known = interrupted(face.db, line)
        with face.db.unit() as session:
            rows = sorted(session.scalars(sa.select(User.name)))
            session.execute(sa.delete(User))
        if face.out():
            wrong.append((line, "a connection is out"))
        true = {"committed", "unknown"} if rows else {"rolled back", "unknown", "read only"}
        if rows not in ([], ["ada", "bob"]) or not {*told, known or "unknown"} <= true or len(told) > 1:
            wrong.append((line, rows, told, known))
        if not _nothing_current(face.db):
            wrong.append((line, "a unit is current"))

    assert wrong == []
    assert line > 700
