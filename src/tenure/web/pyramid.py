"""Pyramid: ``config.include("tenure.web.pyramid")``, with the database in the setting ``tenure.db``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from pyramid import httpexceptions
from pyramid.config import global_registries
from pyramid.events import ApplicationCreated
from pyramid.tweens import EXCVIEW, INGRESS
from sqlalchemy import URL
from sqlalchemy.orm import Session

from tenure.core.database import Database
from tenure.exceptions import BadOption
from tenure.web.blocking import BlockingBody, BlockingBoundary, BlockingRequest, is_whole
from tenure.web.boundary import Rules
from tenure.web.options import from_text
from tenure.web.registration import check_in_time, check_once

_answers: Any = httpexceptions  # without types
_TWEEN = "tenure.web.pyramid.tween"
_RULES = Rules.__optional_keys__
_DATABASE, _BOUNDARIES, _AROUND = "tenure.db", "tenure.boundaries", "tenure.around"  # in the registry of an application


def includeme(config: Any) -> None:
    """What ``config.include("tenure.web.pyramid")`` does: each request is a unit, and its session is ``request.dbsession``.

    Then ``config.add_units(database, "auditsession", **rules)`` gives requests units of a further one too.

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
    if (given := settings.get(_DATABASE)) is None:
        raise BadOption(f"the setting {_DATABASE!r} is missing. Set it to a Database, or to its URL, before the include.")
    if wrong := [one for one in settings if one.startswith("tenure.") and one != _DATABASE and one[7:] not in _RULES]:
        raise BadOption(f"the setting {wrong[0]!r} is none of {', '.join(sorted(f'tenure.{name}' for name in _RULES))}.")
    database: Any = registry.get(_DATABASE) or (Database(given) if isinstance(given, (str, URL)) else given)
    rules = {name: from_text(name, given) for name in _RULES if (given := settings.get(f"tenure.{name}")) is not None}
    config.add_directive("add_units", _add_units)
    config.add_units(database, "dbsession", **rules)
    registry[_DATABASE] = database
    config.add_tween(_TWEEN, under=INGRESS, over=EXCVIEW)
    config.add_subscriber(_check, ApplicationCreated)


def _add_units(config: Any, database: Database, name: str, **rules: Unpack[Rules]) -> None:
    """Give each request a unit of *database* too, whose session is the request's attribute *name*."""
    check_in_time(config.registry in global_registries, "the application", "config.make_wsgi_app()")
    boundary = BlockingBoundary(database, **rules)
    known: list[BlockingBoundary] = config.registry.setdefault(_BOUNDARIES, [])
    check_once(database, [one.database for one in known], "config.include('tenure.web.pyramid') or config.add_units()")
    known.append(boundary)

    def session(_request: Any) -> Session:
        return database.session

    config.add_request_method(session, name, property=True)


def _check(event: Any) -> None:
    if _AROUND not in event.app.registry:
        raise BadOption(f"the setting 'pyramid.tweens' leaves {_TWEEN} out. Write it before {EXCVIEW}.")


def tween(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """What stands around the exception views: it goes by what they answer, and gives them what COMMIT raises."""
    registry[_AROUND] = True
    for boundary in registry[_BOUNDARIES]:
        handler = _Views(handler, boundary)
    return handler


class _Views:
    """A handler of requests within units of one database."""

    def __init__(self, handler: Callable[[Any], Any], boundary: BlockingBoundary) -> None:
        self.answer = handler
        self.boundary = boundary

    def __call__(self, request: Any) -> Any:
        if self.boundary.inside():  # a subrequest, or an application within another
            return self.answer(request)
        environ = request.environ
        begun = BlockingRequest(self.boundary, f"{request.method} {environ['SCRIPT_NAME']}{environ['PATH_INFO']}", environ)
        request.add_finished_callback(begun.left)  # the first of them, and after all response callbacks
        try:
            response = begun.answer(self, request)
        except BaseException as error:
            begun.finish(error)
            raise
        response.headerlist.extend(begun.set_cookies())
        begun.whole = is_whole(response.app_iter, environ)
        if not begun.whole:
            length = response.content_length  # forgotten by a response that is given another body
            response.app_iter = BlockingBody(begun, response.app_iter)
            response.content_length = length
        return response

    def handled(self, error: Exception, request: Any) -> Any:
        """What the application's exception views answer; raises *error* where there is none."""
        return request.invoke_exception_view((type(error), error, error.__traceback__), reraise=True)

    def exception(self, status: int) -> Exception:
        return _answers.exception_response(status)  # type: ignore[no-any-return]
