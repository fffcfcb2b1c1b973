"""What arguments of several rooms are held to, where they are given."""

from __future__ import annotations

from math import isfinite

from tenure.exceptions import BadOption


def check_seconds(name: str, value: object, *, above: float | None = None) -> None:
    """Raise BadOption unless *value* is a finite number of seconds, at least 0, or more than *above*."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    if not is_number or value < 0 or (above is not None and value <= above):  # type: ignore[operator]
        raise BadOption(f"{name}={value!r}: give seconds, {'at least 0' if above is None else f'more than {above:g}'}.")
