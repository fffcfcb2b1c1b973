"""The examples of the documents are held to what they show, and a document that lies is found."""

import pytest
from sybil import Document
from sybil.example import SybilFailure

from support.documents import ExampleParser

RAISES = """
```python
# orders.py
def pay():
    raise ValueError("no money")

print("paying")
pay()
```
"""


def run(text):
    """Run all examples of a document with this *text*."""
    document = Document(text, "page.md")
    for region in ExampleParser()(document):
        document.add(region)
    for example in document.examples():
        example.evaluate()


def test_what_is_printed_is_shown():
    """An example may be followed by what it prints, the error that ends it included; line breaks do not count."""
    run(f"{RAISES}\n```text\npaying\nValueError: no\nmoney\n```\n")


@pytest.mark.parametrize("shown", ["paying", "paying ValueError: no bread", ""])
def test_what_is_not_printed_is_not_shown(shown):
    """An example that prints something else than is shown fails."""
    with pytest.raises(SybilFailure, match="ValueError: no money"):
        run(f"{RAISES}\n```text\n{shown}\n```\n")


def test_an_error_that_is_not_shown_is_a_failure():
    """An example that fails, and is not followed by its error, fails."""
    with pytest.raises(ValueError, match="no money"):
        run(f"{RAISES}\nSo much for that.\n\n```text\npaying ValueError: no money\n```\n")


def test_durations_and_addresses_do_not_count():
    """What differs from run to run is not held against an example; line numbers are."""
    block = '```python\nprint("<User at 0x7f10>, since 12 ms, 0.5 s ago, at orders.py:3")\n```\n'

    run(f"{block}```text\n<User at 0xaa>, since 3 ms, 1.0 s ago, at orders.py:3\n```\n")
    with pytest.raises(SybilFailure):
        run(f"{block}```text\n<User at 0xaa>, since 3 ms, 1.0 s ago, at orders.py:4\n```\n")


def test_a_named_block_is_a_file_of_that_name():
    """A block that begins with a file's name runs under that name, its own first line being line 1."""
    code = "import sys\n\nprint(sys._getframe().f_code.co_filename, sys._getframe().f_lineno)"

    run(f"```python\n# orders.py\n{code}\n```\n```text\norders.py 4\n```")


def test_what_tenure_logs_is_shown():
    """A warning in the log belongs to what an example prints."""
    run('```python\nimport logging\nlogging.getLogger("tenure").warning("lost")\n```\n```text\nlost\n```')
