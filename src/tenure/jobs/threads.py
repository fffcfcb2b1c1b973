"""Plain threads. One that is to have a unit of its own needs nothing from here: ``threading.Thread(target=db.unit(function))``."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def hand_over(function: Callable[P, R]) -> Callable[P, R]:
    """*function*, to be run by another thread as a part of the unit that is current here.

    ``executor.submit(hand_over(function), …)``. The two may use the session in turn, not at once, and only until the unit ends. The
    other thread's own context is afterwards as it was before. Each call of ``hand_over`` is for one call of the function.
    """
    context = copy_context()

    def handed_over(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.run(function, *args, **kwargs)

    return handed_over
