"""What tenure hears from an engine's dialect in place of an event.

Once an engine has a listener, SQLAlchemy takes a longer way through every statement of its connections: an insert with its COMMIT costs
7 % more for one that hears of the COMMIT alone. A dialect is one engine's own, and its methods are SQLAlchemy's documented interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Dialect


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
