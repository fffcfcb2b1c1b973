# ruff: noqa: N806 - models are classes, also where they come out of a variable
import asyncio
import gc
import re
import threading

import flask
import pytest
import sqlalchemy as sa
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tenure.core.events import UnitLeaked, WorkLost
from tenure.core.session import UnitSession
from tenure.exceptions import BadOption
from tenure.web.flask import adopt, adopt_async

from support.adopted import AdoptedShop
from support.face import PATIENCE

pytestmark = [pytest.mark.faces("sync"), pytest.mark.dialects("sqlite", "postgresql")]

alone = pytest.mark.drivers("sqlite")  # where the database plays no part

HERE = r"test_flask_sqlalchemy_lite\.py:\d+"
ASYNC = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class Shop(AdoptedShop):
    """An application as the documentation of Flask-SQLAlchemy-Lite has it, with synchronous and asynchronous sessions."""

    def __init__(self, url, *, asynchronous=False):
        class Base(DeclarativeBase):
            pass

        class Thing(Base):
            __tablename__ = "thing"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(unique=True)

        class Note(Base):
            __tablename__ = "note"
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]

        self.Thing, self.Note, self.Base = Thing, Note, Base
        # with binds, Flask-SQLAlchemy-Lite 0.2.1 gives asynchronous sessions the synchronous engines where it has both
        self.db = SQLAlchemy(session_options=None if asynchronous else {"binds": {Note: "notes"}})
        self.app = flask.Flask("shop")
        self.app.config["SQLALCHEMY_ENGINES"] = {"default": url, "notes": "sqlite://"}
        if asynchronous:  # each async view has an event loop of its own, so that a connection cannot be used by the next
            other = {"url": url.set(drivername=ASYNC[url.get_backend_name()]), "poolclass": sa.NullPool}
            self.app.config["SQLALCHEMY_ASYNC_ENGINES"] = {"default": other}
        self.db.init_app(self.app)
        with self.app.app_context():
            Base.metadata.create_all(self.db.engine)
            Base.metadata.create_all(self.db.get_engine("notes"))
        self.database = self.asynchronous = None

    def adopt_async(self, **options):
        self.asynchronous = adopt_async(self.app, **options)
        return self

    def close(self):
        with self.app.app_context():
            self.Base.metadata.drop_all(self.db.engine)
            for engine in self.db.engines.values():
                engine.dispose()
        if self.database is not None:
            self.database.close()
        if self.asynchronous is not None:
            asyncio.run(self.asynchronous.close())


@pytest.fixture
def make_shop(face):
    made = []

    def make(**options):
        made.append(Shop(face.sync_engine.url, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    gc.collect()  # asgiref has a thread for each call, which ends when nobody knows its executor any more
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(PATIENCE)


@pytest.fixture
def shop(make_shop):
    return make_shop().adopt()


# ------------------------------------------------------------------------------------------ a request


def test_requests_commit_by_their_answer(shop):
    """R21: a request of an adopted application needs no commit() of its own; error handlers see a COMMIT that fails."""
    db, Thing = shop.db, shop.Thing
    shop.app.register_error_handler(IntegrityError, lambda error: ("taken", 409))

    def kept():
        db.session.add(Thing(name="kept"))
        return "done"

    def refused():
        db.session.add(Thing(name="refused"))
        db.session.flush()
        return "refused", 400

    assert [shop.page(view).status_code for view in (kept, refused, kept)] == [200, 400, 409]
    assert shop.stored() == ["kept"]
    assert shop.database.status().in_use == 0


def test_queries_engines_and_binds(shop):
    """R21: get_or_abort, one_or_abort, engines, and the binds that choose them work without a change; one pool for both."""
    db, Thing, Note = shop.db, shop.Thing, shop.Note

    @shop.app.get("/<what>")
    def ask(what, session: Session):
        if what == "add":
            db.session.add_all([Thing(name="ada"), Note(text="note")])
            db.session.flush()
            assert db.session.get_bind(Note) is db.get_engine("notes") is not db.engine
        elif what == "same":
            return str([session is db.session is shop.database.session, shop.database.engine is db.engine])
        elif what == "one":
            return db.one_or_abort(sa.select(Thing).filter_by(name="ada")).name + db.session.scalars(sa.select(Note.text)).one()
        else:
            db.get_or_abort(Thing, 4711, code=410)
        return "done"

    client = shop.app.test_client()
    assert [client.get(f"/{what}").text for what in ("add", "same", "one")] == ["done", "[True, True]", "adanote"]
    assert client.get("/get").status_code == 410
    assert shop.stored() == ["ada"]


def test_named_sessions(shop, told):
    """R21: get_session(name) is a session of its own, settled after the first by the same rule, and it ends with its context."""
    db, Thing = shop.db, shop.Thing

    @shop.app.get("/<int:status>")
    def view(status):
        other = db.get_session("other")
        assert other is db.get_session("other") is not db.session
        assert other.scalar(sa.select(sa.func.count()).select_from(Thing)) is not None
        if status != 201:
            db.session.scalars(sa.select(Thing)).all()  # both at once, in turns
            other.add(Thing(name=f"other {status}"))
        else:
            db.session.add(Thing(name="other 200"))  # fails at its COMMIT, before that of the other
            other.add(Thing(name="not stored"))
        return "done", status

    client = shop.app.test_client()
    shop.app.register_error_handler(IntegrityError, lambda error: ("taken", 409))

    assert [client.get(f"/{status}").status_code for status in (200, 400, 201)] == [200, 400, 409]
    assert shop.stored() == ["other 200"]
    assert (len(told.closed(6)), told.of(WorkLost), told.of(UnitLeaked)) == (6, [], [])
    assert shop.database.status().in_use == 0


@alone
@pytest.mark.parametrize("name", ["default", "other"])
def test_explicit_tells_what_is_lost(make_shop, told, name):
    """R21: under commit="explicit" commits mean what they meant, and work that is left uncommitted is logged with its line."""
    shop = make_shop().adopt(commit="explicit")
    db, Thing = shop.db, shop.Thing

    def view():
        session = db.get_session(name)
        session.add(Thing(name="kept"))
        session.commit()
        session.add(Thing(name="lost"))
        session.flush()
        return "done"

    assert shop.page(view).status_code == 200
    assert shop.stored() == ["kept"]
    (warning,) = told.of(WorkLost)
    assert re.search(rf"work not committed, since flush\(\) at {HERE}, is lost", warning.message)


@alone
def test_a_context_and_a_command(shop, told):
    """R21: what a command commits is stored, what it leaves is logged, and a teardown that raises lets nothing through."""
    db, Thing = shop.db, shop.Thing

    @shop.app.cli.command("add")
    def add():
        db.session.add(Thing(name="ada"))
        db.session.commit()
        db.session.add(Thing(name="lost"))

    @shop.app.teardown_appcontext
    def teardown(error):
        raise LookupError("somebody's")

    errors = [shop.app.test_cli_runner().invoke(args=["add"]).exception for _ in range(2)]
    assert [(type(error), type(error.__context__)) for error in errors] == [
        (LookupError, type(None)),
        (LookupError, IntegrityError),
    ]
    assert shop.database.current_place.here() is None
    shop.app.teardown_appcontext_funcs.remove(teardown)
    assert shop.stored() == ["ada"]
    assert len(told.of(WorkLost)) == 1
    with shop.app.app_context():
        assert isinstance(db.session, UnitSession)
        assert db.session is db.get_session()
        assert {"db", "sa", "Thing"} <= shop.app.make_shell_context().keys()


@alone
def test_isolation(shop):
    """R21: within test_isolation nothing is stored of what a test commits, nor of requests in it."""
    db, Thing, Note = shop.db, shop.Thing, shop.Note

    def view():
        db.session.add_all([Thing(name="of a request"), Note(text="note")])
        return str(db.session.scalar(sa.select(sa.func.count()).select_from(Thing)))

    with shop.app.app_context():
        for engine in db.engines.values():
            sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    for _ in range(2):
        with db.test_isolation():
            with shop.app.app_context():
                db.session.add(Thing(name="of the test"))
                db.session.commit()
                db.session.rollback()
            assert shop.page(view).text == "2"
            with shop.app.app_context():
                assert sorted(db.session.scalars(sa.select(Thing.name))) == ["of a request", "of the test"]
                assert db.session.scalars(sa.select(Note.text)).all() == ["note"]
    assert shop.stored() == []
    assert shop.page(view).text == "1"
    assert shop.stored() == ["of a request"]


# ----------------------------------------------------------------------------------- asynchronous sessions


def test_async_views_commit_by_what_they_return(make_shop):
    """R21: db.async_session is that of the view's unit, which is stored or undone in the view's own event loop."""
    shop = make_shop(asynchronous=True).adopt_async()
    db, Thing = shop.db, shop.Thing
    shop.app.register_error_handler(IntegrityError, lambda error: ("taken", 409))
    shop.app.register_error_handler(LookupError, lambda error: ("sorry", 200))

    @shop.app.get("/<what>")
    async def view(what):
        db.async_session.add(Thing(name=what))
        assert db.async_session is db.get_async_session() is shop.asynchronous.session
        if what == "flushed":
            await db.async_session.flush()
            return "no", 400
        if what == "aborted":
            flask.abort(404)
        if what == "gone":
            flask.abort(flask.redirect("/elsewhere"))
        if what == "raised":
            raise LookupError
        return flask.jsonify("done")

    client = shop.app.test_client()
    answers = [client.get(f"/{what}").status_code for what in ("kept", "kept", "flushed", "aborted", "gone", "raised")]

    assert answers == [200, 409, 400, 404, 302, 200]
    assert shop.stored() == ["gone", "kept"]
    assert shop.asynchronous.status().in_use == 0
    with pytest.raises(KeyError, match="not defined"), shop.app.app_context():
        db.get_async_engine("none")


@alone
def test_both_kinds_of_sessions(make_shop):
    """R21: one application may be adopted for both; hooks and views have a unit each, and async_get_or_abort works."""
    shop = make_shop(asynchronous=True).adopt().adopt_async()
    db, Thing = shop.db, shop.Thing

    @shop.app.before_request
    async def audit():
        db.async_session.add(Thing(name="audit"))

    async def view():
        names = (await db.async_session.scalars(sa.select(Thing.name))).all()
        db.session.add(Thing(name="of the view"))
        await db.async_get_or_abort(Thing, 1)
        return names

    assert shop.page(view).json == ["audit"]
    assert shop.stored() == ["audit", "of the view"]


@alone
def test_what_is_left_to_the_extension(make_shop, told):
    """R21: a session by another name, or outside of an async def function, is SQLAlchemy's; explicit tells what is lost."""
    shop = make_shop(asynchronous=True).adopt_async(commit="explicit")
    db, Thing = shop.db, shop.Thing

    async def view():
        db.async_session.add(Thing(name="lost"))
        await db.async_session.flush()
        return str(isinstance(db.get_async_session("other").sync_session, UnitSession))

    assert shop.page(view).text == "False"
    assert shop.stored() == []
    (warning,) = told.of(WorkLost)
    assert re.search(rf"work not committed, since flush\(\) at {HERE}, is lost", warning.message)
    with shop.app.app_context():
        assert isinstance(db.async_session, AsyncSession)
        assert not isinstance(db.async_session.sync_session, UnitSession)


# ------------------------------------------------------------------------------------------ bad input


@alone
def test_bad_input(make_shop):
    """R21: twice, without engines of that kind, or with options that a unit decides: each says what to change."""
    shop = make_shop(asynchronous=True).adopt().adopt_async()
    for again in (adopt, adopt_async):
        with pytest.raises(BadOption, match="'shop' is adopted already"):
            again(shop.app)

    def made(config, **session_options):
        app = flask.Flask("bare")
        app.config.update(config)
        SQLAlchemy(app, session_options=session_options)
        return app

    engines, asynchronous = (
        {"SQLALCHEMY_ENGINES": {"default": "sqlite://"}},
        {"SQLALCHEMY_ASYNC_ENGINES": {"default": "sqlite+aiosqlite://"}},
    )
    cases = [
        (lambda: adopt_async(flask.Flask("none")), "finds no Flask-SQLAlchemy-Lite"),
        (lambda: adopt(made(asynchronous)), "call adopt_async"),
        (lambda: adopt_async(made(engines)), "call adopt"),
        (lambda: adopt(made(engines, twophase=True)), r"session_options\['twophase'\]"),
        (lambda: adopt_async(made(asynchronous, autobegin=False)), r"session_options\['autobegin'\]"),
    ]
    for call, message in cases:
        with pytest.raises(BadOption, match=message):
            call()
