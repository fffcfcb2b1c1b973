"""What an answer means: whether its work is kept, what it is for a reason, and what a client is told that may come again."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from tenure.exceptions import DatabaseDraining, Overloaded
from tenure.web.together import stored_partly

REFUSED: Final = (Overloaded, DatabaseDraining)  # errors of requests that may come again


def keeps(status: int) -> bool:
    """The rule for what an answer means: below 400 its work is kept."""
    return status < 400


class Refusal(NamedTuple):
    """The answer to a client that may come again: its status line and its headers."""

    status: str
    headers: dict[str, str]

    @property
    def code(self) -> int:
        """The number in the status line."""
        return int(self.status.split(None, 1)[0])

    @property
    def plain(self) -> list[tuple[str, str]]:
        """All headers of an answer with ``text``."""
        return [("Content-Type", "text/plain"), *self.headers.items()]

    @property
    def text(self) -> str:
        """The body, of plain text, where nobody makes a better one."""
        return f"{self.status}\n"


def refusal(error: BaseException) -> Refusal | None:
    """What to answer for *error*, which no handler has caught, before anything was sent; None where it is the server's 500.

    A 503 with ``Retry-After`` tells a load balancer that this process is well, and to try again or elsewhere. ``PoolExhausted``
    is none: its request has waited for the whole time already, a second one would do no better, and its verdict is for people.
    """
    if isinstance(error, REFUSED) and not stored_partly(error):
        return Refusal("503 Service Unavailable", {"Retry-After": str(math.ceil(error.retry_after))})
    return None


def refused(error: Exception) -> Refusal:
    """The same in an error handler for ``REFUSED``. Raises *error* where another database has kept its part: nobody is told to come again."""
    found = refusal(error)
    if found is None:
        raise error
    return found


def reason(status: int, error: BaseException | None) -> str:
    """Why the work of a request ended as it did, as its log line says."""
    return f"status {status}" if error is None else type(error).__name__
