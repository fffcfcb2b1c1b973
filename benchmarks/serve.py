"""A web server with one endpoint, which reads one row and then does other work: ``python -m benchmarks.serve STACK WAY URL POOL WORK CLIENTS``.

*STACK* is ``flask`` (on cheroot) or ``fastapi`` (on uvicorn). *WAY* is who ends the session: ``usual``, the framework at the end of
the request; ``early``, the handler by hand, before the other work; ``tenure``. The handlers of ``usual`` and ``tenure`` are alike.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import make_url

from benchmarks.models import KEY, User


def flask_app(way: str, url: str, pool: int, work: float) -> Any:
    """The WSGI application."""
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from tenure import Database
    from tenure.web.flask import Tenure

    options = {"pool_size": pool, "max_overflow": 0}
    app = Flask("benchmark")
    if way == "tenure":
        db: Any = Database(url, **options)
        Tenure(app, db)
    else:
        app.config.update(SQLALCHEMY_DATABASE_URI=make_url(url), SQLALCHEMY_ENGINE_OPTIONS=options)
        db = SQLAlchemy(app)

    @app.get("/")
    def read() -> str:
        name: str = db.session.get(User, KEY).name
        if way == "early":
            db.session.remove()
        time.sleep(work)
        return name

    return app


def fastapi_app(way: str, url: str, pool: int, work: float) -> Any:
    """The ASGI application."""
    from fastapi import Depends, FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    from tenure import AsyncDatabase
    from tenure.web.fastapi import UnitMiddleware
    from tenure.web.fastapi import session_of as tenures

    options = {"pool_size": pool, "max_overflow": 0}
    db = AsyncDatabase(url, **options)
    engine = create_async_engine(url, **options)

    async def usual() -> AsyncIterator[Any]:
        async with AsyncSession(engine) as session:
            yield session

    app = FastAPI()
    session_of = Depends(usual)
    if way == "tenure":
        app.add_middleware(UnitMiddleware, db)
        session_of = Depends(tenures(db))

    @app.get("/")
    async def read(session: Any = session_of) -> str:
        user = await session.get(User, KEY)
        name: str = user.name
        if way == "early":
            await session.close()
        await asyncio.sleep(work)
        return name

    return app


def main() -> None:
    stack, way, url, pool, work, clients = sys.argv[1:]
    if stack == "flask":
        from cheroot.wsgi import Server

        app = flask_app(way, url, int(pool), float(work))
        server = Server(("127.0.0.1", 0), app, numthreads=int(clients), max=int(clients), request_queue_size=1024)
        server.prepare()
        print(server.bind_addr[1], flush=True)
        server.serve()
    else:
        import uvicorn

        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        print(listener.getsockname()[1], flush=True)
        app = fastapi_app(way, url, int(pool), float(work))
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listener])


if __name__ == "__main__":
    main()
