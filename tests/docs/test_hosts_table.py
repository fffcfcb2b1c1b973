"""docs/reference/hosts.md is made by a run of the contract; here is what a run need not be made for."""

from contract import table
from contract.conftest import HOSTS


def test_the_table_of_hosts_is_up_to_date():
    """R22: every probe stands in the table, for every host, and none of them fails: else `make hosts` is due."""
    page = table.PAGE.read_text()
    ours, _, peers = page.partition("## What others do")
    rows = [line.strip("|").split(" | ") for line in ours.splitlines() if line.startswith("| ")]
    head, *cells = [[one.strip() for one in row] for row in rows]

    assert head[2:] == list(HOSTS)
    assert [tuple(row[:2]) for row in cells] == [table.said(probe) for probe in table.probes()]
    assert {cell for row in cells for cell in row[2:]} <= {table.YES, table.NONE}
    assert table.NO in peers, "the probes can fail"
