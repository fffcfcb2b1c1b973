"""Which unit an application context of Flask has: that of its request, else one of its own."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import ExitStack
from typing import Any, cast

from flask import Flask, current_app, g, has_app_context
from sqlalchemy.orm import Session

from tenure.core.current import Here
from tenure.core.database import Database
from tenure.exceptions import BadOption, UnitEnded
from tenure.web.blocking import BlockingAnswer, BlockingBoundary, BlockingRequest
from tenure.web.boundary import Commit
from tenure.web.flask import register
from tenure.web.scope import BlockingScope

_ADOPTED = "tenure.adopted"  # in app.extensions: by extension, for an application may replace its own


class Contexts:
    """The contexts of one application that was adopted, as *extension* sees them."""

    def __init__(self, app: Flask, extension: Any, database: Database, commit: Commit) -> None:
        self.database = database
        self.boundary = BlockingBoundary(database, commit=commit)
        self.spans = BlockingBoundary(database, commit="explicit")
        self._tear_down = app.do_teardown_appcontext
        register(app, self.boundary, self.here)
        app.do_teardown_appcontext = self._do_teardown_appcontext  # type: ignore[method-assign,assignment]
        app.extensions.setdefault(_ADOPTED, {})[extension] = self
        self._in_g = f"_tenure_{id(self)}"  # where flask.g, which goes with its context, has what is known of it

    def here(self) -> Context:
        """The context in which this is asked, with a place for a unit."""
        context: Context | None = g.get(self._in_g)
        if context is None:
            context = Context(self)
            setattr(g, self._in_g, context)
        if not self._within_a_block():
            context.claim()
        return context

    def _within_a_block(self) -> bool:
        return isinstance(self.database.current_place.var.get(), Here)

    def session(self, name: Hashable = None) -> Session:
        """The session of the unit that is open here, or the further one of that *name* in this context."""
        if name is None and self._within_a_block():
            return self.database.session
        return self.here().session(name)

    def scoped(self, key: Hashable) -> Session:
        """The same for a scope of the application's own: a context's session has the key that was asked for first."""
        if self._within_a_block():
            return self.database.session
        context = self.here()
        if context.key is None:
            context.key = key
        return context.session(None if key == context.key else key)

    def in_use(self, key: Hashable = None) -> bool:
        """Whether a unit was opened in this context whose work is not settled, nor about to be."""
        context: Context | None = g.get(self._in_g)
        return context is not None and context.in_use(None if key == context.key else key)

    def _do_teardown_appcontext(self, *args: Any) -> None:
        context: Context | None = g.get(self._in_g)
        if context is None:
            self._tear_down(*args)
            return
        context.torn_down = True
        try:
            self._tear_down(*args)
        finally:  # whatever somebody's callback raises
            context.end(next((one for one in args if isinstance(one, BaseException)), None))


def adopted(extension: Any) -> Contexts | None:
    """The contexts of the application that is current here, if it was adopted with *extension*."""
    known: dict[Any, Contexts] = current_app.extensions.get(_ADOPTED, {}) if has_app_context() else {}
    return known.get(extension)


def refuse_twice(app: Flask, extension: Any) -> None:
    """Raise BadOption if *app* was adopted with *extension* already."""
    if extension in app.extensions.get(_ADOPTED, {}):
        raise BadOption(f"{app.name!r} is adopted already. Leave one of them out.")


class Context(BlockingAnswer):
    """One application context: the unit of its session, and those of its further ones."""

    torn_down = False  # it is about to end
    key: Hashable = None  # of its session, where the application has a scope of its own

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self.boundary = contexts.boundary
        self._main: BlockingRequest | None = None
        self._more: dict[Hashable, BlockingScope] = {}

    def claim(self) -> None:
        """Have a place: that of the request if no other context has it, as one within the request's."""
        if self._main is None or self._main.over:
            place = self._contexts.boundary.here()
            if not isinstance(place, BlockingRequest) or place.claimed:
                place = BlockingScope(self._contexts.spans, "application context", self._contexts.boundary)
            place.claimed = True
            self._main = place

    def session(self, name: Hashable) -> Session:
        """The session of that name; None is that of the context itself."""
        database = self._contexts.database
        place = database.current_place.var.get()
        if self._main is not None and place is not self._main and not isinstance(place, Here):
            self._main.enter()  # a request that Flask has put into a context which was there before it
        if name is None:
            return database.session
        span = self._more.get(name)
        if span is None:
            contexts = self._contexts
            span = BlockingScope(contexts.spans, f"session {name!r}", contexts.boundary, beside=database.current)
            self._more[name] = span
        unit = span.open()
        if unit is None:
            raise UnitEnded(f"the context of session {name!r} has ended. Ask for it in another.")
        return cast("Session", unit.session)

    def in_use(self, name: Hashable) -> bool:
        """Whether the session of that name has work that is not settled, nor about to be."""
        place = self._main if name is None else self._more.get(name)
        if place is None or place.over or place.settled is not None or place.unit is None:
            return False
        return not (self.torn_down and isinstance(place, BlockingScope))

    # -- what a request does with its context ----------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether nothing of the answer's body is made while it is sent."""
        return self._main is not None and self._main.whole

    @whole.setter
    def whole(self, value: bool) -> None:
        if self._main is not None:
            self._main.whole = value

    def settle(self, status: int, error: BaseException | None = None) -> None:
        """The request that works in this context has its answer: its session is settled first, then the further ones.

        Raises:
            Exception: The first COMMIT that failed; nothing of those after it is stored.

        """
        failed: Exception | None = None
        for place in self._places():
            try:
                place.settle(500 if failed else status, failed or error)
            except Exception as raised:  # for the error handlers of the application, once all are settled
                failed = failed or raised
        if failed is not None:
            raise failed

    def end(self, error: BaseException | None) -> None:
        """The context is left. The unit of a request goes on with its answer."""
        with ExitStack() as ends:  # each is ended, whatever the others do
            for place in reversed(self._places()):
                if isinstance(place, BlockingScope):
                    ends.callback(place.end, error)

    def _places(self) -> list[BlockingRequest]:
        return [*([] if self._main is None else [self._main]), *self._more.values()]
