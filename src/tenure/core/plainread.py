"""Whether a statement is certain to be a read that needs no transaction. In doubt it is not.

The answer is read off the SQL that the server would get: compiling brings to light what the statement object hides, such as a
mapped class's column properties, joined eager loads, loader criteria, bind and column expressions of types, prefixes and hints.
It is found once for each of SQLAlchemy's cache keys.
"""

from __future__ import annotations

import re
from threading import Lock
from typing import Any, Final

from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql import CompoundSelect, Select

# Functions whose result depends on their arguments and the rows alone. What a transaction keeps constant (now(), currval()),
# locks, writes or leaves behind is missing on purpose, and so is every function that is not listed.
HARMLESS: Final = frozenset(
    """
    abs acos any_value array_agg array_append array_cat array_length array_position array_prepend array_remove array_to_string
    ascii asin atan atan2 avg bernoulli bit_and bit_length bit_or bit_xor bool_and bool_or btrim cardinality ceil ceiling char char_length
    character_length chr coalesce concat concat_ws corr cos cot count covar_pop covar_samp cume_dist date_part date_trunc
    datediff decode degrees dense_rank div encode every exp field find_in_set first_value floor format from_unixtime
    generate_series get_byte glob greatest group_concat grouping hex if ifnull iif initcap instr isnull json json_agg json_array
    json_array_elements json_array_elements_text json_array_length json_arrayagg json_build_array json_build_object
    json_contains json_each json_each_text json_extract json_extract_path json_extract_path_text json_group_array
    json_group_object json_length json_object json_object_agg json_object_keys json_objectagg json_quote json_tree json_type
    json_typeof json_unquote json_valid json_value jsonb_agg jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path
    jsonb_extract_path_text jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_set jsonb_strip_nulls jsonb_typeof lag last_value lcase lead least left length like ln
    locate log log10 log2 lower lpad ltrim make_date make_interval make_time max md5 median mid min mod mode month nth_value
    ntile nullif num_nonnulls num_nulls octet_length overlay percent_rank percentile_cont percentile_disc phrase_to_tsquery
    phraseto_tsquery pi plainto_tsquery position pow power printf quote quote_ident quote_literal radians rank regexp_count
    regexp_instr regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table
    regexp_substr repeat replace reverse right round row_number row_to_json rpad rtrim scale sha1 sha2 sha256 sign
    similarity sin soundex space split_part sqrt starts_with stddev stddev_pop stddev_samp str_to_date strcmp string_agg
    string_to_array strpos substr substring substring_index sum system tan timestampdiff to_ascii to_char to_date to_hex
    to_json to_jsonb to_number to_timestamp to_tsquery to_tsvector total translate trim trunc truncate ts_headline
    ts_rank ts_rank_cd typeof ucase unhex unicode unnest upper var_pop var_samp variance websearch_to_tsquery week weekday
    width_bucket word_similarity year
    """.split()
)
# On SQLite the time is that of the statement, also within a transaction.
HARMLESS_ON: Final = {
    "sqlite": frozenset("date datetime julianday random strftime time unixepoch".split()),
}
# Words of the language that may stand before a parenthesis without calling anything.
BEFORE_PARENTHESIS: Final = frozenset(
    """
    against all and any as between bit by case cast char character collate convert cube decimal distinct double else end escape
    except exists extract fetch filter first float from group grouping having ilike in intersect interval is join lateral like
    limit match materialized next not numeric nvarchar offset on or order over partition recursive regexp rollup row rows
    select sets similar some then time timestamp top union using values varbinary varbit varchar when where with within xor
    """.split()
)
# Words that change something, lock, or stand for a value that is constant in a transaction, wherever they stand unquoted.
TELLTALE: Final = frozenset(
    """
    currval current_date current_time current_timestamp delete dumpfile for insert into localtime localtimestamp lock merge
    nextval outfile procedure returning sysdate sysdatetime systimestamp update utc_date utc_time utc_timestamp
    """.split()
)
# Texts that a server turns into the time at which the transaction began, when they are cast to a date or a time.
TIMES: Final = frozenset(["now", "today", "tomorrow", "yesterday"])

_TOKEN: Final = re.compile(
    r"""
      (?P<text>'(?:[^'\\]|'')*')
    | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`)
    | (?P<parameter>__\[POSTCOMPILE_[^\]]*\]|%\([^)]*\)s|%s|\$\d+|:\w+|\?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>\d[\w.]*)
    | (?P<doubt>--|/\*|\#|;|'|"|`|\$|:=|@@?\w|\\)
    | (?P<other>::|\S)
    """,
    re.VERBOSE,
)
_REMEMBERED: Final = 2000  # cache keys; SQLAlchemy's own compiled cache holds 500 for each engine


def is_plain_sql(sql: str, harmless: frozenset[str] = HARMLESS) -> bool:
    """Whether *sql* is one SELECT that calls nothing but *harmless* functions and neither locks nor writes."""
    before, word, kind = "", "", ""
    for found in _TOKEN.finditer(sql):
        last, kind, token = kind, str(found.lastgroup), found.group()
        if kind == "doubt":
            return False
        if kind == "text" and token[1:-1].strip().lower() in TIMES:
            return False
        if token == "(" and last == "quoted":
            return False
        if (
            token == "("
            and last == "word"
            and not (word in BEFORE_PARENTHESIS or word in harmless or before in ("as", "with", "recursive"))
        ):
            return False
        if kind == "word":
            if token.lower() in TELLTALE:
                return False
            if last == "dot":
                before, word = "-", f".{token.lower()}"  # a column, or a function in a schema: not in any list
                continue
            before, word = word, token.lower()
            if not before and word not in ("select", "with"):
                return False
        elif token == ".":
            kind = "dot"
        elif token != "(":
            before, word = before or "-", "-"
    return bool(word)


class PlainReads:
    """Knows for one dialect which statements are plain reads, and remembers it by SQLAlchemy's cache key."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._harmless = HARMLESS | HARMLESS_ON.get(dialect.name, frozenset())
        self._answers: dict[Any, bool] = {}
        self._lock = Lock()

    def __call__(self, statement: object) -> bool:
        if not isinstance(statement, (Select, CompoundSelect)):
            return False  # text(), from_statement(), DML, DDL, lambdas
        # The name is private. It is memoised on the statement and SQLAlchemy computes it for its own cache anyway, so asking is
        # free; there is no public way. tests/core/test_plainread.py fails when it changes.
        key = statement._generate_cache_key()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if key is None:
            return self._look(statement)
        answer = self._answers.get(key.key)
        return self._learn(key.key, statement) if answer is None else answer

    def _learn(self, key: Any, statement: Any) -> bool:
        answer = self._look(statement)
        with self._lock:
            if len(self._answers) >= _REMEMBERED:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = answer
        return answer

    def _look(self, statement: Any) -> bool:
        try:
            sql = str(statement.compile(dialect=self._dialect))
        except Exception:  # what cannot be compiled cannot be run: SQLAlchemy says so itself, in its own words and place
            return False
        return is_plain_sql(sql, self._harmless)

    def is_plain_text(self, sql: str) -> bool:
        """Whether raw *sql* is a plain read, for the one place that must know: a read-only part of a writing unit."""
        return is_plain_sql(sql, self._harmless)
