"""The shape of the house, held by the tests: who imports whom, how long a module may be, and that all errors have a page."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import tenure
from tenure import exceptions
from tenure.core.options import GUARDS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "tenure").rglob("*.py"))
LONGEST = 420


def modules():
    return [found.name for found in pkgutil.walk_packages(tenure.__path__, "tenure.")]


def test_imports_point_downwards():
    """R13: web, jobs and watch import the core, the core the engines, never the other way; the core knows no framework."""
    lint = "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"
    ran = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", ran.stdout)


def test_every_room_is_under_a_contract():
    """R13: a new folder of the source has its place among the layers."""
    rooms = {path.name for path in (ROOT / "src" / "tenure").iterdir() if (path / "__init__.py").exists()}
    layers = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2].partition("]")[0]

    assert rooms <= set(re.findall(r"\w+", layers))


def test_every_module_says_what_it_is_for():
    """R50: a reader of any file is told first what it is."""
    silent = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]

    assert silent == []


def test_every_public_name_says_what_it_is_for():
    """R50: what can be imported from `tenure` and `tenure.exceptions` has a docstring."""
    named = [(module, name) for module in (tenure, exceptions) for name in module.__all__]

    assert [f"{module.__name__}.{name}" for module, name in named if not getattr(module, name).__doc__] == []
    assert all(module.__all__ == sorted(module.__all__) for module in (tenure, exceptions))


def test_no_module_is_too_long():
    """R50: a file can be read in one sitting."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}

    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


# ------------------------------------------------------------------------------------- messages


def slugs():
    """Every slug that a user may meet: those of the errors and guards, and those that the source writes into a message."""
    of_errors = {getattr(exceptions, name).slug for name in exceptions.__all__}
    written = {slug for path in SOURCES for slug in re.findall(r" \[([a-z]+(?:-[a-z]+)*)\]\"", path.read_text())}
    return sorted(of_errors | set(GUARDS) | written)


def headings():
    page = (ROOT / "docs" / "reference" / "messages.md").read_text()
    return re.findall(r"^#{2,3} `?([a-z-]+)`?$", page, re.MULTILINE)


def test_every_error_is_public_and_has_its_own_slug():
    """R50: each error of tenure is a `TenureError` that `tenure.exceptions` exports, under a slug that no other has."""
    defined = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, exceptions.TenureError) and value.__module__ == exceptions.__name__
    ]
    found = [getattr(exceptions, name).slug for name in exceptions.__all__]

    assert sorted(defined) == sorted(exceptions.__all__)
    assert len(set(found)) == len(found)
    assert [slug for slug in found if not re.fullmatch(r"[a-z]+(-[a-z]+)*", slug)] == []
    for module in modules():
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, type) and issubclass(value, exceptions.TenureError):
                assert value.__name__ in exceptions.__all__


def test_every_slug_has_its_page():
    """R50: the slug at the end of a message is one heading of docs/reference/messages.md, and no heading there is of another."""
    found = headings()

    assert {"missing": sorted(set(slugs()) - set(found)), "of nothing": sorted(set(found) - set(slugs()))} == {
        "missing": [],
        "of nothing": [],
    }
    assert len(found) == len(set(found))
