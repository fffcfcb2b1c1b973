"""Celery without a broker: eager tasks, what is refused, and what is sent too early."""

import functools
import logging

import celery
import celery.app.trace
import pytest
import sqlalchemy as sa
from sqlalchemy import func, select

from tenure import Retry
from tenure.core.events import GuardTripped
from tenure.exceptions import BadOption, NoUnit, SecondConnection, UnsupportedCallable
from tenure.jobs.celery import install

from support.models import Order, User
from support.probe import line

pytestmark = [pytest.mark.faces("sync")]
alone = pytest.mark.drivers("sqlite")


def celery_app(name="shop"):
    """A Celery app that keeps its tasks to itself; Celery announces them to every other app of the process."""
    made = celery.Celery(name, broker="memory://", set_as_current=False)
    made.task = functools.partial(made.task, shared=False)
    return made


def nothing(*_args):
    """A task that does nothing."""


@pytest.fixture
def app(face):
    """A Celery app whose tasks run in their caller, with units of the face's database."""
    made = celery_app()
    made.conf.update(task_always_eager=True, task_eager_propagates=True)
    install(made, face.db)
    return made


def test_an_eager_task_and_the_unit_of_its_caller(face, app, told, stored):
    """R25: a view holds an object, runs a task and reads on: the object still loads, and each has its own outcome."""
    with face.db.unit() as session:
        session.add(User(name="ada", orders=[Order(note="first")]))

    @app.task(name="shop.receipt")
    def receipt(fails):
        unit = face.db.current
        unit.session.scalars(select(User)).all()
        unit.session.rollback() if fails else None
        if fails:
            raise LookupError
        return unit.name, id(unit.session)

    with face.db.unit(name="view") as session:
        ada = session.scalars(select(User)).one()
        name, found = receipt.delay(False).get()
        with pytest.raises(LookupError):
            receipt.apply([True])
        assert face.db.current.session is session
        assert [order.note for order in ada.orders] == ["first"]
        ada.balance = 5

    assert (name, found != id(session)) == ("shop.receipt", True)
    assert told.closed()[1:] == [
        ("shop.receipt", "read only", "returned"),
        ("shop.receipt", "rolled back", "LookupError"),
        ("view", "committed", "returned"),
    ]
    assert stored(User.balance) == [5]


@pytest.mark.dialects("postgresql")
def test_an_eager_task_that_brings_its_unit(face, app, stored):
    """R25: `@db.unit` on a task does not join the unit of its caller either: it keeps its work when that rolls back."""

    @app.task
    @face.db.unit
    def keep(session, name):
        session.add(User(name=name))

    with pytest.raises(LookupError), face.db.unit() as session:
        session.add(User(name="view"))
        session.flush()
        keep.delay("task")
        raise LookupError

    assert stored() == ["task"]


@pytest.mark.dialects("postgresql")
def test_an_eager_task_where_its_caller_has_the_only_connection(make_face):
    """R25, R36: it cannot get one before its caller goes on, and is told so at once."""
    face = make_face(pool_size=1, max_overflow=0)
    made = celery_app()
    made.conf.update(task_always_eager=True, task_eager_propagates=True)
    install(made, face.db)

    @made.task
    def count():
        return face.db.session.scalar(select(func.count()).select_from(User))

    with face.db.unit(), face.db.unit() as session:
        session.add(User(name="ada"))
        session.flush()
        with pytest.raises(SecondConnection):
            count.delay()


def test_a_task_called_as_a_function_joins(face, app, stored, told):
    """R25, R5: `task(…)` is a call like any other; without a unit around it, it has one of its own."""

    @app.task(name="shop.add", bind=True)
    def add(self, name):
        assert self.name == "shop.add"
        face.db.session.add(User(name=name))

    with pytest.raises(LookupError), face.db.unit():
        add("joined")
        raise LookupError
    add("alone")

    assert stored() == ["alone"]
    assert told.closed()[-1] == ("shop.add", "committed", "returned")


class Counted(celery.Task):
    """A base of a user's own."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return "counted", super().__call__(*args, **kwargs)


KEEP = []


@celery.shared_task(name="shop.shared")
def shared(name):
    """Of every app of the process."""
    KEEP[-1](name)


def test_whatever_the_class_of_a_task(face, stored):
    """R25: tasks with a base of their own, as classes, shared, made before `install`, or changed by the app's settings."""
    made = celery_app()

    def keep(name):
        face.db.session.add(User(name=f"{name} in {face.db.current.name}"))

    KEEP[:] = [keep]
    before = made.task(keep, name="shop.before")
    install(made, face.db)
    made.conf.update(task_always_eager=True, task_eager_propagates=True)
    made.config_from_object({"task_annotations": {"shop.limited": {"rate_limit": "7/s"}, "*": {"ignore_result": True}}})
    limited = made.task(keep, name="shop.limited")
    counted = made.task(keep, name="shop.counted", base=Counted)

    class Noted(celery.Task):
        name = "shop.noted"

        def run(self):
            return keep(self.name)

    for task in (before, limited, counted, made.tasks["shop.shared"]):
        task.delay("ada")
    made.register_task(Noted()).delay()
    with pytest.raises(NoUnit, match="Decorate the function with @db\\.unit"):
        celery_app("other").tasks["shop.shared"]("ada")

    assert stored() == [
        "ada in shop.before", "ada in shop.counted", "ada in shop.limited", "ada in shop.shared", "shop.noted in shop.noted",
    ]  # fmt: skip
    assert (limited.rate_limit, before.rate_limit, limited.ignore_result) == ("7/s", None, True)


def test_the_error_of_a_commit_is_the_tasks(face, app, stored):
    """R25, R2: Celery's own `autoretry_for` sees what the commit raised, and each retry is a unit of its own."""
    runs = []

    @app.task(autoretry_for=(sa.exc.IntegrityError,), max_retries=3, default_retry_delay=0)
    def keep():
        runs.append(id(face.db.session))
        face.db.session.add(User(name="ada" if len(runs) < 3 else "bob"))

    with face.db.unit() as session:
        session.add(User(name="ada"))
    app.conf.task_eager_propagates = False
    keep.delay()

    assert (stored(), len(runs), len(set(runs)) > 1) == (["ada", "bob"], 3, True)


def test_both_ways_to_run_again(face, app, stored):
    """R25, R39: `retry=` runs again within one delivery and for conflicts only; Celery then begins anew with as many."""
    runs = []

    def conflict():
        raise sa.exc.OperationalError("UPDATE", {}, type("Deadlock", (Exception,), {"sqlstate": "40P01"})())

    @app.task(autoretry_for=(sa.exc.OperationalError, LookupError), max_retries=2, default_retry_delay=0)
    @face.db.unit(retry=Retry(attempts=3, first=0))
    def once_more(session, what):
        runs.append(what)
        if what == "conflict" and runs.count(what) < 3:
            conflict()
        if what == "never":
            conflict()
        if what == "other":
            raise LookupError(what)

    app.conf.task_eager_propagates = False
    for what in ("conflict", "never", "other"):
        once_more.delay(what)

    assert {what: runs.count(what) for what in set(runs)} == {"conflict": 3, "never": 3 * 3, "other": 1 * 3}


@alone
@pytest.mark.parametrize(
    ("said", "late"), [({}, (True, True)), ({"task_acks_late": False}, (False, True)), ({"task_acks_late": True}, (True, True))]
)
@pytest.mark.parametrize("when", ["before", "after", "configured"])
def test_acknowledgement_comes_after_the_commit(face, said, late, when):
    """R25: so it is set, unless the app's own settings say otherwise."""
    made = celery_app()
    if when != "after":
        made.conf.update(said)
    if when == "configured":
        assert made.conf.task_always_eager is False
    install(made, face.db)
    if when == "after":
        made.conf.update(said)

    task = made.task(nothing, name="shop.nothing")
    assert (task.acks_late, task.reject_on_worker_lost) == late
    assert made.task(nothing, name="shop.early", acks_late=False).acks_late is False


@alone
def test_what_is_refused(face, watch):
    """R50: what cannot carry a unit, something that is no `Database`, swapped arguments, a second or late call, a closed database."""
    made = celery_app()
    with pytest.raises(BadOption, match=r"install\(app, …\): NoneType is not a Database"):
        install(made, None)
    with pytest.raises(
        BadOption, match=r"install\(app, db\): Database is no Celery\. Give that first, and the database after it"
    ):
        install(face.db, made)
    install(made, face.db)
    with pytest.raises(BadOption, match=r"install\(app, …\) was called before with this one and 'main'\. Once is enough"):
        install(made, face.db)

    async def coroutine():
        """Under Celery nobody awaits it."""

    def generator():
        yield 1

    for function, words in (
        (
            coroutine,
            r"is async def under a Database; .* Celery awaits nothing\. Make it a plain def, which may call asyncio\.run",
        ),
        (generator, "is a generator"),
    ):
        with pytest.raises(UnsupportedCallable, match=words):
            made.task(function, name=f"shop.{function.__name__}").delay()

    used = celery_app("used")
    used.task(nothing, name="used.nothing").bind(used)
    with pytest.raises(BadOption, match=r"comes after tasks of the app were used\. Call it right after Celery"):
        install(used, face.db)
    face.db.close()
    with pytest.raises(BadOption, match="'main' is closed"):
        install(celery_app("late"), face.db)


def test_two_databases(face, watch, app, tmp_path, stored):
    """R12: an app may be given the units of two; they commit one after the other."""
    import tenure

    other = watch(tenure.Database(f"sqlite:///{tmp_path / 'other.db'}", name="other"))
    install(app, other.db)

    @app.task(name="shop.both")
    def both():
        face.db.session.add(User(name=other.db.current.name))

    both.delay()
    assert stored() == ["shop.both"]


# --------------------------------------------------------------------------------------- sent too early


@pytest.fixture
def sends(face):
    """An app that sends to a broker in memory, and never runs anything."""
    made = celery_app()
    install(made, face.db)
    made.task(nothing, name="shop.receipt")
    return made


def test_a_task_that_is_sent_too_early(face, sends, told, caplog):
    """R26: one warning names the line, for objects not written yet and for a flush; none before a write and after the commit."""
    receipt = sends.tasks["shop.receipt"]
    with caplog.at_level(logging.WARNING, "tenure"), face.db.unit(name="POST /orders") as session:
        opened = line(-1)
        receipt.delay(0)
        session.add(User(name="ada"))
        first = line(1)
        receipt.delay(1)
        session.flush()
        flushed = line(-1)
        second = line(1)
        sends.send_task("shop.elsewhere", [2])
        session.commit()
        receipt.apply_async([3])
    receipt.delay(4)

    assert [record.getMessage() for record in caplog.records] == [
        f"tenure: task 'shop.{name}' was sent at {sent} by unit 'POST /orders' ({opened}), which has {what}. Use"
        f" db.on_commit({name}.delay, …). [early-enqueue]"
        for name, sent, what in (
            ("receipt", first, "1 object not written yet"),
            ("elsewhere", second, f"work not committed, since flush() at {flushed}"),
        )
    ]
    assert [one.slug for one in told.of(GuardTripped)] == ["early-enqueue"] * 2


def test_sending_after_the_commit(face, sends, told):
    """R26: `db.on_commit(task.delay, id)` sends once the work is stored, without a warning, and nothing after a rollback."""
    receipt, found = sends.tasks["shop.receipt"], []

    def note(**_):
        found.append(face.out())

    celery.signals.before_task_publish.connect(note)
    try:
        with face.db.unit() as session:
            session.add(User(name="ada"))
            face.db.on_commit(receipt.delay, 1)
            assert found == []
        with pytest.raises(LookupError), face.db.unit() as session:
            session.add(User(name="bob"))
            face.db.on_commit(receipt.delay, 2)
            raise LookupError
    finally:
        celery.signals.before_task_publish.disconnect(note)

    assert (found, told.of(GuardTripped)) == ([0], [])


@alone
def test_a_retry_is_not_sent_too_early(face, sends, told):
    """R26: `self.retry()` sends from a run that is about to be rolled back, and that is as it should be."""

    @sends.task(bind=True, name="shop.again")
    def again(self):
        face.db.session.add(User(name="ada"))
        raise self.retry(countdown=0)

    tracer = celery.app.trace.build_tracer(again.name, again, app=sends)
    tracer("id", [], {}, {"id": "id", "delivery_info": {}, "is_eager": False})

    assert (told.closed()[0][1:], told.of(GuardTripped)) == (("rolled back", "Retry"), [])


@alone
def test_the_guard_is_off(make_face, told):
    """R26, R49: a program that sends early on purpose says so."""
    face = make_face(guards={"early-enqueue": "off"})
    made = celery_app()
    install(made, face.db)
    with face.db.unit() as session:
        session.add(User(name="ada"))
        made.send_task("shop.receipt")

    assert told.of(GuardTripped) == []
