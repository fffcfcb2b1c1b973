"""What an import costs: time, memory and modules, each in a fresh interpreter."""

from __future__ import annotations

import os
import random
import subprocess
import sys

BASE = "sqlalchemy, sqlalchemy.orm"
TENURE = "tenure"
MODULES = {
    BASE: "import sqlalchemy, sqlalchemy.orm",
    TENURE: "import tenure",
    "sqlalchemy.ext.asyncio": "import sqlalchemy, sqlalchemy.orm, sqlalchemy.ext.asyncio",
    "flask_sqlalchemy": "import flask_sqlalchemy",
    "advanced_alchemy": "import advanced_alchemy.config",
    "oslo.db enginefacade": "from oslo_db.sqlalchemy import enginefacade",
    "zope.sqlalchemy": "import zope.sqlalchemy, sqlalchemy.orm",
}
_PROGRAM = """
import sys, time
def resident():
    with open("/proc/self/statm") as memory:
        return int(memory.read().split()[1])
before, began = resident(), time.perf_counter()
{}
took, after = time.perf_counter() - began, resident()
import resource
print(took, (after - before) * resource.getpagesize(), len(sys.modules))
"""


# As installed packages are: with byte code beside the sources.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(rounds: int) -> dict[str, list[tuple[float, int, int]]]:
    """For each import, seconds, bytes and modules of each round. The first round is dropped: it writes byte code."""
    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in MODULES}
    order = list(MODULES)
    shuffle = random.Random(1).shuffle
    for number in range(rounds + 1):
        shuffle(order)
        for name in order:
            printed = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _PROGRAM.format(MODULES[name])],
                check=True,
                capture_output=True,
                text=True,
                env=_ENVIRONMENT,
            ).stdout.split()
            if number:
                found[name].append((float(printed[0]), int(printed[1]), int(printed[2])))
    return found
