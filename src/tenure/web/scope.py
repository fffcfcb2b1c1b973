"""What is no request: a span of the host's in which code asks for a session, and commits it by itself."""

from __future__ import annotations

from contextvars import Token
from typing import Any

from tenure.callsite import Site
from tenure.core.current import found_at
from tenure.core.unit import BaseUnit
from tenure.web.blocking import BlockingRequest
from tenure.web.boundary import Boundary


class BlockingScope(BlockingRequest):
    """What is no request, but a span of the host's in which code asks for a session, such as an application context of a command.

    It has no answer to go by, so it stores what its code commits. One that begins within another is not a part of it.

    Args:
        boundary: One with ``commit="explicit"``.
        name: As errors and logs call it.
        rule: That of requests, for those that share this span.
        beside: A unit that is current here and stays so: this is a further session of its code, to be asked for by name.

    """

    alone = True

    def __init__(self, boundary: Boundary, name: str, rule: Boundary, *, beside: BaseUnit[Any] | None = None) -> None:
        self._rule = rule
        self._beside = beside
        super().__init__(boundary, name)
        if beside is not None:
            self.leave(self.token)
            self.token = None

    def _open(self, site: Site | None) -> None:
        super()._open(site)
        unit, beside = self.unit, self._beside
        if unit is None:
            return
        if beside is not None:  # what descends from the one has its part in the other
            unit.parent, beside.root.parent = beside.root.parent, unit
        elif (around := None if self.token is None else self.token.old_value) not in (None, Token.MISSING):
            unit.parent = found_at(around)[0]

    def _went_well(self, status: int) -> str:  # noqa: ARG002
        return "was left"

    def settle(self, status: int, error: BaseException | None = None) -> None:
        """A request that shares this span has its answer: what was done so far is stored or undone, and the span goes on.

        Args:
            status: The status of the answer.
            error: What the handler raised, if it raised something that is not itself an answer.

        Raises:
            Exception: The COMMIT failed, or a failure had been swallowed; the answer must be an error.

        """
        unit = self.unit
        if unit is None or unit.ended or self._rule.explicit:
            return
        try:
            if error is None and self._rule.keeps(status):
                unit.session.commit()
                return
        except BaseException:
            unit.session.rollback()
            raise
        unit.session.rollback()

    def end(self, error: BaseException | None) -> None:
        """The span is over. *error* is what its code raised; then nobody needs to be told what was lost with it."""
        try:
            super().settle(200, error)
        finally:
            self.finish(error)
            self.leave(self.token)
