"""The adapters of web frameworks, as their users' type checker sees them."""

from collections.abc import AsyncIterator, Callable
from typing import Any, assert_type

from aiohttp import web
from fastapi.requests import HTTPConnection
from flask import Flask
from litestar import Litestar
from quart import Quart
from sanic import Sanic
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette

from tenure import AsyncDatabase, Database
from tenure.web import asgi
from tenure.web import flask as on_flask
from tenure.web import quart as on_quart
from tenure.web import sanic as on_sanic
from tenure.web.aiohttp import UnitMiddleware as AiohttpUnits
from tenure.web.aiohttp import middleware
from tenure.web.fastapi import session_of
from tenure.web.litestar import TenurePlugin
from tenure.web.starlette import UnitMiddleware

db = Database("sqlite:///app.db")
aio = AsyncDatabase("sqlite+aiosqlite:///app.db")

# aiohttp
units = middleware(aio, commit_if=lambda status: status < 500)
assert_type(units, AiohttpUnits)
served = web.Application(middlewares=[units])
served.cleanup_ctx.append(units.closing)
middleware(db, commit="explicit")

# Litestar
plugin = TenurePlugin(aio, close=8.0, position_cookie="seen")
assert_type(plugin, TenurePlugin)
Litestar(plugins=[plugin, TenurePlugin(db, session_name="other")])

# Sanic
sanic: Any = Sanic("app")
on_sanic.Tenure(sanic, aio, close=True)
on_sanic.Tenure(database=db).init_app(sanic)

# Flask and Quart
flask = Flask("app")
on_flask.Tenure(flask, db, commit="explicit")
on_flask.Tenure(database=db).init_app(flask)
on_flask.Tenure().init_app(flask, db)
quart = Quart("app")
on_quart.Tenure(quart, aio, close=True)
on_quart.Tenure().init_app(quart, db)

# Starlette, FastAPI and any ASGI application
starlette = Starlette()
starlette.add_middleware(UnitMiddleware, aio, close=True)
assert_type(asgi.UnitMiddleware(starlette, aio, readonly=True), asgi.UnitMiddleware)
assert_type(session_of(db), Callable[[HTTPConnection], AsyncIterator[Session]])
assert_type(session_of(aio), Callable[[HTTPConnection], AsyncIterator[AsyncSession]])
