"""Runs the Python examples of a document, and holds them to the output that the document shows.

A ``python`` block that begins with a comment such as ``# orders.py`` runs as a file of that name, so that messages name
its lines. A ``text`` block right after it is what it prints: what goes to standard output, what tenure logs, and the
error that ends it. Line breaks, durations and addresses do not count, and so the document may wrap a long message.
"""

import contextlib
import functools
import io
import linecache
import logging
import re
import traceback
from collections.abc import Iterable, Iterator

from sybil import Document, Example, Region
from sybil.example import SybilFailure
from sybil.parsers.markdown import CodeBlockParser

_FILE = re.compile(r"# (\w+\.py)\n")
_VARYING = (
    (re.compile(r"\b\d+(\.\d+)? (ms|s)\b"), r"N \2"),
    (re.compile(r"\b0x[0-9a-f]+"), "0xN"),
    (re.compile(r"sqlalche\.me/e/\d+"), "sqlalche.me/e/N"),
)


class ExampleParser:
    """Finds the Python blocks of a document, each with the output that is shown right after it."""

    def __call__(self, document: Document) -> Iterable[Region]:
        texts = list(CodeBlockParser("text", _unused)(document))
        for region in CodeBlockParser("python", _unused)(document):
            right_after = (
                text for text in texts if text.start >= region.end and not document.text[region.end : text.start].strip()
            )
            output = next(right_after, None)
            region.evaluator = functools.partial(run, shown=None if output is None else output.parsed)
            yield region


def run(example: Example, shown: str | None) -> None:
    """Run one block.

    :raises SybilFailure: it printed something else than is *shown*.
    """
    __tracebackhide__ = True
    source = example.parsed
    named = _FILE.match(source)
    name = named[1] if named else str(example.path)
    padding = 0 if named else example.line + source.line_offset
    if named:
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    code = compile("\n" * padding + source, name, "exec", dont_inherit=True)
    if shown is None:
        exec(code, example.namespace)
        return
    with _heard() as said:
        try:
            exec(code, example.namespace)
        except BaseException as error:
            said.write("".join(traceback.format_exception_only(error)))
    if _constant(said.getvalue()) != _constant(shown):
        raise SybilFailure(example, f"this is shown:\n{shown}\nand this was printed:\n{said.getvalue()}")


@contextlib.contextmanager
def _heard() -> Iterator[io.StringIO]:
    """Everything that is printed and logged meanwhile, as a program without any configuration shows it."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("tenure")
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(said):
            yield said
    finally:
        logger.removeHandler(handler)


def _constant(text: str) -> str:
    for pattern, placeholder in _VARYING:
        text = pattern.sub(placeholder, text)
    return " ".join(text.split())


def _unused(example: Example) -> None:
    raise AssertionError
