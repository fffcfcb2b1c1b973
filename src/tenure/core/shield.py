"""Finishing what has begun although the task is cancelled, for a limited time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(
    work: Coroutine[Any, Any, T], limit: float, *, cancelled: bool = False
) -> tuple[T, asyncio.CancelledError | None]:
    """Run *work* to its end in a task of its own, whatever happens to this one.

    Args:
        work: What must not be left half done.
        limit: Seconds that it may take after a cancellation; then it is cancelled itself. Without a cancellation there is no limit.
        cancelled: Whether the cancellation has come already.

    Returns:
        The result, and the cancellation that came in between, which the caller must raise.

    """
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    came: asyncio.CancelledError | None = None
    deadline = loop.time() + limit if cancelled else None
    while not task.done():
        try:
            # anyio delivers a cancellation anew at each turn of the loop unless it is told not to
            with _unscoped() if deadline is not None else nullcontext():
                left = None if deadline is None else max(deadline - loop.time(), 0.0)
                await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError as error:
            came = came or error
            deadline = deadline or loop.time() + limit
        if deadline is not None and loop.time() >= deadline and not task.done():
            task.cancel()
            deadline += limit
    return task.result(), came


def _unscoped() -> AbstractContextManager[Any]:
    anyio = sys.modules.get("anyio")
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)
