"""web.py: how handlers get their session, when applications are many and requests come at once."""

import threading

import web
from sqlalchemy.orm import Session

import tenure
from tenure.web import webpy_handlers
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


def test_the_first_requests_may_come_at_once(tmp_path, watch, monkeypatch):
    """While one request fills in the handlers another comes: it finds its own filled in too, not half of them."""
    db = tenure.Database(f"sqlite:///{tmp_path / 'one.db'}")
    watch(db)

    class Fresh:
        def GET(self, session: Session) -> str:  # noqa: N802 - web.py calls it so
            return "filled in"

    app = web.application(("/", Fresh), {}, autoreload=False)
    app.add_processor(processor(db))
    entered, second = threading.Event(), threading.Event()
    resolve = webpy_handlers._handler

    def slowly(target, names):
        if not entered.is_set():
            entered.set()
            second.wait(5)
        return resolve(target, names)

    monkeypatch.setattr(webpy_handlers, "_handler", slowly)
    answers = []
    first = threading.Thread(target=lambda: answers.append(app.request("/").data))
    first.start()
    entered.wait(5)
    answers.append(app.request("/").data)
    second.set()
    first.join()

    assert answers == [b"filled in", b"filled in"]
