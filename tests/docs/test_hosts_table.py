"""docs/reference/hosts.md is made by a run of the contract; here is what a run need not be made for."""

from contract import table
from contract.conftest import HOSTS


def test_the_table_of_hosts_is_up_to_date():
    """R22: every probe stands in the table, for every host, and none of them fails: else `make hosts` is due."""
    page = table.PAGE.read_text()
    rest, _, peers = page.partition("## What others do")
    ours, _, servers = rest.partition("## Servers at SIGTERM")
    head, *cells = _rows(ours)
    named, *ended = _rows(servers)

    assert head[2:] == list(HOSTS)
    assert [tuple(row[:2]) for row in cells] == [table.said(probe) for probe in table.probes()]
    assert {cell for row in cells + ended for cell in row[2:]} <= {table.YES, table.NONE}
    assert named[2:] == [name for names in table.servers().values() for name in names]
    assert table.NO in peers, "the probes can fail"


def _rows(text):
    return [[one.strip() for one in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
