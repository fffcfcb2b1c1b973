"""A note on SQLAlchemy's ``DetachedInstanceError``: where the object came from, where its unit ended, what to load there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.orm.exc import DetachedInstanceError

from tenure.callsite import Site, words

if TYPE_CHECKING:
    from tenure.core.guard import GuardedSession
    from tenure.core.unit import BaseUnit

_KEY = "tenure.origin"
_ATTRIBUTE = re.compile(r"attribute '(\w+)'")


@dataclass(slots=True)
class Origin:
    """Where the objects of one unit came from; shared by all of them, and filled in when the unit has ended."""

    unit: str
    site: Site | None
    loaded: dict[type, Site | None]
    ended: Site | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """An object that is pickled or copied forgets where it came from: what code is at a line means nothing elsewhere."""
        return type(None), ()


def remember(session: GuardedSession, unit: BaseUnit[Any]) -> None:
    """Note for each object that outlives *session* which unit it came from. Costs nothing for those that nobody keeps."""
    if unit.database.modes["detached"] == "off" or not len(session.identity_map):
        return
    origin = Origin(unit.name, unit.site, session.sites, session.line(4))
    for one in session.identity_map.values():
        inspect(one).info[_KEY] = origin


def install() -> None:
    """Have SQLAlchemy's error carry the note.

    The error is raised where no session and no event is involved, so there is no public hook: the class's constructor is replaced
    by one that calls it and adds a note for objects that a unit has left behind. Nothing else changes. The caller's local names
    ``state`` and ``attribute_names`` are SQLAlchemy's own; tests/core/test_detached.py fails when they change.
    """
    original = DetachedInstanceError.__init__
    if getattr(original, "adds_note", False):
        return

    def init(self: DetachedInstanceError, *args: Any, **kw: Any) -> None:
        original(self, *args, **kw)
        names = sys._getframe(1).f_locals  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, with an underscore
        state = names.get("state")
        origin = getattr(state, "info", {}).get(_KEY) if state is not None else None
        if isinstance(origin, Origin):
            self.add_note(_note(state, origin, str(args[0]) if args else "", names))

    init.adds_note = True  # type: ignore[attr-defined]
    replaced: Callable[..., None] = init
    DetachedInstanceError.__init__ = replaced  # type: ignore[method-assign]


def _note(state: Any, origin: Origin, message: str, names: dict[str, Any]) -> str:
    model = state.mapper.class_
    found = _ATTRIBUTE.search(message)
    attributes = [found.group(1)] if found else [str(name) for name in names.get("attribute_names") or ()]
    attribute = attributes[0] if attributes else "its attribute"
    line = words(next((origin.loaded[one] for one in model.__mro__ if origin.loaded.get(one)), origin.site))
    related = attribute in state.mapper.relationships
    remedy = (
        f".options(selectinload({model.__name__}.{attribute}))"
        if related
        else f".options(undefer({model.__name__}.{attribute})), or leave expire_on_commit off,"
    )
    return (
        f"tenure: {model.__name__}.{attribute} was not loaded: the {model.__name__} came from {line} in unit {origin.unit!r},"
        f" ended at {words(origin.ended)}. Add {remedy} at {line}. [detached]"
    )
