"""One run from the first to the last: servers, nodes, clients and kills; then everything ends, and the account is taken."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from sqlalchemy import URL, func, select
from sqlalchemy.orm import Session

from examples.cluster import account
from examples.cluster.account import Facts, Run
from examples.cluster.broker import Broker, broker
from examples.cluster.chaos import Chaos
from examples.cluster.clients import Clients
from examples.cluster.ledger import Ledger
from examples.cluster.models import CUSTOMERS, Base, Customer, Order, Receipt, messages
from examples.cluster.nodes import Nodes, nodes
from examples.cluster.servers import PgBouncer, Standby, servers
from examples.cluster.stop import ClusterError, stop, until
from examples.cluster.watch import Watch, left
from examples.load.places import place
from tenure import Database
from tenure.jobs.clock import Now
from tenure.jobs.outbox import Outbox


@dataclass
class Wish:
    """What was asked for.

    Attributes:
        seconds: For how long orders are placed; 0 until Ctrl-C.
        seed: Of the dice.
        kill: Which roles and servers are killed.
        amqp: Which RabbitMQ, as `broker` has it.

    """

    seconds: float
    seed: int
    kill: Sequence[str]
    amqp: str


@dataclass
class Cluster:
    """All that runs."""

    db: Database  # on the primary itself
    primary: URL
    standby: Standby
    pgbouncer: PgBouncer
    broker: Broker
    queue: str
    ledger: Ledger
    nodes: Nodes


@contextmanager
def cluster(wish: Wish, folder: Path, console: Console) -> Iterator[Cluster]:
    """Start everything, and leave nothing."""
    queue = f"receipts-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        rabbitmq = stack.enter_context(broker(wish.amqp, folder / "rabbitmq"))
        stack.callback(_drop, rabbitmq, queue)
        _say(console, f"RabbitMQ: {rabbitmq.shown}" + (", started here" if rabbitmq.program else ""))
        stop.check()
        primary = stack.enter_context(place("postgres")).database()
        stop.check()
        db = Database(primary, pool_size=2)
        stack.callback(db.close)
        Base.metadata.create_all(db.engine)
        db.unit(_customers)()
        standby, pgbouncer = stack.enter_context(servers(primary, folder))
        _say(console, "PostgreSQL with a standby, and PgBouncer between")
        ledger = Ledger(folder / "ledger.jsonl")
        told = {"CLUSTER_DATABASE": _text(pgbouncer.url), "CLUSTER_BROKER": rabbitmq.url, "CLUSTER_QUEUE": queue}
        made = stack.enter_context(nodes(ledger, told, _text(pgbouncer.standby)))
        made.start()
        _say(console, ", ".join(f"{node}: http://127.0.0.1:{port}/" for node, port in made.ports.items()))
        yield Cluster(db, primary, standby, pgbouncer, rabbitmq, queue, ledger, made)


def drive(wish: Wish, here: Cluster, console: Console) -> Facts:
    """Let clients order and processes die, then let everything come to its end; what is known then."""
    victims = [one for one in (here.standby, here.pgbouncer, here.broker.program) if one and one.name in wish.kill]
    began = time.monotonic()
    chaos = Chaos(
        here.nodes, victims, wish.kill, wish.seed, lambda line: _say(console, f"{time.monotonic() - began:5.1f} s  {line}")
    )
    clients, watch = Clients(here.nodes.ports, wish.seed), Watch(here.pgbouncer)
    parts = (watch, clients, chaos)
    for part in parts:
        part.start()
    stop.runs = True
    try:
        until(lambda: stop.asked or chaos.error or 0 < wish.seconds <= time.monotonic() - began, float("inf"))
        took = time.monotonic() - began
        _say(console, f"{took:5.1f} s  no more orders; what is under way comes to its end")
        chaos.end()
        clients.end()
        until(lambda: clients.ended, clients.patience)
        until(lambda: all(one.is_up for one in here.nodes.processes))
        until(lambda: _is_done(here))
    finally:
        for part in reversed(parts):
            part.end()
    if chaos.error is not None:
        raise ClusterError(f"what was killed did not start again: {chaos.error}") from chaos.error
    ended = here.db.unit(_now)()
    statuses = here.nodes.end()
    until(lambda: not left(here.pgbouncer, here.primary).total(), 5)
    lines = here.ledger.lines
    return Facts(
        book=clients.book,
        rows=account.read(here.db),
        mails=Counter(line["order"] for line in lines("mail")),
        begun=[Run(line["tick"], line["node"], line["process"]) for line in lines("night")],
        ends=lines("end"),
        statuses=statuses,
        killed=chaos.killed,
        dead=chaos.dead,
        outages=chaos.outages,
        queued=here.broker.waiting(here.queue),
        most=watch.most,
        left=left(here.pgbouncer, here.primary),
        ended=ended,
        took=took,
    )


def _customers(session: Session) -> None:
    session.add_all(Customer(id=number + 1) for number in range(CUSTOMERS))


def _is_done(here: Cluster) -> bool:
    """Whether every order has its receipt, and no message waits to be sent once more."""
    time.sleep(0.1)
    with here.db.unit() as session:
        open_orders = session.scalar(select(func.count()).select_from(Order).outerjoin(Receipt).where(Receipt.order_id.is_(None)))
    if open_orders or Outbox(here.db, messages).numbers().pending:
        return False
    return not here.broker.trouble() and not here.broker.waiting(here.queue)


def _now(session: Session) -> float:
    return session.scalars(select(Now())).one()


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _drop(rabbitmq: Broker, queue: str) -> None:
    try:
        rabbitmq.drop(queue)
    except Exception:  # it does not answer any more, and the account has said so
        return
