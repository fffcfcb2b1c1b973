"""``make cluster``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run it; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to end
    from examples.cluster import demo

    return demo.main()


if __name__ == "__main__":
    sys.exit(main())
