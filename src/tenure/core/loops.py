"""Which event loop an ``AsyncDatabase`` can run on."""

from __future__ import annotations

import sys
from typing import Any

from tenure.callsite import here, words
from tenure.exceptions import WrongLoop


def refuse_trio() -> None:
    """Raise WrongLoop in a task of trio's.

    Without this the first statement would end in an error of trio's about a future that it does not know.
    """
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        raise WrongLoop(
            f"an AsyncDatabase was used at {words(here(2))} in a task of trio's. SQLAlchemy and its drivers run on asyncio's event loop,"
            " or uvloop's: use asyncio.run(), or anyio.run(main, backend='asyncio')."
        )
