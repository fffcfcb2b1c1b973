import asyncio
from dataclasses import dataclass, field

import pytest

from tenure.core import plan
from tenure.core.plan import Opening, Outcome, Step, Verdict, adrive, drive

OK = None
C, R, V, X = Step.COMMIT, Step.ROLLBACK, Step.INVALIDATE, Step.CLOSE
A = Step.ASK


@dataclass
class Facts:
    """What a plan asks, answered beforehand."""

    rollback_asked: bool = False
    unhealed: Exception | None = None
    writes: bool = True
    late: bool = False
    doubtful: bool = False
    doubt: dict[type, BaseException] = field(default_factory=dict)
    verifies: bool = False
    answer: bool | None = None

    def swallowed(self):
        return self.unhealed

    def stored(self):
        return self.writes

    def took_place(self):
        return self.late

    def in_doubt(self, error):
        return self.doubt.get(type(error))


class LostError(Exception):
    """What in_doubt makes of a ConnectionError."""


LOST = LostError()


def _asked(answer):
    return Facts(doubt={ConnectionError: LOST}, verifies=True, answer=answer)


# body, failing steps, facts -> steps, outcome, what the caller sees, what is only reported
TABLE = {
    "returns": (OK, {}, Facts(), [C, X], "committed", OK, OK),
    "reads only": (OK, {}, Facts(writes=False), [C, X], "read only", OK, OK),
    "raises": (ValueError, {}, Facts(), [R, X], "rolled back", ValueError, OK),
    "raises SystemExit": (SystemExit, {}, Facts(), [R, X], "rolled back", SystemExit, OK),
    "raises KeyboardInterrupt": (KeyboardInterrupt, {}, Facts(), [R, X], "rolled back", KeyboardInterrupt, OK),
    "raises GeneratorExit": (GeneratorExit, {}, Facts(), [R, X], "rolled back", GeneratorExit, OK),
    "raises CancelledError": (asyncio.CancelledError, {}, Facts(), [R, X], "rolled back", asyncio.CancelledError, OK),
    "raises StopIteration": (StopIteration, {}, Facts(), [R, X], "rolled back", StopIteration, OK),
    "swallowed": (OK, {}, Facts(unhealed=LookupError()), [R, X], "rolled back", LookupError, OK),
    "raises after swallowing": (ValueError, {}, Facts(unhealed=LookupError()), [R, X], "rolled back", ValueError, OK),
    "asks": (OK, {}, Facts(rollback_asked=True), [R, X], "rolled back", OK, OK),
    "asks after swallowing": (OK, {}, Facts(True, LookupError()), [R, X], "rolled back", OK, OK),
    "asks and raises": (ValueError, {}, Facts(True), [R, X], "rolled back", ValueError, OK),
    "commit fails": (OK, {C: RuntimeError}, Facts(), [C, R, X], "rolled back", RuntimeError, OK),
    "commit is interrupted": (
        OK, {C: KeyboardInterrupt}, Facts(), [C, R, X], "rolled back", KeyboardInterrupt, OK,
    ),
    "commit is cancelled": (
        OK, {C: asyncio.CancelledError}, Facts(), [C, R, X], "rolled back", asyncio.CancelledError, OK,
    ),
    "commit stops iteration": (OK, {C: StopIteration}, Facts(), [C, R, X], "rolled back", StopIteration, OK),
    "commit is lost": (
        OK, {C: ConnectionError}, Facts(doubt={ConnectionError: LOST}), [C, R, X], "unknown", LostError, OK,
    ),
    "commit is lost, rollback fails": (
        OK, {C: ConnectionError, R: OSError}, Facts(doubt={ConnectionError: LOST}),
        [C, R, V, X], "unknown", LostError, OK,
    ),
    "commit done, then an error": (OK, {C: RuntimeError}, Facts(late=True), [C, X], "committed", RuntimeError, OK),
    "commit done, then an interruption": (
        OK, {C: KeyboardInterrupt}, Facts(late=True), [C, X], "committed", KeyboardInterrupt, OK,
    ),
    "commit of reads done, then an error": (
        OK, {C: RuntimeError}, Facts(late=True, writes=False), [C, X], "read only", RuntimeError, OK,
    ),
    "lost, and verified: it was done": (
        OK, {C: ConnectionError}, _asked(True), [C, A, X], "committed", OK, OK,
    ),
    "lost, and verified: it was not done": (
        OK, {C: ConnectionError}, _asked(False), [C, A, R, X], "rolled back", ConnectionError, OK,
    ),
    "lost, and nobody answers": (
        OK, {C: ConnectionError}, _asked(None), [C, A, R, X], "unknown", LostError, OK,
    ),
    "lost, and asking is interrupted": (
        OK, {C: ConnectionError, A: KeyboardInterrupt}, _asked(None), [C, A, R, X], "unknown", KeyboardInterrupt, OK,
    ),
    "lost, and asking fails": (
        OK, {C: ConnectionError, A: LookupError}, _asked(None), [C, A, R, X], "unknown", LostError, OK,
    ),
    "verified, but not lost": (
        OK, {C: RuntimeError}, _asked(True), [C, R, X], "rolled back", RuntimeError, OK,
    ),
    "raises after a doubtful checkpoint": (ValueError, {}, Facts(doubtful=True), [R, X], "unknown", ValueError, OK),
    "returns after a doubtful checkpoint": (OK, {}, Facts(doubtful=True), [C, X], "committed", OK, OK),
    "rollback fails": (ValueError, {R: RuntimeError}, Facts(), [R, V, X], "rolled back", ValueError, OK),
    "rollback fails after an interruption": (
        KeyboardInterrupt, {R: RuntimeError}, Facts(), [R, V, X], "rolled back", KeyboardInterrupt, OK,
    ),
    "rollback and invalidate fail": (
        ValueError, {R: RuntimeError, V: OSError}, Facts(), [R, V, X], "rolled back", ValueError, OK,
    ),
    "rollback is interrupted": (
        ValueError, {R: KeyboardInterrupt}, Facts(), [R, V, X], "rolled back", KeyboardInterrupt, OK,
    ),
    "rollback fails, invalidate is interrupted": (
        ValueError, {R: RuntimeError, V: KeyboardInterrupt}, Facts(),
        [R, V, X], "rolled back", KeyboardInterrupt, OK,
    ),
    "rollback that was asked for fails": (
        OK, {R: RuntimeError}, Facts(True), [R, V, X], "rolled back", RuntimeError, OK,
    ),
    "close fails": (OK, {X: OSError}, Facts(), [C, X], "committed", OK, OSError),
    "raises, close fails": (ValueError, {X: OSError}, Facts(), [R, X], "rolled back", ValueError, OSError),
    "close is interrupted": (OK, {X: KeyboardInterrupt}, Facts(), [C, X], "committed", KeyboardInterrupt, OK),
    "raises, close is cancelled": (
        ValueError, {X: asyncio.CancelledError}, Facts(), [R, X], "rolled back", asyncio.CancelledError, OK,
    ),
    "commit interrupted, rollback fails": (
        OK, {C: KeyboardInterrupt, R: RuntimeError}, Facts(), [C, R, V, X], "rolled back", KeyboardInterrupt, OK,
    ),
    "commit fails, rollback is cancelled": (
        OK, {C: RuntimeError, R: asyncio.CancelledError}, Facts(),
        [C, R, V, X], "rolled back", asyncio.CancelledError, OK,
    ),
    "everything fails": (
        OK, {C: RuntimeError, R: OSError, V: LookupError, X: EOFError}, Facts(),
        [C, R, V, X], "rolled back", RuntimeError, EOFError,
    ),
}  # fmt: skip


class Shell:
    """Carries steps out, or fails at some of them."""

    def __init__(self, failing):
        self.failing = failing
        self.steps = []

    def act(self, step):
        self.steps.append(step)
        if step in self.failing:
            raise self.failing[step]

    async def aact(self, step):
        await asyncio.sleep(0)
        self.act(step)


def run(way, steps, shell):
    if way == "drive":
        return drive(steps, shell.act)
    with asyncio.Runner() as runner:
        return runner.run(adrive(steps, shell.aact))


@pytest.mark.parametrize("way", ["drive", "adrive"])
@pytest.mark.parametrize("row", TABLE)
def test_how_a_unit_ends(row, way):
    """R1: every ending runs all its steps, whatever they raise, with one outcome and one error."""
    body, failing, facts, steps, outcome, seen, trouble = TABLE[row]
    if way == "adrive" and StopIteration in failing.values():
        seen = RuntimeError
    error = body and body()
    shell = Shell(failing)

    verdict = run(way, plan.end(error, facts), shell)

    assert shell.steps == steps
    assert verdict.outcome is Outcome(outcome)
    assert type(verdict.error) is (seen or type(None))
    assert type(verdict.trouble) is (trouble or type(None))
    assert seen is None or seen is not body or verdict.error is error


@pytest.mark.parametrize("way", ["drive", "adrive"])
def test_a_settled_unit_is_only_closed(way):
    """R14: what was settled before the answer is not settled again."""
    shell = Shell({})
    before = Verdict(Outcome.COMMITTED)

    verdict = run(way, plan.end(None, Facts(), before), shell)

    assert shell.steps == [X]
    assert verdict is before


@pytest.mark.parametrize(("body", "steps"), [(None, [Step.RELEASE]), (ValueError, [Step.ROLLBACK_TO])])
def test_a_savepoint_is_settled_by_its_own_steps(body, steps):
    """R5: a savepoint is released or rolled back to; the session stays open."""
    shell = Shell({})

    drive(plan.settle(body and body(), Facts(), Step.RELEASE, Step.ROLLBACK_TO), shell.act)

    assert shell.steps == steps


def test_what_a_failed_ending_says():
    """R1: an error that must not hide the body's is a note on it, without statement or parameters."""
    error = ValueError("the body's")
    drive(plan.end(error, Facts()), Shell({R: RuntimeError("no answer")}).act)

    assert error.__notes__ == ["tenure: ending the unit failed as well (RuntimeError: no answer); its connection was discarded."]


def test_an_error_that_takes_no_notes_ends_like_any_other():
    """R1: a frozen dataclass refuses notes, and its unit is closed all the same."""

    @dataclass(frozen=True)
    class FrozenError(Exception):
        number: int

    error = FrozenError(4)
    shell = Shell({R: RuntimeError})
    verdict = drive(plan.end(error, Facts()), shell.act)

    assert shell.steps == [R, V, X]
    assert verdict.error is error


@pytest.mark.parametrize(
    ("propagation", "outside", "inside"),
    [
        ("required", Opening.OWN, Opening.JOIN),
        ("new", Opening.OWN, Opening.OWN),
        ("nested", Opening.OWN, Opening.SAVEPOINT),
        ("mandatory", Opening.MISSING, Opening.JOIN),
        ("never", Opening.OWN, Opening.UNEXPECTED),
    ],
)
def test_what_entering_means(propagation, outside, inside):
    """R5: each propagation has one meaning where no unit is open, and one where there is one."""
    assert plan.OPENINGS[propagation] == (outside, inside)


@pytest.mark.parametrize(
    ("how", "readonly", "within", "steps"),
    [
        (Opening.OWN, True, False, []),
        (Opening.JOIN, False, False, []),
        (Opening.JOIN, True, False, [Step.FLUSH]),
        (Opening.JOIN, True, True, []),
        (Opening.SAVEPOINT, False, False, [Step.SAVEPOINT]),
        (Opening.SAVEPOINT, True, False, [Step.FLUSH, Step.SAVEPOINT]),
    ],
)
def test_how_a_unit_begins(how, readonly, within, steps):
    """R9: a read-only part of a writing unit first has written what was waiting, so that its end counts only its own."""
    shell = Shell({})
    drive(plan.begin(how, readonly, within), shell.act)

    assert shell.steps == steps


@pytest.mark.parametrize("way", ["drive", "adrive"])
def test_each_hook_runs_whatever_the_others_raise(way):
    """R8: hooks run in order, each whatever the others do, interruptions included."""
    shell = Shell({"b": ValueError, "c": KeyboardInterrupt, "e": asyncio.CancelledError})

    failed = run(way, plan.each("abcdef"), shell)

    assert shell.steps == list("abcdef")
    assert [(hook, type(error)) for hook, error in failed] == [
        ("b", ValueError), ("c", KeyboardInterrupt), ("e", asyncio.CancelledError),
    ]  # fmt: skip
