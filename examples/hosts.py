"""The hosts on which the shop opens: for each its name, its server, and the kind of application that it is."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Host(NamedTuple):
    """``examples.<folder>.app`` has ``db``, ``shop``, ``app``, and ``main()``, which serves what ``app`` is until SIGTERM."""

    title: str
    server: str
    kind: Literal["wsgi", "asgi", "aiohttp", "sanic"]


DEFAULT = "webpy"
HOSTS = {
    "webpy": Host("web.py", "cheroot", "wsgi"),
    "wsgi": Host("WSGI", "cheroot", "wsgi"),
    "flask": Host("Flask", "cheroot", "wsgi"),
    "pyramid": Host("Pyramid", "cheroot", "wsgi"),
    "falcon": Host("Falcon", "cheroot", "wsgi"),
    "bottle": Host("Bottle", "cheroot", "wsgi"),
    "fastapi": Host("FastAPI", "uvicorn", "asgi"),
    "starlette": Host("Starlette", "uvicorn", "asgi"),
    "quart": Host("Quart", "hypercorn", "asgi"),
    "litestar": Host("Litestar", "uvicorn", "asgi"),
    "aiohttp": Host("aiohttp", "its own", "aiohttp"),
    "sanic": Host("Sanic", "its own", "sanic"),
    "asgi": Host("ASGI", "uvicorn", "asgi"),
}
