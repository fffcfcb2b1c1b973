"""``make demo``: what was asked for, on one host or on all, until it is over or interrupted; then the account, as a table."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from examples.hosts import DEFAULT, HOSTS
from examples.load import places
from examples.load.account import Facts, broken
from examples.load.clients import CLIENTS
from examples.load.compare import compare
from examples.load.places import Place
from examples.load.process import ServerFailed
from examples.load.run import Load, Progress
from examples.load.table import show

ALL = "all"
TOO_EARLY = "interrupted before it began"


@dataclass
class Wish:
    """What was asked for.

    Attributes:
        hosts: On which hosts, one after another.
        seconds: For how long on each; 0 until it is interrupted.
        stop: Set when it is interrupted.

    """

    hosts: list[str]
    seconds: float
    console: Console
    stop: threading.Event = field(default_factory=threading.Event)


def main() -> int:
    """Drive the shop on ``HOST`` for ``SECONDS`` on the database ``DB``; the exit status."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    host, asked = os.environ.get("HOST") or DEFAULT, os.environ.get("SECONDS")
    if host not in HOSTS and host != ALL:
        return _refuse(console, f"HOST={host}: give {', '.join(HOSTS)}, or {ALL}.")
    try:
        seconds = float(asked or (15 if host != ALL else 5))
    except ValueError:
        return _refuse(console, f"SECONDS={asked}: give a number of seconds; 0 runs until Ctrl-C.")
    wish = Wish(list(HOSTS) if host == ALL else [host], seconds, console)
    _listen(wish.stop)
    try:
        with places.place(os.environ.get("DB", "")) as place:
            return _all(wish, place) if host == ALL else _one(wish, place)
    except KeyboardInterrupt:
        return _refuse(console, "interrupted twice")
    except (places.NoPlace, ServerFailed, SQLAlchemyError) as error:
        return _refuse(console, TOO_EARLY if wish.stop.is_set() else str(error))


def _listen(stop: threading.Event) -> None:
    def interrupted(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever asks twice does not want to see the table

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)


def _one(wish: Wish, place: Place) -> int:
    host = wish.hosts[0]
    name = place.name if host == DEFAULT else f"{HOSTS[host].title}, {place.name}"
    with _log(wish.console) as log:
        if wish.stop.is_set():
            return _refuse(wish.console, TOO_EARLY)
        facts = _drive(wish, name, Load(("examples.watched", host), place.database(), log.file))
        title = f"{CLIENTS} clients on {name}: {facts.book.requests:,} requests in {facts.took:.1f} s, {facts.pace:,.0f} a second"
        log.wanted = bool(show(facts, wish.console, title))
    return int(log.wanted)


def _all(wish: Wish, place: Place) -> int:
    """One host after another, then one table of all; a host that does not start is a failure, and the next one goes on."""
    found: dict[str, Facts | str] = {}
    for host in wish.hosts:
        if wish.stop.is_set():
            break
        with _log(wish.console) as log:
            try:
                facts = _drive(
                    wish, f"{HOSTS[host].title}, {place.name}", Load(("examples.watched", host), place.database(), log.file)
                )
            except ServerFailed as error:
                if wish.stop.is_set():
                    break
                found[host], log.wanted = str(error), True
            else:
                found[host], log.wanted = facts, bool(broken(facts))
    if not found:
        return _refuse(wish.console, TOO_EARLY)
    return compare(found, wish.console, f"{CLIENTS} clients on each host, one after another, on {place.name}")


@dataclass
class Log:
    """The file for what the server writes; kept if it is wanted."""

    file: Path
    wanted: bool = False


@contextmanager
def _log(console: Console) -> Iterator[Log]:
    with tempfile.TemporaryDirectory(prefix="tenure-demo-") as folder:
        log = Log(Path(folder) / "server.log")
        yield log
        if log.wanted:
            handle, kept = tempfile.mkstemp(prefix=f"demo-{os.getpid()}-", suffix=".log")
            os.close(handle)
            shutil.copy(log.file, kept)
            console.print(f"  what the server wrote meanwhile: {kept}", highlight=False, soft_wrap=True)


def _drive(wish: Wish, name: str, begun: Load) -> Facts:
    with begun as load:
        how_long = f"for {wish.seconds:g} s" if wish.seconds else "until Ctrl-C"
        line = f"{load.server.address} on {name}: {CLIENTS} clients, {how_long}"
        wish.console.print(line, highlight=False, soft_wrap=True)
        load.start()
        with Progress(wish.console) as progress:
            while load.server.runs and not wish.stop.wait(min(progress.every, wish.seconds or progress.every)):
                progress(load)
                if wish.seconds and load.is_enough(wish.seconds):
                    break
        whole = bool(wish.seconds) and load.age >= wish.seconds
        return load.end(whole=whole, interrupted=wish.stop.is_set())


def _refuse(console: Console, why: str) -> int:
    console.print(f"✗ {why}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    return 2
