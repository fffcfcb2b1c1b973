"""One request is one unit: what an application has decided about that. Every host asks here; none decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

from tenure.core.base import BaseDatabase
from tenure.engines.position import Client
from tenure.exceptions import BadOption
from tenure.web.answers import keeps
from tenure.web.options import Ask, RequestOptions
from tenure.web.request import Request
from tenure.web.together import serves

CommitIf: TypeAlias = Callable[[int], bool]
Commit: TypeAlias = Literal["auto", "explicit"]

_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


class Rules(TypedDict, total=False):
    """The keywords of a ``Boundary``, which every adapter takes and passes on: ``**rules: Unpack[Rules]``."""

    commit_if: CommitIf | None
    commit: Commit
    position_cookie: str | None
    readonly: Ask[bool | None]
    timeout: Ask[float | None]
    settings: Ask[Mapping[str, Any] | None]


def _wrong_kind(database: object) -> str:
    kind = type(database).__name__
    if isinstance(database, BaseDatabase):
        return (
            f"{kind} is not a Database: it needs an event loop, which this host has not. Give a Database on a driver that blocks."
        )
    return f"{kind} is not a Database or AsyncDatabase. Give the one whose units the requests are to be."


def _no_such_rule(name: str, rules: list[str]) -> str:
    if name == "close":
        return "close=…: a WSGI server does not tell when it ends. Leave it out, and call db.close() then."
    return f"{name}=…: there is no such rule. The rules are {', '.join(rules)}."


class Boundary:
    """What one application has decided about its requests.

    Args:
        database: Whose units the requests are.
        commit_if: Replaces the rule: gets the status, says whether the request's work is kept. Default: below 400.
        commit: ``"auto"`` (default) commits by that rule. ``"explicit"`` is for code that calls ``commit()`` itself: what it has
            not committed is rolled back, and a warning names the line where work was lost.
        position_cookie: Name of a cookie in which a client that has written keeps the position of its write, so that its next
            requests see it on whichever replica. Default: none. Without replicas no cookie is set.
        readonly: The units may not write, and may use a replica. Default False. This and the next two as in ``unit()``, or a
            function of what the host knows of the request (WSGI's environ, ASGI's scope), called when the unit opens.
        timeout: Seconds from the unit's opening to its end, the reads of the body included. Default: none.
        settings: ``SET LOCAL`` for each transaction of the unit. Default: none.

    Raises:
        BadOption: An argument is unknown, or has a wrong type or value.

    """

    serves: type[BaseDatabase[Any]] = BaseDatabase
    rules: type[Any] = Rules

    def __init__(
        self,
        database: BaseDatabase[Any],
        *,
        commit_if: CommitIf | None = None,
        commit: Commit = "auto",
        position_cookie: str | None = None,
        readonly: Ask[bool | None] = None,
        timeout: Ask[float | None] = None,
        settings: Ask[Mapping[str, Any] | None] = None,
        **unknown: object,
    ) -> None:
        if unknown:
            raise BadOption(_no_such_rule(min(unknown), sorted(self.rules.__optional_keys__)))
        if not isinstance(database, self.serves):
            raise BadOption(_wrong_kind(database))
        if database.supply.closed:
            raise BadOption(f"{database.name!r} is closed. Give the requests one that is open.")
        if commit not in get_args(Commit):
            raise BadOption(f"commit={commit!r}: give 'auto' or 'explicit'.")
        if commit_if is not None and not callable(commit_if):
            raise BadOption(f"commit_if={commit_if!r}: give a function of the status that says whether the work is kept.")
        if commit == "explicit" and commit_if is not None:
            raise BadOption("commit_if= has no say with commit='explicit'. Give one of them.")
        if position_cookie is not None and not _COOKIE_NAME.fullmatch(str(position_cookie)):
            raise BadOption(f"position_cookie={position_cookie!r}: give the name of a cookie: letters, digits, - and _.")
        self.options = RequestOptions(readonly=readonly, timeout=timeout, settings=settings)
        database.supply.check_settings(self.options.fixed.settings)
        self.database = database
        self.routing = database.routing
        self.current = database.current_place
        self.place = self.current.var
        serves(database)
        self.position_cookie = position_cookie
        self.keeps = commit_if or keeps
        self.explicit = commit == "explicit"

    def cookies(self, given: Any) -> str | None:
        """The Cookie header of the request of which the host knows *given*."""
        raise NotImplementedError

    def is_secure(self, given: Any) -> bool:
        """Whether the request of which the host knows *given* came by HTTPS."""
        raise NotImplementedError

    def client(self, given: Any) -> Client | None:
        """The client of the request of which the host knows *given*; None where there are no replicas."""
        routing = self.routing
        if routing is None:
            return None
        token = ""
        if self.position_cookie is not None and given is not None and (cookies := self.cookies(given)):
            pairs = (one.strip().partition("=") for one in cookies.split(";"))
            token = next((value for name, _, value in pairs if name == self.position_cookie), "")
        return routing.client(token)

    def inside(self) -> bool:
        """Whether a request of this database is under way here already, as within a mounted application."""
        place = self.place.get()
        return isinstance(place, Request) and not place.over

    def here(self) -> Request | None:
        """The request of this boundary that is under way here, and not that of an application around or within it."""
        place = self.place.get()
        return place if isinstance(place, Request) and place.boundary is self and not place.over else None
