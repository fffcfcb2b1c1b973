"""The pytest plugin that puts ``swap.make`` in place of SQLAlchemy's ``fixture_session``, and reports.

Each process writes its counts into the folder ``TENURE_UPSTREAM_RESULTS``; the one that reports also writes the outcomes.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from upstream import swap

RESULTS = Path(os.environ["TENURE_UPSTREAM_RESULTS"])

counted = Counter(swapped=0, left=0)
outcomes: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """SQLAlchemy wants citext and hstore, which the embedded server does not have and the ORM tests do not need."""
    from sqlalchemy.dialects.postgresql import provision

    getattr(provision, "_extensions", []).clear()


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Swap once SQLAlchemy's own plugin is set up, and before the test modules import ``fixture_session``."""
    from sqlalchemy import orm
    from sqlalchemy.orm.events import SessionEvents
    from sqlalchemy.testing import config, engines, fixtures
    from sqlalchemy.testing.fixtures import orm as room

    testing_engine, close_all_sessions, clear = engines.testing_engine, room.close_all_sessions, SessionEvents._clear

    def prepared_engine(url: Any = None, options: Any = None, **kw: Any) -> Any:
        made = testing_engine(url, options, **kw)
        if not (options or {}).get("sqlite_savepoint"):  # that one has its own rule for when a transaction begins
            swap.prepare(getattr(made, "sync_engine", made))
        return made

    def fixture_session(**kw: Any) -> orm.Session:
        kw.setdefault("autoflush", True)
        kw.setdefault("expire_on_commit", True)
        bind = kw.pop("bind", config.db)
        made = swap.make(bind, **kw)
        counted["left" if made is None else "swapped"] += 1
        if made is None:
            made = orm.Session(bind, **kw)
        room._fixture_sessions.add(made)
        return made

    def close_sessions_and_units() -> None:
        swap.end()
        close_all_sessions()

    def clear_session_events() -> None:
        ours = swap.own_listeners()
        clear()
        swap.listen(ours)

    engines.testing_engine = prepared_engine
    room.fixture_session = fixtures.fixture_session = fixture_session
    room.close_all_sessions = fixtures.close_all_sessions = close_sessions_and_units
    SessionEvents._clear = clear_session_events
    if config.db is not None:
        swap.prepare(config.db)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test has passed when its call has; it fails by its setup or teardown, too."""
    if report.outcome != "passed" or report.when == "call":
        outcomes[report.outcome][report.nodeid] = report.longreprtext if report.failed else ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    (RESULTS / f"{os.getpid()}.count").write_text(json.dumps(counted))
    if not hasattr(session.config, "workerinput"):
        (RESULTS / "outcomes.json").write_text(json.dumps(outcomes))
