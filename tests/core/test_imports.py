"""What `import tenure` loads."""

import json
import subprocess
import sys

CODE = """
import sys, json
import sqlalchemy, sqlalchemy.orm, sqlalchemy.ext.asyncio
before = set(sys.modules)
import tenure
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(loaded - set(sys.stdlib_module_names))))
"""


def test_import_loads_sqlalchemy_alone() -> None:
    """R13: `import tenure` needs no other library than SQLAlchemy, and loads none."""
    found = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)

    assert set(json.loads(found.stdout)) <= {"tenure", "sqlalchemy", "greenlet"}
