"""The handlers of a web.py application: where they are, and that each gets its session."""

from __future__ import annotations

import importlib
from typing import Any
from weakref import WeakKeyDictionary

import web

from tenure.core.decorate import HasSession
from tenure.web.filling import filled


class Handlers:
    """The handlers of an application, and of what is mounted in it: each gets its session parameter filled in, once.

    Args:
        source: What has the session.

    """

    def __init__(self, source: HasSession) -> None:
        self._source = source
        self._seen: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()

    def fill(self, app: Any, around: tuple[Any, ...] = ()) -> bool:
        """Fill in what *app*, which is mounted in *around*, has now; costs one look where nothing was added since: then False."""
        mapping, size = self._seen.get(app, (None, 0))
        now = len(app.mapping)
        if app in around or (mapping is app.mapping and size == now):
            return False
        for place, (pattern, target) in enumerate(app.mapping):
            handler = _handler(target, app.fvars)
            if isinstance(handler, web.application):
                self.fill(handler, (*around, app))
            elif isinstance(handler, type) or handler is target:
                put = filled(self._source, handler)
                if put is not handler:
                    app.mapping[place] = (pattern, put)
        # Not before: the first requests come at once, and each must find its handler filled in.
        self._seen[app] = (app.mapping, now)
        return True


def _handler(target: Any, names: dict[str, Any]) -> Any:
    """What a line of ``urls`` leads to, as web.py finds it: a class, an application, or a name of one."""
    if not isinstance(target, str) or target.startswith("redirect "):
        return target
    if "." in target:
        module, name = target.rsplit(".", 1)
        try:
            return getattr(importlib.import_module(module), name)
        except Exception:  # web.py looks it up when its path is asked for, and says so then
            return None
    return names.get(target)
