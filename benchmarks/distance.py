"""A server at a distance: ``python -m benchmarks.distance SOCKET SECONDS`` is a proxy that delays whatever is sent, each way.

Imported it is the row that reads through such a proxy.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session

from benchmarks import async_peers, models, peers
from benchmarks.bench import Bench, program
from benchmarks.models import KEY, User
from benchmarks.rounds import measure, measure_async

DELAY = 0.001  # seconds each way
AUTOCOMMIT = "floor: Session, engine in AUTOCOMMIT"
_PEERS = (peers.BASE, peers.TENURE, peers.CLASSIC, "with sessionmaker.begin()", "Flask-SQLAlchemy", "advanced-alchemy")


def far(bench: Bench) -> None:
    """One read at 1 ms each way."""
    models.create(create_engine(bench.on("psycopg")))
    folder = bench.postgresql.query["host"]
    with program("distance", f"{folder}/.s.PGSQL.5432", DELAY) as port:
        there = bench.postgresql.difference_update_query(["host"]).set(host="127.0.0.1", port=port)
        _blocking(bench, there.set(drivername="postgresql+psycopg"))
        _asyncpg(bench, there.set(drivername="postgresql+asyncpg"))


def _blocking(bench: Bench, url: URL) -> None:
    variants = {name: peers.PEERS[name](url) for name in _PEERS}
    pinged = create_engine(url, pool_pre_ping=True)
    alone = create_engine(url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)

    def read(engine: Any) -> Any:
        def work() -> None:
            with Session(engine) as session:
                session.get(User, KEY)

        return work

    work = {name: peer.read for name, peer in variants.items()}
    work |= {"with Session(engine), pool_pre_ping": read(pinged), AUTOCOMMIT: read(alone)}
    found = measure(work, bench.rounds)
    bench.report.timed(f"One read by primary key, PostgreSQL at {DELAY * 1e3:.0f} ms each way (psycopg)", found)
    bench.report.target("one read at 1 ms each way: rate / with Session(engine)", 2.5, 1 / found[peers.TENURE].median, least=True)
    for peer in variants.values():
        peer.close()
    pinged.dispose()
    alone.dispose()


def _asyncpg(bench: Bench, url: URL) -> None:
    with asyncio.Runner() as runner:

        async def made() -> dict[str, Any]:
            return {name: async_peers.PEERS[name](url) for name in (async_peers.BASE, async_peers.TENURE)}

        variants = runner.run(made())
        found = measure_async({name: peer.read for name, peer in variants.items()}, bench.rounds, runner)
        bench.report.timed(f"One read by primary key, PostgreSQL at {DELAY * 1e3:.0f} ms each way, asyncio (asyncpg)", found)
        for peer in variants.values():
            runner.run(peer.close())


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.proxy import Proxy

    with Proxy(sys.argv[1]) as proxy:
        proxy.delay(float(sys.argv[2]))
        print(proxy.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
