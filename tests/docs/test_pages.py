"""The pages belong together: every link leads somewhere, every slug has its heading, the first example needs nothing."""

import re
import subprocess
import sys
from pathlib import Path

import tenure.exceptions as errors

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SLUG = re.compile(r" \[([a-z]+(?:-[a-z]+)*)\]\"")


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere():
    """Each link between the pages names a file that is there, and a heading that it has."""
    broken = []
    for page in PAGES:
        for link in LINK.findall(CODE.sub("", page.read_text())):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in headings(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")

    assert broken == []


def test_every_page_is_in_the_index():
    """Whoever opens docs/index.md can reach every page from there."""
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}

    assert [page for page in (ROOT / "docs").rglob("*.md") if page != index and page.resolve() not in linked] == []


def test_every_slug_has_a_heading():
    """R50: every error, warning and note of tenure has a heading in docs/reference/messages.md, and no heading is without one."""
    raised = {getattr(errors, name).slug for name in errors.__all__}
    written = {slug for path in (ROOT / "src").rglob("*.py") for slug in SLUG.findall(path.read_text())}

    found = headings(ROOT / "docs" / "reference" / "messages.md") - {"messages", "notes-without-a-slug"}
    assert found == raised | written


ALONE = """
import sys
from importlib.metadata import packages_distributions

others = packages_distributions().keys() - {"tenure", "sqlalchemy", "typing_extensions"}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
exec(sys.stdin.read())
"""


def test_the_first_example_needs_nothing_else(tmp_path):
    """R13: the first example of the README runs where only tenure and SQLAlchemy are installed."""
    readme = (ROOT / "README.md").read_text()
    example, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL).groups()

    done = subprocess.run(
        [sys.executable, "-c", ALONE], input=example, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == shown


def test_errors_are_shown_as_they_are_printed():
    """R50: a document shows an error under the name that a traceback prints, from which it can be imported."""
    named = {name for page in PAGES for name in re.findall(r"\btenure\.(?:exceptions\.)?([A-Z]\w+): ", page.read_text())}
    short = {f"{page.name}: {name}" for page in PAGES for name in re.findall(r"\btenure\.([A-Z]\w+): ", page.read_text())}

    assert "UnitEnded" in named
    assert all(f"{getattr(errors, name).__module__}.{name}" == f"tenure.exceptions.{name}" for name in named)
    assert short == set()
