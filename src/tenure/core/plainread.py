"""Whether a statement is certain to be a read that needs no transaction. In doubt it is not.

The answer is read off the SQL that the server would get: compiling brings to light what the statement object hides, such as a
mapped class's column properties, joined eager loads, loader criteria, bind and column expressions of types, prefixes and hints.
It is found once for each of SQLAlchemy's cache keys.
"""

from __future__ import annotations

import re
from copy import copy
from threading import Lock
from typing import Any, Final, TypeGuard

from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql import ClauseElement, CompoundSelect, Select
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.selectable import TextualSelect

from tenure.engines import fork


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions of the server's own whose result depends on their arguments and the rows alone. What a transaction keeps constant,
# locks, writes or leaves behind is missing on purpose, and so is every name that is not the server's: a function of that name is
# somebody's own. tests/core/test_plainread.py asks the servers.
_COMMON: Final = """
    abs acos asin atan atan2 avg ceil ceiling coalesce concat concat_ws cos count cume_dist degrees dense_rank exp first_value
    floor format json_object lag last_value lead length ln log log10 lower ltrim max min mod nth_value ntile nullif percent_rank
    pi pow power radians rank replace round row_number rtrim sign sin sqrt substr substring sum tan trim upper
"""
_POSTGRESQL: Final = """
    acosh any_value array array_agg array_append array_cat array_dims array_length array_lower array_ndims array_position
    array_positions array_prepend array_remove array_replace array_to_json array_to_string array_upper ascii asinh atanh bit_and
    bit_count bit_length bit_or bit_xor bool_and bool_or btrim cardinality cbrt char_length character_length chr clock_timestamp
    convert_from convert_to corr cosh cot covar_pop covar_samp cube date date_bin date_part date_trunc decode div encode every
    gcd gen_random_uuid generate_series generate_subscripts get_byte greatest grouping ilike initcap isempty isfinite json_agg
    json_array json_array_elements json_array_elements_text json_array_length json_arrayagg json_build_array json_build_object
    json_each json_each_text json_exists json_extract_path json_extract_path_text json_object_agg json_object_keys
    json_objectagg json_populate_record json_populate_recordset json_query json_scalar json_serialize json_strip_nulls
    json_to_record json_to_recordset json_typeof json_value jsonb_agg jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_exists jsonb_extract_path
    jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_match
    jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_populate_record jsonb_populate_recordset jsonb_pretty
    jsonb_set jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof justify_days justify_hours justify_interval lcm
    least left lower_inc lower_inf lpad make_date make_interval make_time make_timestamp md5 mode multirange normalize
    num_nonnulls num_nulls octet_length only overlay percentile_cont percentile_disc phraseto_tsquery plainto_tsquery position
    quote_ident quote_literal quote_nullable random range_agg range_intersect_agg regexp_count regexp_instr regexp_like
    regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr regr_slope repeat
    reverse right rollup row_to_json rpad scale setweight sha224 sha256 sha384 sha512 sinh split_part starts_with
    statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array string_to_table strip strpos tanh to_ascii
    to_char to_date to_hex to_json to_jsonb to_number to_timestamp to_tsquery to_tsvector translate trim_scale trunc ts_headline
    ts_rank ts_rank_cd unnest upper_inc upper_inf var_pop var_samp variance version websearch_to_tsquery width_bucket xmlagg
    int4range int8range numrange tsrange tstzrange daterange int4multirange int8multirange nummultirange tsmultirange
    tstzmultirange datemultirange
"""
# Of extensions that many install: pg_trgm, unaccent.
_EXTENSIONS: Final = "similarity strict_word_similarity unaccent word_similarity"
# The time is that at which the statement began, also within a transaction.
_MYSQL: Final = """
    adddate addtime any_value ascii bin bit_and bit_count bit_length bit_or bit_xor char_length character_length chr conv
    convert convert_tz cot crc32 curdate current_date current_time current_timestamp curtime date date_add date_format date_sub
    datediff day dayname dayofmonth dayofweek dayofyear div elt export_set extractvalue field find_in_set from_base64 from_days
    from_unixtime greatest group_concat grouping hex hour if ifnull inet6_aton inet6_ntoa inet_aton inet_ntoa instr interval
    is_ipv4 is_ipv6 isnull json_array json_array_append json_array_insert json_arrayagg json_compact json_contains
    json_contains_path json_depth json_detailed json_exists json_extract json_insert json_keys json_length json_merge_patch
    json_merge_preserve json_objectagg json_overlaps json_pretty json_query json_quote json_remove json_replace
    json_schema_valid json_search json_set json_type json_unquote json_valid json_value last_day lcase least left localtime
    localtimestamp locate log2 lpad make_set makedate maketime match md5 median microsecond mid minute month monthname now oct
    octet_length ord period_add period_diff position quarter quote rand regexp regexp_instr regexp_like regexp_replace
    regexp_substr repeat reverse right rlike rpad sec_to_time second sha sha1 sha2 soundex space std stddev stddev_pop
    stddev_samp str_to_date strcmp subdate substring_index subtime time time_format time_to_sec timediff timestamp timestampadd
    timestampdiff to_base64 to_days to_seconds truncate ucase unhex unix_timestamp updatexml utc_date utc_time utc_timestamp
    uuid var_pop var_samp variance version week weekday weekofyear weight_string xor year yearweek
"""
# The time is that of the statement here too.
_SQLITE: Final = """
    acosh asinh atanh bm25 char cosh date datetime glob group_concat hex highlight if ifnull iif instr json json_array
    json_array_length json_each json_error_position json_extract json_group_array json_group_object json_insert json_patch
    json_pretty json_quote json_remove json_replace json_set json_tree json_type json_valid jsonb jsonb_array jsonb_each
    jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove jsonb_replace
    jsonb_set jsonb_tree julianday like likelihood likely log2 match median octet_length percentile percentile_cont
    percentile_disc printf quote random randomblob sinh snippet soundex sqlite_version strftime string_agg tanh time timediff
    total trunc typeof unhex unicode unistr unixepoch unlikely zeroblob
"""
HARMLESS: Final = {
    "postgresql": _words(f"{_COMMON} {_POSTGRESQL} {_EXTENSIONS}"),
    "mysql": _words(f"{_COMMON} {_MYSQL}"),
    "sqlite": _words(f"{_COMMON} {_SQLITE}"),
}
# Words of the language that may stand before a parenthesis without calling anything, in all three languages.
BEFORE_PARENTHESIS: Final = _words(
    """
    all and any as between bit case cast char character dec decimal distinct else except exists extract fetch float from group
    having in int intersect interval is join lateral like limit national nchar not numeric offset on or row select some
    then time timestamp union using values varchar when where with
    """
)
# The same, where they stand after one of these only.
AFTER: Final = {
    "against": frozenset([")"]),
    "bernoulli": frozenset(["tablesample"]),
    "by": frozenset(["group", "order", "partition"]),
    "filter": frozenset([")"]),
    "first": frozenset(["fetch"]),
    "index": frozenset(["force", "ignore", "use"]),
    "key": frozenset(["force", "ignore", "use"]),
    "materialized": frozenset(["as", "not"]),
    "next": frozenset(["fetch"]),
    "over": frozenset([")", "nulls"]),
    "repeatable": frozenset([")"]),
    "sets": frozenset(["grouping"]),
    "system": frozenset(["tablesample"]),
    "varying": frozenset(["bit", "char", "character"]),
    "zone": frozenset(["time"]),
}
# What stands after one of these is a name or a type: WITH recent (a, b), AS t (a, b), ::VARCHAR(10).
_NAMES_FOLLOW: Final = frozenset(["as", "with", "recursive", "::"])
# Words that change something or lock, wherever they stand unquoted; but for these after a dot or AS, where they are names.
TELLTALE: Final = _words("call delete insert into lock merge procedure sql_calc_found_rows update")
SEQUENCES: Final = frozenset(["currval", "lastval", "nextval"])
# Words that stand for a value that is constant in a transaction.
CLOCK: Final = _words(
    """
    current_date current_time current_timestamp localtime localtimestamp sysdate sysdatetime systimestamp utc_date utc_time
    utc_timestamp
    """
)
# Functions that pin a connection, and leave nothing behind that a COMMIT would store: time, locks, sequences, settings.
TRANSIENT: Final = _words(
    """
    connection_id current_schema current_setting currval database found_rows get_lock is_free_lock is_used_lock last_insert_id lastval
    nextval now pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_xact_lock
    pg_advisory_xact_lock_shared pg_backend_pid pg_current_xact_id pg_is_in_recovery pg_sleep pg_try_advisory_lock
    pg_try_advisory_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared release_lock schema set_config sleep
    sysdate timeofday transaction_timestamp txid_current user
    """
)
_STATEMENT_TIME: Final = frozenset(["mysql", "sqlite"])

# Compiled when first asked for: that would be a tenth of what `import tenure` takes.
_LEXEMES: Final = r"""
      (?P<text>'(?:[^'\\]|'')*')
    | (?P<quoted>"(?:[^"\\]|"")*"|`(?:[^`]|``)*`)
    | (?P<parameter>__\[POSTCOMPILE_[^\]]*\]|%\([^)]*\)s|%s|\$\d+|:\w+|\?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)
    | (?P<path>\#>>?)
    | (?P<doubt>--|/\*|\#|;|'|"|`|\$|:=|@@?\w|\\)
    | (?P<other>::|\S)
    """
# Texts that PostgreSQL turns into the time at which the transaction began, when they are cast to a date or a time.
_TIMES: Final = r"(?i)\b(?:now|today|tomorrow|yesterday)\b"
_REMEMBERED: Final = 2000  # cache keys; SQLAlchemy's own compiled cache holds 500 for each engine


def is_plain_sql(sql: str, dialect: str, *, transient: bool = False) -> bool:
    """Whether *sql* is one SELECT that calls nothing but harmless functions and neither locks nor writes.

    Args:
        sql: The statement, as the server gets it.
        dialect: The server's language, by SQLAlchemy's name.
        transient: Let pass what ends with the transaction and stores nothing: its locks, its time.

    """
    language = "mysql" if dialect == "mariadb" else dialect
    harmless = HARMLESS.get(language, frozenset())
    if transient:
        harmless |= TRANSIENT
    by_statement = transient or language in _STATEMENT_TIME
    before, last, kind = "", "", ""  # the two tokens before this one, and what the last one is
    for found in re.finditer(_LEXEMES, sql, re.VERBOSE):
        last_kind, kind, part = kind, str(found.lastgroup), found.group()
        if kind == "doubt" or (kind == "path" and language != "postgresql"):
            return False
        if kind == "text" and not by_statement and re.search(_TIMES, part):
            return False
        if kind == "word":
            part = part.lower()
            locks = transient and (part == "lock" or last in ("for", "key"))
            if last not in (".", "as") and not locks and (part in TELLTALE or (part in CLOCK and not by_statement)):
                return False
            if part in SEQUENCES and not transient:
                return False
        if last == "for" and not transient and before not in (".", "as") and kind in ("word", "quoted"):
            return False  # FOR UPDATE, FOR SHARE, NEXT VALUE FOR; not SUBSTRING(a FROM 1 FOR 3)
        if not last and part not in ("select", "with", "("):
            return False
        if part == "(":
            if last_kind in ("word", "quoted", "parameter") and not _calls_nothing(last, last_kind, before, harmless):
                return False
            if not last:
                continue
        before, last = last, part
    return bool(last) and last != "for"


def _calls_nothing(last: str, kind: str, before: str, harmless: frozenset[str]) -> bool:
    """Whether *last*, which stands before a parenthesis and after *before*, is no call, or one of a harmless function."""
    if before in _NAMES_FOLLOW:
        return True
    if kind != "word":
        return kind == "parameter" and not last.startswith(":")  # a[1:f(x)] is a slice
    if before == ".":
        return False
    return last in harmless or last in BEFORE_PARENTHESIS or before in AFTER.get(last, ())


def _showing_locks(dialect: Dialect) -> Dialect:
    """*dialect*, or for SQLite a copy whose compiler shows ``with_for_update()``, which then begins as a write does."""
    if dialect.name != "sqlite":
        return dialect

    class Compiler(dialect.statement_compiler):  # type: ignore[misc, name-defined]  # pyright: ignore[reportUntypedBaseClass]
        def for_update_clause(self, select: Any, **kw: Any) -> Any:  # noqa: ARG002
            return " FOR UPDATE"

    shown = copy(dialect)
    shown.statement_compiler = Compiler
    return shown


class PlainReads:
    """Knows for one dialect which statements are plain reads, and remembers it by SQLAlchemy's cache key."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = _showing_locks(dialect)
        self._answers: dict[Any, bool] = {}
        self._lock = Lock()
        fork.register(self)

    def start_anew(self) -> None:
        """As ``Heir``."""
        self._lock = Lock()

    def __call__(self, statement: object) -> bool:
        """Whether *statement* is a plain read."""
        if not self._can_be_plain(statement):
            return False
        # The name is private. It is memoised on the statement and SQLAlchemy computes it for its own cache anyway, so asking is
        # free; there is no public way. tests/core/test_plainread.py fails when it changes.
        key = statement._generate_cache_key()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if key is None:
            return bool(self._look(statement))
        answer = self._answers.get(key.key)
        return self._learn(key.key, statement) if answer is None else answer

    def _can_be_plain(self, statement: object) -> TypeGuard[ClauseElement]:
        """Whether *statement* is worth a look: no DML, DDL, lambda or function by itself.

        Raw SQL is on SQLite only. There a transaction that was begun to be on the safe side would keep all others from writing.
        """
        if isinstance(statement, (Select, CompoundSelect)):
            return True
        if self._dialect.name != "sqlite":
            return False
        return isinstance(statement, (TextClause, TextualSelect)) or bool(getattr(statement, "is_from_statement", False))

    def _learn(self, key: Any, statement: Any, *, transient: bool = False) -> bool:
        answer = self._look(statement, transient=transient)
        if answer is None:
            return False
        with self._lock:
            if len(self._answers) >= _REMEMBERED:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = answer
        return answer

    def _look(self, statement: Any, *, transient: bool = False) -> bool | None:
        try:
            sql = str(statement.compile(dialect=self._dialect))
        except Exception:  # what cannot be compiled cannot be run: SQLAlchemy says so itself, in its own words and place
            return None
        return is_plain_sql(sql, self._dialect.name, transient=transient)

    def stores_nothing(self, statement: object) -> bool:
        """Whether *statement*, which is no plain read, surely leaves nothing that a rollback would lose, as ``FOR UPDATE`` does."""
        if not isinstance(statement, (Select, CompoundSelect, TextClause, TextualSelect)):
            return False
        key = statement._generate_cache_key()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as above
        if key is None:
            return bool(self._look(statement, transient=True))
        answer = self._answers.get(("transient", key.key))
        return self._learn(("transient", key.key), statement, transient=True) if answer is None else answer

    def is_plain_text(self, sql: str) -> bool:
        """Whether raw *sql* is a plain read, for the one place that must know: a read-only part of a writing unit."""
        return is_plain_sql(sql, self._dialect.name)
