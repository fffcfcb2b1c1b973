"""What is said of each driver in greenlets, for those that are not installed here, too."""

from types import SimpleNamespace

import pytest

from tenure.engines import green


@pytest.mark.parametrize(
    ("name", "remedies"),
    [
        ("pymysql", []),
        ("pg8000", []),
        ("mysqldb", ["Use PyMySQL."]),
        ("mariadbconnector", ["Use PyMySQL."]),
        ("pyodbc", ["Use a driver that is written in Python."]),
        ("cx_oracle", ["Use python-oracledb in its thin mode."]),
        ("pysqlite", ["Wait for nothing while a transaction is open, or use a server."]),
    ],
)
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_drivers_that_block(monkeypatch, library, name, remedies):
    """R29: drivers written in Python yield where sockets are patched, and nothing is said of them; those in C block, and each has its remedy."""
    monkeypatch.setattr(green, f"_patched_by_{library}", lambda _name: True)
    found = list(green.obstacles(library, SimpleNamespace(dialect=SimpleNamespace(driver=name))))

    assert [one.remedy for one in found] == remedies
    assert all(one.what == f"{name} waits in C" for one in found)
