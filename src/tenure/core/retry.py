"""Which errors deserve another attempt, and when it begins."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy.exc import DBAPIError

from tenure.core.options import Retry
from tenure.core.plan import Outcome
from tenure.exceptions import sqlstate

# Errors after which the database itself has rolled back, or asks to, because of what others did at the same time:
# 40001 serialization failure, 40P01 deadlock (PostgreSQL); 1213 deadlock, 1205 lock wait timeout (MySQL, MariaDB).
_STATES: Final = frozenset(["40001", "40P01", "1213", "1205"])


def deserves(error: BaseException, *, refuted: bool = False) -> bool:
    """Whether *error*, or one it came from, says that the same work may succeed if it is done again.

    A lost connection does where the server has said that the COMMIT on it did not take place (*refuted*).
    """
    return any(_conflict(one) or (refuted and _lost(one)) for one in _chain(error))


def _lost(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _conflict(error: BaseException) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    state = sqlstate(error) or ""
    return state in _STATES or state.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__context__ if error.__cause__ is None else error.__cause__


def wait_before(
    attempt: int,
    retry: Retry,
    error: BaseException,
    outcome: Outcome | None,
    fraction: Callable[[], float] = random.random,
    *,
    refuted: bool = False,
) -> float | None:
    """Seconds to wait before run number *attempt*, or None when there is to be none.

    Only a known rollback is followed by another run: after an unknown outcome the work might be done twice.
    """
    if attempt > retry.attempts or outcome is not Outcome.ROLLED_BACK or not deserves(error, refuted=refuted):
        return None
    return fraction() * min(retry.longest, retry.first * 2.0 ** min(attempt - 2, 64))
