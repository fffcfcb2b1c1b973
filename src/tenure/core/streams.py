"""Rows that come after the call: which statements stream them, and which results may have more of them."""

from __future__ import annotations

from typing import Any


def has_more_rows(result: Any) -> bool:
    """Whether rows of a stream may still be to come: it is neither closed nor read to its end, when SQLAlchemy lets go of the cursor."""
    # Private: what a ScalarResult is a view of. tests/core/test_hold.py fails when it changes.
    viewed = getattr(result, "_real_result", None)
    real = result if viewed is None else viewed
    return not result.closed and getattr(getattr(real, "raw", real), "cursor", result) is not None


def streams(statement: Any, execution_options: Any) -> bool:
    """Whether rows of *statement* will be fetched after ``execute()`` has returned."""
    given: dict[str, Any] = execution_options or {}
    own: dict[str, Any] = statement.get_execution_options() if hasattr(statement, "get_execution_options") else {}
    if not given and not own:
        return False
    options = {**own, **given}
    if options.get("yield_per") or options.get("stream_results"):
        return True
    # Query.yield_per() keeps the number in its private load options. tests/core/test_hold.py fails when that changes.
    load = options.get("_sa_orm_load_options")
    return bool(load is not None and getattr(load, "_yield_per", None))
