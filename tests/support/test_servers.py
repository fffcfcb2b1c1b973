"""The servers of the tests: there, or loudly missing."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from support import servers

CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.mark.drivers("psycopg", "pymysql")
def test_a_lock_that_a_test_left_does_not_stop_the_next(driver, url):
    """Cleaning ends the connection that still holds a lock on the tables."""
    engine = sa.create_engine(url)
    left = engine.connect()
    left.execute(sa.text("INSERT INTO users (name, balance) VALUES ('ada', 0)"))

    servers.clean(driver)

    left.invalidate()
    left.close()
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM users")) == 0
    engine.dispose()


@pytest.mark.parametrize(
    ("required", "outcomes"),
    [
        pytest.param("", {"skipped": 3, "passed": 2}, id="skip"),
        pytest.param("1", {"errors": 3, "passed": 2}, id="fail"),
    ],
)
def test_a_missing_server_is_loud(pytester, monkeypatch, required, outcomes):
    """Without a server its tests are skipped and the last lines say so; with TENURE_REQUIRE_SERVICES=1 they fail."""
    monkeypatch.setenv("TENURE_TEST_MARIADB", "mysql://root:s3cret@127.0.0.1:1")
    monkeypatch.setenv("TENURE_REQUIRE_SERVICES", required)
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini(f"[pytest]\npythonpath = {CONFTEST.parent}\nmarkers =\n  dialects(*names)\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.dialects("mysql", "sqlite")
        async def test_it(face):
            async with face.unit():
                pass
        """
    )

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rs")

    result.assert_outcomes(**outcomes)
    result.stdout.fnmatch_lines(["*MariaDB is not there: mysql+pymysql://root:[*][*][*]@127.0.0.1:1 does not answer*"])
    assert "s3cret" not in result.stdout.str()
    if not required:
        result.stdout.fnmatch_lines(["!! MariaDB IS NOT THERE: 3 tests were skipped*"])


def test_an_unknown_driver_is_refused(pytester):
    """A typing error in --drivers does not run nothing."""
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini(f"[pytest]\npythonpath = {CONFTEST.parent}\n")

    result = pytester.runpytest_subprocess("--drivers", "sqlite,sqlight")

    result.stderr.fnmatch_lines(["*--drivers: sqlight is none of: sqlite, psycopg*"])
