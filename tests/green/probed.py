"""``python probed.py gevent URL``: the contract of the hosts, put to Flask and web.py on the library's own server, all of it in greenlets."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from patched import LIBRARY  # isort: skip - before anything else is imported

import os

import pytest

os.environ["TENURE_TEST_GREEN"] = LIBRARY
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # some import trio, which eventlet's patches keep from being imported
os.chdir(Path(__file__).parents[2])
OPTIONS = ["-q", "-W", "ignore", "-p", "pytest_timeout", "-p", "no:cacheprovider", "--drivers", "psycopg"]
sys.exit(pytest.main(["tests/contract/test_contract.py", *OPTIONS]))
