"""``make demo``: the shop on one host, or on all of them, under the load of 24 clients, and the account of it."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to end
    from examples.load import demo

    return demo.main()


if __name__ == "__main__":
    sys.exit(main())
