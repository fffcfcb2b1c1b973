"""An application of Flask's with an extension for SQLAlchemy, as the tests of both extensions see it."""

from typing import Any, Self

import flask
import sqlalchemy as sa

from tenure import Database
from tenure.web.flask import adopt


class AdoptedShop:
    """Its application `app`, extension `db` and model `Thing` are made by the class for one extension."""

    app: flask.Flask
    db: Any
    Thing: Any
    database: Database | None

    def adopt(self, **options: Any) -> Self:
        self.database = adopt(self.app, **options)
        return self

    def stored(self) -> list[str]:
        """What another connection sees."""
        with self.app.app_context():
            engine = sa.create_engine(self.db.engine.url)
        with engine.connect() as connection:
            names = sorted(connection.scalars(sa.select(self.Thing.name)))
        engine.dispose()
        return names

    def page(self, view: Any) -> Any:
        """The answer of a view, which may be one of several."""
        if not self.app.view_functions.keys() - {"static"}:
            self.app.add_url_rule("/", "page", view)
        self.app.view_functions["page"] = view
        return self.app.test_client().get("/")
