"""What an adapter needs besides its framework: nothing."""

import subprocess
import sys
from pathlib import Path

import tenure.web

PROGRAM = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
sys.modules["greenlet"] = None
for name in sys.argv[1:]:
    importlib.import_module(f"tenure.web.{name}")
"""


def test_adapters_need_no_greenlet():
    """R13: with a `Database` each is imported without greenlet, which SQLAlchemy wants for asyncio alone and no extra of theirs brings."""
    names = sorted(path.stem for path in Path(tenure.web.__path__[0]).glob("*.py") if path.stem != "__init__")
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
