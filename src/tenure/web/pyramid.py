"""Pyramid: ``config.include("tenure.web.pyramid")``, with the database in the setting ``tenure.db``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

from pyramid import httpexceptions
from pyramid.config import global_registries
from pyramid.events import ApplicationCreated
from pyramid.tweens import EXCVIEW, INGRESS
from sqlalchemy import URL
from sqlalchemy.orm import Session

from tenure.core.database import Database
from tenure.exceptions import BadOption
from tenure.web.answers import refusal
from tenure.web.blocking import BlockingBody, BlockingBoundary, BlockingRequest
from tenure.web.boundary import Rules
from tenure.web.wsgi import is_whole

_answers: Any = httpexceptions  # without types
_TWEEN = "tenure.web.pyramid.tween"
_RULES = Rules.__optional_keys__
_SAID = {"true": True, "false": False}
_DATABASE, _BOUNDARY, _AROUND = "tenure.db", "tenure.boundary", "tenure.around"  # in the registry of an application


def includeme(config: Any) -> None:
    """What ``config.include("tenure.web.pyramid")`` does: each request is a unit, and its session is ``request.dbsession``.

    Settings:
        tenure.db: A ``Database``, or the URL of one; it is then ``registry["tenure.db"]``.
        tenure.commit_if: Replaces the rule that a status below 400 commits. A function, or the dotted name of one.
        tenure.commit: ``"auto"``, or ``"explicit"`` for code that calls ``commit()`` itself.
        tenure.position_cookie: Name of a cookie by which a client that has written sees its write on a replica. Default: none.
        tenure.readonly, tenure.timeout, tenure.settings: As in ``Boundary``: a value, or a function of the environ, or the dotted
            name of one.

    Raises:
        BadOption: A setting is missing, or has a wrong type or value, or the application has been made already.

    """
    settings, registry = config.get_settings(), config.registry
    if registry in global_registries:
        raise BadOption("the application has been made already. Include tenure.web.pyramid before config.make_wsgi_app().")
    if _DATABASE in registry:
        raise BadOption(f"{registry[_DATABASE].name!r} is included already. Leave one config.include('tenure.web.pyramid') out.")
    if (given := settings.get(_DATABASE)) is None:
        raise BadOption(f"the setting {_DATABASE!r} is missing. Set it to a Database, or to its URL, before the include.")
    if wrong := [one for one in settings if one.startswith("tenure.") and one != _DATABASE and one[7:] not in _RULES]:
        raise BadOption(f"the setting {wrong[0]!r} is none of {', '.join(sorted(f'tenure.{name}' for name in _RULES))}.")
    database: Any = Database(given) if isinstance(given, (str, URL)) else given
    rules = {name: _read(name, given) for name in _RULES if (given := settings.get(f"tenure.{name}")) is not None}
    registry[_BOUNDARY] = BlockingBoundary(database, **rules)
    registry[_DATABASE] = database
    config.add_request_method(_dbsession, "dbsession", property=True)
    config.add_tween(_TWEEN, under=INGRESS, over=EXCVIEW)
    config.add_subscriber(_check, ApplicationCreated)


def _read(name: str, given: Any) -> Any:
    """A setting, which is text in an .ini file: a value, or the dotted name of a function."""
    if not isinstance(given, str) or name in ("commit", "position_cookie"):
        return given
    with suppress(ValueError):
        return float(given)
    said = _SAID.get(given.lower())
    return resolve_name(given) if said is None else said


def _check(event: Any) -> None:
    if _AROUND not in event.app.registry:
        raise BadOption(f"the setting 'pyramid.tweens' leaves {_TWEEN} out. Write it before {EXCVIEW}.")


def _dbsession(request: Any) -> Session:
    """The session of the request's unit."""
    database: Database = request.registry[_DATABASE]
    return database.session


def tween(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """What stands around the exception views: it goes by what they answer, and gives them what COMMIT raises."""
    boundary: BlockingBoundary = registry[_BOUNDARY]
    registry[_AROUND] = True

    def around(request: Any) -> Any:
        if boundary.inside():  # a subrequest, or an application within another
            return handler(request)
        environ = request.environ
        name = f"{request.method} {environ['SCRIPT_NAME']}{environ['PATH_INFO']}"
        begun = BlockingRequest(boundary, name, environ.get("HTTP_COOKIE"), environ)

        def over(_request: Any) -> None:
            _over(begun)

        request.add_finished_callback(over)  # the first of them, and after all response callbacks
        try:
            return _answer(begun, request, handler)
        except BaseException as error:
            begun.finish(error)
            raise

    return around


def _answer(begun: BlockingRequest, request: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        response = handler(request)
        try:
            begun.settle(response.status_code)
        except Exception as error:
            response = _handled(request, error)
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        begun.settle(500, error)
        response = _handled(request, _answers.exception_response(int(refused.status.split()[0])))
        response.headers.update(refused.headers)
    response.headerlist.extend(("Set-Cookie", cookie) for cookie in begun.set_cookies(secure=request.scheme == "https"))
    begun.whole = is_whole(response.app_iter, request.environ)
    if not begun.whole:
        length = response.content_length  # forgotten by a response that is given another body
        response.app_iter = BlockingBody(begun, response.app_iter)
        response.content_length = length
    return response


def _handled(request: Any, error: Exception) -> Any:
    """What the application's exception views answer for *error*; raises it where there is none."""
    return request.invoke_exception_view((type(error), error, error.__traceback__), reraise=True)


def _over(begun: BlockingRequest) -> None:
    if begun.whole:
        begun.finish()
    begun.leave(begun.token)
