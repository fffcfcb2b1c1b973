"""One piece of work in the hands of each library, by its own shortest documented way: open, work, store, end.

Each variant has an engine of its own, made by the library itself where it insists on that (Flask-SQLAlchemy, oslo.db). With
``sqlite://`` each therefore has a database of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import transaction
import zope.sqlalchemy
from advanced_alchemy.config import SQLAlchemySyncConfig
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as Lite
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from benchmarks import models
from benchmarks.models import KEY, User
from tenure import Database

with warnings.catch_warnings(action="ignore"):  # oslo's dependencies warn about each other
    from oslo_db.sqlalchemy import enginefacade

BASE = "with Session(engine)"
TENURE = "tenure: with db.unit()"
DECORATED = "tenure: @db.unit"
UNGUARDED = "tenure, guards off"
CLASSIC = 'tenure, hold="transaction"'


class Peer:
    """One variant: the three pieces of work. Made for one database."""

    engine: Engine

    def __init__(self, url: URL) -> None:
        raise NotImplementedError

    def nothing(self) -> None:
        """Open a session and end it."""
        raise NotImplementedError

    def read(self) -> None:
        """Read one row by its primary key."""
        raise NotImplementedError

    def insert(self) -> None:
        """Store one row."""
        raise NotImplementedError

    def close(self) -> None:
        self.engine.dispose()


class Plain(Peer):
    def __init__(self, url: URL) -> None:
        self.engine = create_engine(url)

    def nothing(self) -> None:
        with Session(self.engine):
            pass

    def read(self) -> None:
        with Session(self.engine) as session:
            session.get(User, KEY)

    def insert(self) -> None:
        with Session(self.engine) as session:
            session.add(User(name="new"))
            session.commit()


class Begun(Peer):
    def __init__(self, url: URL) -> None:
        self.engine = create_engine(url)
        self.make = sessionmaker(self.engine)

    def nothing(self) -> None:
        with self.make.begin():
            pass

    def read(self) -> None:
        with self.make.begin() as session:
            session.get(User, KEY)

    def insert(self) -> None:
        with self.make.begin() as session:
            session.add(User(name="new"))


class Scoped(Peer):
    def __init__(self, url: URL) -> None:
        self.engine = create_engine(url)
        self.session = scoped_session(sessionmaker(self.engine))

    def nothing(self) -> None:
        self.session()
        self.session.remove()

    def read(self) -> None:
        self.session.get(User, KEY)
        self.session.remove()

    def insert(self) -> None:
        self.session.add(User(name="new"))
        self.session.commit()
        self.session.remove()


class InFlask(Peer):
    """An extension whose session is that of the application's context."""

    app: Flask
    db: Any

    def read(self) -> None:
        with self.app.app_context():
            self.db.session.get(User, KEY)

    def insert(self) -> None:
        with self.app.app_context():
            self.db.session.add(User(name="new"))
            self.db.session.commit()


class FlaskSQLAlchemy(InFlask):
    def __init__(self, url: URL) -> None:
        self.app = Flask(__name__)
        self.app.config["SQLALCHEMY_DATABASE_URI"] = url
        self.db = SQLAlchemy(self.app)
        with self.app.app_context():
            self.engine = self.db.engine

    def nothing(self) -> None:
        with self.app.app_context():
            self.db.session()


class FlaskSQLAlchemyLite(InFlask):
    def __init__(self, url: URL) -> None:
        self.app = Flask(__name__)
        self.app.config["SQLALCHEMY_ENGINES"] = {"default": url}
        self.db = Lite(self.app)
        with self.app.app_context():
            self.engine = self.db.engine

    def nothing(self) -> None:
        with self.app.app_context():
            self.db.session  # noqa: B018


class AdvancedAlchemy(Peer):
    def __init__(self, url: URL) -> None:
        self.config = SQLAlchemySyncConfig(connection_string=url.render_as_string(hide_password=False))
        self.engine = self.config.get_engine()

    def nothing(self) -> None:
        with self.config.get_session():
            pass

    def read(self) -> None:
        with self.config.get_session() as session:
            session.get(User, KEY)

    def insert(self) -> None:
        with self.config.get_session() as session:
            session.add(User(name="new"))
            session.commit()


class Oslo(Peer):
    def __init__(self, url: URL) -> None:
        facade = enginefacade.transaction_context()
        facade.configure(connection=url.render_as_string(hide_password=False))
        self.engine = facade.writer.get_engine()

        @enginefacade.transaction_context_provider
        class Context:
            session: Session

        def nothing(context: Context) -> None:
            context.session  # noqa: B018

        def read(context: Context) -> None:
            context.session.get(User, KEY)

        def insert(context: Context) -> None:
            context.session.add(User(name="new"))

        self.context: Callable[[], Context] = Context
        self.nothing_in, self.read_in = facade.reader(nothing), facade.reader(read)
        self.insert_in = facade.writer(insert)

    def nothing(self) -> None:
        self.nothing_in(self.context())

    def read(self) -> None:
        self.read_in(self.context())

    def insert(self) -> None:
        self.insert_in(self.context())


class Zope(Peer):
    def __init__(self, url: URL) -> None:
        self.engine = create_engine(url)
        self.make = sessionmaker(self.engine)
        self.manager = transaction.TransactionManager(explicit=True)
        zope.sqlalchemy.register(self.make, transaction_manager=self.manager)

    def nothing(self) -> None:
        self.manager.begin()
        self.make()
        self.manager.commit()

    def read(self) -> None:
        self.manager.begin()
        self.make().get(User, KEY)
        self.manager.commit()

    def insert(self) -> None:
        self.manager.begin()
        self.make().add(User(name="new"))
        self.manager.commit()


class Tenure(Peer):
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, url: URL) -> None:
        self.db = Database(url, **self.options)
        self.engine = self.db.engine

    def nothing(self) -> None:
        with self.db.unit():
            pass

    def read(self) -> None:
        with self.db.unit() as session:
            session.get(User, KEY)

    def insert(self) -> None:
        with self.db.unit() as session:
            session.add(User(name="new"))

    def close(self) -> None:
        self.db.close()


class TenureUnguarded(Tenure):
    options = {"guards": "off"}  # noqa: RUF012


class TenureClassic(Tenure):
    options = {"hold": "transaction"}  # noqa: RUF012


class TenureDecorated(Tenure):
    def __init__(self, url: URL) -> None:
        super().__init__(url)

        def nothing(session: Session) -> None:
            pass

        def read(session: Session) -> None:
            session.get(User, KEY)

        def insert(session: Session) -> None:
            session.add(User(name="new"))

        for function in (nothing, read, insert):
            setattr(self, function.__name__, self.db.unit(function))


PEERS: dict[str, type[Peer]] = {
    BASE: Plain,
    TENURE: Tenure,
    DECORATED: TenureDecorated,
    UNGUARDED: TenureUnguarded,
    CLASSIC: TenureClassic,
    "with sessionmaker.begin()": Begun,
    "scoped_session + remove()": Scoped,
    "Flask-SQLAlchemy": FlaskSQLAlchemy,
    "Flask-SQLAlchemy-Lite": FlaskSQLAlchemyLite,
    "advanced-alchemy": AdvancedAlchemy,
    "oslo.db": Oslo,
    "zope.sqlalchemy": Zope,
}


def all_on(url: URL) -> dict[str, Peer]:
    """Each variant on the database at *url*, whose table is there."""
    found = {name: peer(url) for name, peer in PEERS.items()}
    in_memory = url.get_backend_name() == "sqlite"
    for number, peer in enumerate(found.values()):
        if in_memory or number == 0:
            models.create(peer.engine)
    return found
