"""The Python examples in README.md and docs/ are run, each document in a folder of its own.

One that needs a server is run by a test: tests/examples/test_tenants.py.
"""

import contextlib
import logging
import sys
import tempfile
import types
from typing import Any

from sqlalchemy import Engine
from sybil import Sybil
from sybil.parsers.markdown import SkipParser

from support.documents import ExampleParser


def _begin(namespace: dict[str, Any]) -> None:
    stack = namespace["__document__"] = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tenure-docs-"))
    stack.enter_context(contextlib.chdir(folder))
    stack.callback(logging.getLogger("tenure").setLevel, logging.NOTSET)
    root = logging.getLogger()
    stack.callback(setattr, root, "handlers", root.handlers[:])  # Litestar sets up the whole program's logging
    stack.callback(root.setLevel, root.level)
    # Frameworks that look into annotations do so by way of a function's module.
    namespace["__name__"] = "documented"
    sys.modules["documented"] = types.ModuleType("documented")
    stack.callback(sys.modules.pop, "documented")


def _end(namespace: dict[str, Any]) -> None:
    import tenure

    stack = namespace["__document__"]
    for value in list(namespace.values()):
        if isinstance(value, tenure.Database):
            stack.callback(value.close)
        elif isinstance(value, Engine):
            stack.callback(value.dispose)
    stack.close()


pytest_collect_file = Sybil(
    parsers=[ExampleParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    excludes=["docs/how-to/tenants.md"],
    setup=_begin,
    teardown=_end,
).pytest()
