"""The application and the database the wrong way round, wherever both are asked for."""

import asyncio

import falcon
import flask
import pytest
import quart
import sanic
from starlette.applications import Starlette

from tenure import AsyncDatabase, Database
from tenure.exceptions import BadOption
from tenure.web import asgi, wsgi
from tenure.web import falcon as units_falcon
from tenure.web import flask as units_flask
from tenure.web import quart as units_quart
from tenure.web import sanic as units_sanic

CALLS = {
    "flask": (units_flask.Tenure, flask.Flask, Database, "Flask application"),
    "quart": (units_quart.Tenure, quart.Quart, AsyncDatabase, "Quart application"),
    "sanic": (units_sanic.Tenure, sanic.Sanic, AsyncDatabase, "Sanic application"),
    "falcon": (units_falcon.in_units, lambda _name: falcon.App(), Database, "Falcon application"),
    "wsgi": (wsgi.UnitMiddleware, flask.Flask, Database, "given the database as the application"),
    "asgi": (asgi.UnitMiddleware, lambda _name: Starlette(), AsyncDatabase, "given the database as the application"),
}


@pytest.mark.parametrize("host", CALLS)
def test_swapped(host):
    """R50: what was given is named, and what is asked for."""
    call, made, kind, says = CALLS[host]
    db = kind("sqlite://" if kind is Database else "sqlite+aiosqlite://")
    with pytest.raises(BadOption, match=says):
        call(db, made("swapped"))
    closing = db.close()
    if closing is not None:
        asyncio.run(closing)
