"""What is no request: a span of the host's in which code asks for a session, and commits it by itself."""

from __future__ import annotations

from contextvars import Token
from typing import Any

from tenure.callsite import Site
from tenure.core.current import found_at
from tenure.web.blocking import BlockingRequest
from tenure.web.boundary import Boundary


class BlockingScope(BlockingRequest):
    """What is no request, but a span of the host's in which code asks for a session, such as an application context of a command.

    It has no answer to go by, so it stores what its code commits. One that begins within another is not a part of it.

    Args:
        boundary: One with ``commit="explicit"``.
        name: As errors and logs call it.

    """

    __slots__ = ("torn_down",)

    def __init__(self, boundary: Boundary, name: str) -> None:
        self.torn_down = False  # the host is about to end it
        super().__init__(boundary, name)

    def _open(self, site: Site | None) -> None:
        super()._open(site)
        around: Any = None if self.token is None else self.token.old_value
        if self.unit is not None and around not in (None, Token.MISSING):
            self.unit.parent = found_at(around)[0]

    def _went_well(self, status: int) -> str:  # noqa: ARG002
        return "was left"

    def end(self, error: BaseException | None) -> None:
        """The span is over. *error* is what its code raised; then nobody needs to be told what was lost with it."""
        try:
            self.settle(200, error)
        finally:
            self.finish(error)
            self.leave(self.token)
