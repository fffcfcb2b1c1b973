"""The two faces of tenure agree."""

import inspect

import pytest

from tenure import AsyncDatabase, AsyncUnit, Database, Unit
from tenure.core.aioblock import AsyncUnitBlock, AsyncUnitFactory
from tenure.core.block import UnitBlock, UnitFactory

PAIRS = [(Database, AsyncDatabase), (Unit, AsyncUnit), (UnitBlock, AsyncUnitBlock), (UnitFactory, AsyncUnitFactory)]
ONLY_ASYNC = {"finish_within"}


def _names(one: type) -> set[str]:
    found = {name for name in dir(one) if not name.startswith("_")}
    return found | {
        name.replace("__a", "__") for name in vars(one) if name in ("__enter__", "__exit__", "__aenter__", "__aexit__")
    }


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_the_same_names(sync, asynchronous) -> None:
    """R13: both faces have the same public names."""
    assert _names(sync) == _names(asynchronous)


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_the_same_parameters(sync, asynchronous) -> None:
    """R13: a method takes the same parameters on both faces, but for the limit of the shield."""
    different = []
    for name in [*sorted(_names(sync)), "__init__"]:
        one, two = (inspect.getattr_static(kind, name, None) for kind in (sync, asynchronous))
        if inspect.isfunction(one) and inspect.isfunction(two):
            parameters = [[(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()] for f in (one, two)]
            parameters[1] = [p for p in parameters[1] if p[0] not in ONLY_ASYNC]
            if parameters[0] != parameters[1]:
                different.append(name)

    assert different == []
