"""The table of hosts by probes, made by a run of the contract: ``make hosts`` writes docs/reference/hosts.md."""

import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "hosts.md"
WRITES = "TENURE_HOSTS_TABLE"
"""Set in the environment, a run of the contract includes the peers, and ends with writing the page."""

OF_ANYBODY = frozenset(
    {
        "test_the_row_is_there_with_the_status_line",
        "test_a_failing_commit_is_a_500",
        "test_the_table_of_outcomes",
        "test_a_body_that_reads_holds_nothing_in_between",
        "test_a_client_that_leaves_ends_the_unit",
        "test_a_body_that_raises_ends_the_unit",
        "test_a_request_without_sql_opens_nothing",
        "test_answers_without_a_body",
        "test_a_large_body_is_sent_as_it_is_made",
        "test_an_upload_holds_nothing_while_it_comes",
    }
)
"""Those that ask for nothing which only tenure has."""

MODULES = ("test_contract", "test_answers", "test_files", "test_clients")
YES, NO, NONE = "✓", "**no**", "·"

HEAD = """# Hosts

One set of probes runs over HTTP against every host, on a real server, with PostgreSQL or SQLite below it. `make hosts` runs them and writes
this page; a test fails when a host or a probe is missing here. ✓: as the probe says, on every driver that the host can use.

## Every host

"""

DIFFERENCES = """
What differs without changing any of these answers:

* A body that a client leaves is closed at once, and its `finally` can still read, on: {closing}. On the others the garbage collector closes it;
  its unit has ended all the same.
* These make the whole body for a client that has left: {deaf}. Their units end with it.
* A part of a file is sent, where it was asked for, by: {ranged}. The others send all of it, unless a static route does it.
* The body of a request is complete before the handler is called on {ahead}. One that was broken off is never seen there.
* Falcon has no applications within applications. WebSockets are there on: {talking}.
* `HEAD` wants a handler of its own on FastAPI, Litestar and Falcon, which answer 405.
* With a `Database` on an event loop there are 20 streams, not 50: each takes one of the loop's 40 threads while it waits.

## Servers at SIGTERM

The signal comes to a server in a process of its own while eight clients ask without a pause. ✓: as the probe says, within seconds, and with the
status that the server has in peace (uvicorn's is the signal itself, the others' 0); recipe and hook are those of
[Shutdown](../how-to/shutdown.md).

{servers}
* On an event loop all that is stored was answered. hypercorn and the threads may lose an answer: the work of the last requests is stored, and
  their clients hear nothing.
* Below Python 3.12 aiohttp waits `shutdown_timeout` seconds for a connection that came in the moment of the signal:
  [aiohttp](../how-to/aiohttp.md).

## What others do

The probes that can be put to any integration, put to six, each in the way that its documentation shows and with pools of the same size. In
Flask-SQLAlchemy's application the last line of each view is `commit()`. On FastAPI stand a dependency, `with Session(engine) as session,
session.begin(): yield session`; fastapi-async-sqlalchemy with `commit_on_exit`; and context-async-sqlalchemy's middleware for FastAPI. On
Litestar it is advanced-alchemy's plugin with `before_send_handler="autocommit"`, and on Pyramid zope.sqlalchemy with pyramid_tm.

"""


def probes() -> list[Callable[..., object]]:
    """All probes, in the order in which they stand."""
    modules = [importlib.import_module(f"contract.{name}") for name in MODULES]
    return [value for module in modules for name, value in vars(module).items() if name.startswith("test_")]


def servers() -> dict[str, list[str]]:
    """The probes with a server in a process of its own, and which each was put to."""
    module = importlib.import_module("contract.test_sigterm")
    marks = {name: value.pytestmark for name, value in vars(module).items() if name.startswith("test_")}
    return {name: list(next(mark.args[1] for mark in found if mark.name == "parametrize")) for name, found in marks.items()}


def said(probe: Callable[..., object]) -> tuple[str, str]:
    """The numbers of the requirements, and the sentence, of a probe's docstring."""
    numbers, _, sentence = inspect.cleandoc(probe.__doc__ or "").partition(": ")
    return numbers, " ".join(sentence.split())


def table(probes: Iterable[Callable[..., object]], columns: Iterable[str], cells: Mapping[tuple[str, str], set[bool]]) -> str:
    """A row for each of *probes* that was put to one of *columns*."""
    columns = list(columns)
    lines = [f"| | probe | {' | '.join(columns)} |", "|---|---|" + ":-:|" * len(columns)]
    for probe in probes:
        results = [cells.get((probe.__name__, column)) for column in columns]
        if any(results):
            shown = [NONE if not result else YES if result == {True} else NO for result in results]
            lines.append(f"| {' | '.join((*said(probe), *shown))} |")
    return "\n".join(lines) + "\n"


def write(hosts: Mapping[str, object], peers: Mapping[str, object], cells) -> None:
    """Write the page."""
    closing = ", ".join(name for name, host in hosts.items() if set(host.faces) <= set(host.closes_bodies))
    deaf = ", ".join(name for name, host in hosts.items() if not host.ends_bodies)
    having = {
        name: ", ".join(key for key, host in hosts.items() if getattr(host, name))
        for name in ("ranges", "reads_ahead", "sockets")
    }
    module = importlib.import_module("contract.test_sigterm")
    ended = table([getattr(module, name) for name in servers()], [one for names in servers().values() for one in names], cells)
    more = {"ranged": having["ranges"], "ahead": having["reads_ahead"], "talking": having["sockets"]}
    rest = DIFFERENCES.format(closing=closing, deaf=deaf, servers=ended, **more)
    PAGE.write_text(HEAD + table(probes(), hosts, cells) + rest + table(probes(), peers, cells))


def wanted() -> bool:
    """Whether this run is to write the page."""
    return bool(os.environ.get(WRITES))
