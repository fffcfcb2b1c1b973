"""``make demo``: the market under the load of 24 clients, and the account of it."""

from __future__ import annotations

import sys

from examples.load import run

if __name__ == "__main__":
    sys.exit(run.main("examples.webpy.watched"))
