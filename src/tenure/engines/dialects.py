"""What tenure hears from an engine without an event of its statements.

Once an engine has a listener, SQLAlchemy takes a longer way through every statement of its connections: an insert with its COMMIT costs
7 % more for one that hears of the COMMIT alone. A dialect is one engine's own, and its methods are SQLAlchemy's documented interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine


def before(dialect: Dialect, method: str, call: Callable[..., None]) -> None:
    """From now on *call* is called with the arguments of each call of *method*, before it. Said twice it is done once."""
    original = getattr(dialect, method)
    if getattr(original, "after", None) is call:
        return

    def both(*args: Any) -> Any:
        call(*args)
        return original(*args)

    both.after = call  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    setattr(dialect, method, both)


def listen_in_passing(engine: Engine, name: str, listener: Callable[..., None]) -> None:
    """Listen to an event of *engine* that is no statement's, as ``engine_disposed``, without the longer way."""
    # Private: whether somebody listens to the engine's statements. SQLAlchemy takes it from any listener, and of dispose() it tells in
    # any case. It is 8 % of a read on SQLite. tests/engines/test_supply.py fails when this changes.
    heard: bool = engine._has_events  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    event.listen(engine, name, listener)
    engine._has_events = heard  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
