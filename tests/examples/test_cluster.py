"""The processes of the cluster example, some of them killed, and its account."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_account_is_right():
    """R27: with relays and schedulers killed at random each order is mailed once in effect, and no night comes twice."""
    command = [sys.executable, "-m", "examples.cluster"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "SECONDS": "3"}, capture_output=True, text=True, check=False, timeout=110
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "BROKEN" not in done.stdout
    assert done.stdout.count("\nok ") == 7
