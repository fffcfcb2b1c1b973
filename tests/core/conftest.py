"""Fixtures of the core's tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.face import Face
from support.probe import Told, reading


@pytest.fixture
def told() -> Iterator[Told]:
    """The events of the test."""
    with reading(Told()) as events:
        yield events


@pytest.fixture
def small(make_face: Callable[..., Face]) -> Callable[..., Face]:
    """``small()`` gives a face whose pool has one connection, and which would rather fail than wait long for it."""

    def make(**options: Any) -> Face:
        return make_face(**{"pool_size": 1, "max_overflow": 0, "pool_timeout": 2, **options})

    return make
