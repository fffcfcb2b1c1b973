"""Statements without their values and addresses without their passwords: what may be shown to somebody who may not see these."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy.engine import URL

# In this order. What one database reads as a string and another as something else counts as a string: in doubt it is masked.
_COMMENTS: Final = r"/\*.*?(?:\*/|\Z)|--[^\n]*"
_VALUES: Final = r"""
      (?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z)      # PostgreSQL's dollar quotes
    | '(?:[^'\\]|'')*'                                     # a string in which nothing is escaped
    | '.*\Z                                                # any other: where it ends depends on the server's settings
    | (?<![\w$])\d[\w.]*                                   # a number, of any base; not in a name
    """
_NAME: Final = r'"(?:[^\W\d]\w*|[^\W\d]\w*(?:\.\w+)+)"'  # MySQL and SQLite take double quotes for strings, too
_PRIVATE: Final = r"(?i)pass|pwd|secret|token|key"  # names of options of a driver, given in the address


def shown(url: URL) -> str:
    """*url* with stars in the place of its password, and of what its query may give as one."""
    hidden = {name: "***" for name in url.query if re.search(_PRIVATE, name)}
    text = url.set(query={**url.query, **hidden}).render_as_string(hide_password=True)
    return text.replace("%2A%2A%2A", "***")


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
    return re.sub(pattern, _in_place_of, sql, flags=re.VERBOSE | re.DOTALL)


def _in_place_of(found: re.Match[str]) -> str:
    parts = found.groupdict()
    if parts["comment"] is not None:
        return " "
    return parts.get("kept") or "?"
