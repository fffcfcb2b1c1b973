"""web.py: an application that is made twice in one process."""

import web
from sqlalchemy.orm import Session

import tenure
from tenure.web.webpy import processor


class Where:
    """A handler as a module has it: one class for all applications."""

    def GET(self, session: Session) -> str:  # noqa: N802 - web.py calls it so
        return session.get_bind().url.database


def application(db):
    app = web.application(("/", "Where"), globals(), autoreload=False)
    app.add_processor(processor(db))
    return app


def test_each_application_gives_its_handlers_its_own_database(tmp_path, watch):
    """A factory may make the application anew, as tests do: each time its handlers get the session of its own database."""
    files = [str(tmp_path / name) for name in ("one.db", "two.db")]
    databases = [tenure.Database(f"sqlite:///{file}") for file in files]
    for db in databases:
        watch(db)
    one, two = (application(db) for db in databases)
    answers = [app.request("/").data.decode() for app in (one, two, one)]

    assert answers == [files[0], files[1], files[0]]


def test_a_mounted_application_works_with_the_unit_of_the_one_around_it(tmp_path, watch):
    """Mounted with a processor of its own for the same database, its handlers have the session of the request."""
    db = tenure.Database(f"sqlite:///{tmp_path / 'one.db'}")
    watch(db)
    around = web.application(("/in", application(db)), {}, autoreload=False)
    around.add_processor(processor(db))

    assert around.request("/in/").data.decode() == str(tmp_path / "one.db")
