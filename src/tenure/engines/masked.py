"""The text of a statement without the values in it: what may be shown to somebody who may not see the data."""

from __future__ import annotations

import re
from typing import Final

# In this order. What one database reads as a string and another as something else counts as a string: in doubt it is masked.
_COMMENTS: Final = r"/\*.*?(?:\*/|\Z)|--[^\n]*"
_VALUES: Final = r"""
      (?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z)      # PostgreSQL's dollar quotes
    | '(?:[^'\\]|'')*'                                     # a string in which nothing is escaped
    | '.*\Z                                                # any other: where it ends depends on the server's settings
    | (?<![\w$])\d[\w.]*                                   # a number, of any base; not in a name
    """
_NAME: Final = r'"(?:[^\W\d]\w*|[^\W\d]\w*(?:\.\w+)+)"'  # MySQL and SQLite take double quotes for strings, too


def masked(sql: str, dialect: str = "") -> str:
    """*sql* with ``?`` in the place of each string and number, and without its comments.

    Args:
        sql: The statement, as somebody wrote it or SQLAlchemy made it.
        dialect: SQLAlchemy's name of the database; on MySQL what is in double quotes is a string, and ``#`` begins a comment.

    """
    mysql = dialect in ("mysql", "mariadb")
    kept = "" if mysql else f"(?P<kept>{_NAME})|"
    comments = f"{_COMMENTS}|\\#[^\\n]*" if mysql else _COMMENTS
    pattern = f'(?P<comment>{comments})|{kept}"[^"]*(?:"|\\Z)|{_VALUES}'
    return re.sub(pattern, _shown, sql, flags=re.VERBOSE | re.DOTALL)


def _shown(found: re.Match[str]) -> str:
    parts = found.groupdict()
    if parts["comment"] is not None:
        return " "
    return parts.get("kept") or "?"
