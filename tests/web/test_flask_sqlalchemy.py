# ruff: noqa: N806 - models are classes, also where they come out of a variable
import contextvars
import gc
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import flask
import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.record_queries import get_recorded_queries
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tenure.core.events import UnitLeaked, WorkLost
from tenure.core.session import UnitSession
from tenure.exceptions import BadOption
from tenure.web.flask import adopt

from support.adopted import AdoptedShop
from support.http import at_once

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]

alone = pytest.mark.drivers("sqlite")  # where the database plays no part

HERE = r"test_flask_sqlalchemy\.py:\d+"


class Shop(AdoptedShop):
    """An application as Flask-SQLAlchemy's documentation has it."""

    def __init__(self, url, scopefunc=None, **config):
        class Base(DeclarativeBase):
            pass

        self.db = db = SQLAlchemy(model_class=Base, session_options={"scopefunc": scopefunc} if scopefunc else None)

        class Thing(db.Model):
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(unique=True)

        class Note(db.Model):
            __bind_key__ = "notes"
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]

        self.Thing, self.Note = Thing, Note
        self.app = flask.Flask("shop")
        self.app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_BINDS={"notes": "sqlite://"}, **config)
        db.init_app(self.app)
        self.database = None
        with self.app.app_context():
            db.create_all()

    def close(self):
        with self.app.app_context():
            self.db.session.remove()
            self.db.drop_all()
            for engine in self.db.engines.values():
                engine.dispose()
        if self.database is not None:
            self.database.close()


@pytest.fixture
def make_shop(face):
    made = []

    def make(**config):
        made.append(Shop(face.sync_engine.url.render_as_string(hide_password=False), **config))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def shop(make_shop):
    return make_shop().adopt()


# ------------------------------------------------------------------------------------------ a request


def test_requests_commit_by_their_answer(shop):
    """R21: a request of an adopted application needs no commit() of its own."""
    db, Thing = shop.db, shop.Thing

    def kept():
        db.session.add(Thing(name="kept"))
        return "done"

    def refused():
        db.session.add(Thing(name="refused"))
        db.session.flush()
        return "refused", 400

    def own():
        db.session.add(Thing(name="own"))
        db.session.commit()
        db.session.add(Thing(name="undone"))
        db.session.flush()
        db.session.rollback()
        return "done"

    assert [shop.page(view).status_code for view in (kept, refused, own)] == [200, 400, 200]
    assert shop.stored() == ["kept", "own"]
    assert shop.database.status().in_use == 0


def test_error_handlers_see_a_failing_commit(shop):
    """R14: the application's handler for an IntegrityError answers where the commit at the end of a request fails."""
    db, Thing = shop.db, shop.Thing
    shop.app.register_error_handler(IntegrityError, lambda error: ("taken", 409))

    def add():
        db.session.add(Thing(name="ada"))
        return "done", 201

    assert shop.page(add).status_code == 201
    assert shop.app.test_client().get("/").status_code == 409
    assert shop.stored() == ["ada"]


def test_explicit_tells_what_is_lost(make_shop, told):
    """R21: under commit="explicit" commits mean what they meant, and work that is left uncommitted is logged with its line."""
    shop = make_shop().adopt(commit="explicit")
    db, Thing = shop.db, shop.Thing

    def view():
        db.session.add(Thing(name="kept"))
        db.session.commit()
        db.session.add(Thing(name="lost"))
        db.session.flush()
        return "done"

    assert shop.page(view).status_code == 200
    assert shop.stored() == ["kept"]
    (warning,) = told.of(WorkLost)
    assert re.search(rf"'GET /' \({HERE}\) answered 200, but work not committed, since flush\(\) at {HERE}", warning.message)


@alone
def test_an_error_page_may_store_what_happened(make_shop):
    """R21: under commit="explicit" the handler of a 500 may roll back, and commit what it has to say."""
    shop = make_shop().adopt(commit="explicit")
    db, Thing = shop.db, shop.Thing

    @shop.app.errorhandler(500)
    def sorry(error):
        db.session.rollback()
        db.session.add(Thing(name="error"))
        db.session.commit()
        return "sorry", 500

    def view():
        db.session.add(Thing(name="lost"))
        db.session.flush()
        raise LookupError

    assert shop.page(view).status_code == 500
    assert shop.stored() == ["error"]


def test_queries_as_they_were(make_shop):
    """R21: Model.query, the 404 helpers, pagination and the record of queries work without a change."""
    shop = make_shop(SQLALCHEMY_RECORD_QUERIES=True).adopt()
    db, Thing = shop.db, shop.Thing

    @shop.app.get("/<what>")
    def ask(what):
        if what == "add":
            db.session.add_all(Thing(name=f"{number}") for number in range(25))
        elif what == "query":
            return f"{Thing.query.filter_by(name='7').one().name} {Thing.query.count()}"
        elif what == "pages":
            page = db.paginate(db.select(Thing).order_by(Thing.id), per_page=10, page=3)
            return f"{page.total} {len(page.items)} {Thing.query.paginate(per_page=20).pages}"
        elif what == "recorded":
            Thing.query.all()
            return str(len([one for one in get_recorded_queries() if "FROM thing" in one.statement]))
        elif what == "get":
            db.get_or_404(Thing, 4711)
        elif what == "first":
            db.first_or_404(db.select(Thing).filter_by(name="none"))
        else:
            db.one_or_404(db.select(Thing))
        return "done"

    client = shop.app.test_client()
    answers = {what: client.get(f"/{what}") for what in ("add", "query", "pages", "recorded", "get", "first", "one")}

    assert [answers[what].text for what in ("add", "query", "pages", "recorded")] == ["done", "7 25", "25 5 2", "1"]
    assert [answers[what].status_code for what in ("get", "first", "one")] == [404] * 3


def test_binds(shop):
    """R21: each bind key keeps its engine; all of them are committed and rolled back with the request."""
    db, Thing, Note = shop.db, shop.Thing, shop.Note

    @shop.app.get("/<int:status>")
    def view(status):
        db.session.add_all([Thing(name=f"{status}"), Note(text=f"{status}")])
        db.session.flush()
        assert db.session.get_bind(Note) is db.engines["notes"] is not db.engine
        return "done", status

    for status in (200, 400):
        shop.app.test_client().get(f"/{status}")

    with shop.app.app_context():
        assert db.session.scalars(db.select(Note.text)).all() == ["200"]
    assert shop.stored() == ["200"]


def test_engine_options(make_shop):
    """R21: the application's engine options are those of its pool, and of the waits for it."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    shop = make_shop(SQLALCHEMY_ENGINE_OPTIONS=options, SQLALCHEMY_RECORD_QUERIES=True).adopt()
    db, Thing = shop.db, shop.Thing

    @shop.app.get("/count")
    def count():
        return f"{Thing.query.count()} {len(get_recorded_queries())}"

    def asked(_):
        response = shop.app.test_client().get("/count")
        return response.status_code, response.text

    with shop.database.unit() as session:
        session.add(Thing(name="held"))
        session.flush()
        ((status, _),) = at_once(1, asked)
        (holder,) = shop.database.holders()

    assert (status, re.search(HERE, str(holder)) is not None) == (500, True)  # it has waited for the whole time
    assert at_once(1, asked) == [(200, "1 1")]
    with shop.app.app_context():
        assert (db.engine.pool.size(), shop.database.status().in_use) == (1, 0)


def test_one_pool_for_both(shop):
    """R21: a view on db.session and one on tenure share the pool and see each other's commits; within db.unit both are one."""
    db, Thing, tenure = shop.db, shop.Thing, shop.database
    assert tenure.engine is shop.app.extensions["sqlalchemy"]._app_engines[shop.app][None]

    @shop.app.get("/new")
    def new(session: Session):
        session.add(Thing(name="new"))
        return str(session is db.session() is tenure.session)

    @shop.app.get("/old")
    def old():
        with tenure.unit(propagation="new") as session:
            inner = db.session() is session
        return f"{inner} {db.session() is tenure.session} {Thing.query.count()}"

    client = shop.app.test_client()
    assert (client.get("/new").text, client.get("/old").text) == ("True", "True True 1")
    assert tenure.status().in_use == 0


@alone
def test_a_stream_with_context(shop):
    """R16: the body of an answer reads in the request's unit, after what the view wrote was committed."""
    db, Thing = shop.db, shop.Thing

    def view():
        db.session.add(Thing(name="ada"))

        def parts():
            yield f"{shop.stored()}"
            yield f"{Thing.query.count()}"

        return flask.Response(flask.stream_with_context(parts()))

    assert shop.page(view).text == "['ada']1"
    assert shop.database.current_place.here() is None


# ------------------------------------------------------------------------------------ the pain of R21


def _bleed(shop):
    """How many of 50 contexts begin with something of an earlier one, whose teardown was cut short by somebody's callback."""
    db, Thing = shop.db, shop.Thing

    @shop.app.teardown_appcontext
    def teardown(error):
        if flask.g.get("dirty"):
            raise LookupError("somebody's")

    found = 0
    for _ in range(50):
        with pytest.raises(LookupError), shop.app.app_context():
            found += bool(db.session.new)
            db.session.add(Thing(name="dirty"))
            flask.g.dirty = True
    return found


@alone
def test_a_raising_teardown_lets_nothing_through(make_shop, told, caplog):
    """R21: with Flask-SQLAlchemy alone contexts find an earlier one's session; adopted, none does and no unit stays open."""
    plain = make_shop()
    assert _bleed(plain) > 0, "Flask-SQLAlchemy keys its sessions by something else than id() now"
    plain.db.session.registry.registry.clear()  # what it has left
    gc.collect()

    shop = make_shop().adopt()
    with caplog.at_level(logging.CRITICAL, "tenure"):
        assert _bleed(shop) == 0
    assert (len(told.closed(50)), told.of(UnitLeaked), shop.database.status().in_use) == (50, [], 0)
    assert shop.database.current_place.here() is None


# ------------------------------------------------------------------------- contexts that are no requests


def test_an_application_context_has_a_unit(shop, told):
    """R21: what a command or script commits is stored, what it leaves is logged; a context within is another session."""
    db, Thing = shop.db, shop.Thing

    with shop.app.app_context():
        outer = db.session()
        db.session.add(Thing(name="kept"))
        db.session.commit()
        with shop.app.app_context():
            assert db.session() is not outer
            assert db.session.scalar(db.select(Thing.name)) == "kept"
            assert outer.scalar(db.select(Thing.name)) == "kept"  # as it is handed to a helper
        assert db.session() is outer
        assert isinstance(outer, UnitSession)
        db.session.add(Thing(name="lost"))

    assert shop.stored() == ["kept"]
    assert told.of(UnitLeaked) == []
    (warning,) = told.of(WorkLost)
    assert re.search(rf"'application context' \({HERE}\) was left, but 1 object not written yet is lost", warning.message)
    with pytest.raises(RuntimeError, match="application context"):
        db.session()


@alone
def test_remove_begins_anew(shop):
    """R21: db.session.remove() undoes and lets go of everything; what comes next works."""
    db, Thing = shop.db, shop.Thing
    with shop.app.app_context():
        thing = Thing(name="gone")
        db.session.add(thing)
        db.session.flush()
        db.session.remove()
        assert thing not in db.session
        db.session.add(Thing(name="kept"))
        db.session.commit()
    assert shop.stored() == ["kept"]


@alone
def test_commands_and_listeners(shop):
    """R21: a command's db.session is its context's; listeners on db.session hear what happens, whenever they came."""
    db, Thing = shop.db, shop.Thing
    heard = []
    sa.event.listen(db.session, "after_flush", lambda session, _: heard.append(session))

    @shop.app.cli.command("add")
    def add():
        db.session.add(Thing(name="ada"))
        db.session.commit()
        heard.append(db.session())

    assert shop.app.test_cli_runner().invoke(args=["add"]).exit_code == 0
    assert (shop.stored(), len(heard), heard[0] is heard[1]) == (["ada"], 2, True)


@alone
@pytest.mark.parametrize("commit", ["auto", "explicit"])
def test_the_test_client_within_a_context(make_shop, commit):
    """R21: where Flask lets a request share the context of a test, it shares its session; the default rule commits all the same."""
    shop = make_shop().adopt(commit=commit)
    db, Thing = shop.db, shop.Thing
    shop.app.register_error_handler(IntegrityError, lambda error: ("taken", 409))

    def add():
        db.session.add(Thing(name="ada"))
        return str(id(db.session()))

    with shop.app.app_context():
        assert Thing.query.count() == 0
        assert shop.page(add).text == str(id(db.session()))
        assert Thing.query.one().name == "ada"
        if commit == "auto":
            assert shop.app.test_client().get("/").status_code == 409
        else:
            db.session.commit()
    assert shop.stored() == ["ada"]


@alone
def test_the_shell(shop):
    """R21: the shell knows the models and `db`, whose session is that of its context."""
    with shop.app.app_context():
        known = shop.app.make_shell_context()
        assert (known["Thing"], known["db"]) == (shop.Thing, shop.db)
        known["db"].session.add(known["Thing"](name="ada"))
        known["db"].session.commit()
    assert shop.stored() == ["ada"]


def test_a_tests_connection_in_place_of_the_engine(shop):
    """R21: tests that put a connection into db.engines, and roll it back, store nothing, in requests neither."""
    db, Thing = shop.db, shop.Thing

    def view():
        db.session.add(Thing(name="ada"))
        return str(Thing.query.count())

    with shop.app.app_context():
        engines = db.engines
    engine = engines[None]
    with engine.connect() as connection:
        transaction = connection.begin()
        engines[None] = connection
        try:
            assert shop.page(view).text == "1"
            with shop.app.app_context():
                assert Thing.query.one().name == "ada"
        finally:
            engines[None] = engine
            transaction.rollback()
    assert shop.stored() == []
    assert shop.page(view).text == "1"
    assert shop.stored() == ["ada"]


@alone
def test_threads_have_their_own(shop):
    """R21: a thread that pushes a context has its own unit."""
    db, sessions = shop.db, []

    def work():
        with shop.app.app_context():
            sessions.append(db.session())

    with shop.app.app_context():
        sessions.append(db.session())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert sessions[0] is not sessions[1]


@alone
def test_a_scope_of_the_applications_own(make_shop, told):
    """R21: with a scopefunc a context has a session for each key; the first is its own, and all end with it by the same rule."""
    shop = make_shop(scopefunc=threading.get_ident)
    shop.adopt()
    db, Thing = shop.db, shop.Thing

    def view():
        def work():
            db.session.add(Thing(name="other thread"))
            db.session.commit()
            db.session.scalars(db.select(Thing)).all()
            return db.session()

        mine, context = db.session(), contextvars.copy_context()
        assert mine is shop.database.session
        db.session.add(Thing(name="own"))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(context.run, work).result() is not mine
        return "done"

    assert shop.page(view).text == "done"
    assert shop.stored() == ["other thread", "own"]
    assert len(told.closed(2)) == 2
    with shop.app.app_context(), shop.database.unit() as session:
        assert db.session() is session


@alone
def test_jobs_without_a_context(shop):
    """R21: a unit of the database that adopt() gives needs no application context, and finds the engine of each bind."""

    @shop.database.unit
    def job(session: Session):
        session.add_all([shop.Thing(name="ada"), shop.Note(text="ada")])
        session.flush()
        with shop.app.app_context():
            assert shop.db.session() is session
        return session.scalar(sa.select(shop.Note.text))

    assert (job(), shop.stored()) == ("ada", ["ada"])


# ------------------------------------------------------------------------------------------ bad input


@alone
def test_applications_that_are_not_adopted_keep_what_they_had(shop, face):
    """R21: one `db` for two applications, of which one was adopted."""
    other = flask.Flask("other")
    other.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    shop.db.init_app(other)
    with other.app_context():
        assert not isinstance(shop.db.session(), UnitSession)
        shop.db.session.remove()
        shop.db.engine.dispose()
    with shop.app.app_context():
        assert isinstance(shop.db.session(), UnitSession)


@alone
def test_an_extension_that_replaces_another(shop):
    """R21: an application whose extension was replaced, as in tests, is adopted with the new one."""
    del shop.app.extensions["sqlalchemy"]
    other = SQLAlchemy(shop.app)
    database = adopt(shop.app)
    with shop.app.app_context():
        assert shop.db.session() is not other.session() is database.session
        assert isinstance(other.session(), UnitSession)
        other.engine.dispose()
    database.close()


@alone
def test_sessions_that_cannot_be_a_units():
    """R21: what a unit decides itself is refused by name."""
    app = flask.Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy(app, session_options={"twophase": True})
    with pytest.raises(BadOption, match=r"session_options\['twophase'\]"):
        adopt(app)


@alone
def test_bad_input(shop):
    """R21: without Flask-SQLAlchemy, twice, or with arguments for one session: each says what to change."""
    with pytest.raises(BadOption, match="Call it after"):
        adopt(flask.Flask("none"))
    with pytest.raises(BadOption, match="'shop' is adopted already"):
        adopt(shop.app)
    with shop.app.app_context(), pytest.raises(BadOption, match="with arguments"):
        shop.db.session(autoflush=False)
