"""Which statements are plain reads: on the SQL that each dialect makes of them."""

import contextlib
import sqlite3
import threading

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from sqlalchemy import func, orm
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.mysql import mariadb
from sqlalchemy.dialects.postgresql import array as pg_array
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import aliased, joinedload, selectinload, subqueryload, with_expression, with_loader_criteria
from sqlalchemy.sql import quoted_name

from tenure.core import plainread
from tenure.core.plainread import HARMLESS, PlainReads, is_plain_sql

from support import servers

READS = {
    "psycopg": PlainReads(postgresql.psycopg.dialect()),
    "asyncpg": PlainReads(postgresql.asyncpg.dialect()),
    "psycopg2": PlainReads(postgresql.psycopg2.dialect()),
    "pymysql": PlainReads(mysql.pymysql.dialect()),
    "mariadb": PlainReads(mariadb.loader("pymysql")()),
    "sqlite": PlainReads(sqlite.pysqlite.dialect()),
}
POSTGRESQL = ("psycopg", "asyncpg", "psycopg2")
MYSQL = ("pymysql", "mariadb")
ALL = tuple(READS)
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # cartesian products, cache_ok: on purpose


class Base(orm.DeclarativeBase):
    pass


class Shouting(sa.TypeDecorator):
    """A type whose columns call a function whenever they are read."""

    impl = sa.String
    cache_ok = True

    def column_expression(self, column):
        return func.audited(column, type_=self)


class Guarded(sa.TypeDecorator):
    """A type whose parameters call a function whenever they are compared."""

    impl = sa.String
    cache_ok = True

    def bind_expression(self, bindvalue):
        return func.audited(bindvalue, type_=self)


class touch(sa.sql.functions.GenericFunction):  # noqa: N801
    inherit_cache = True


class Construct(sa.ColumnElement):
    """A construct of the user's own, with an SQL of its own."""

    inherit_cache = True
    type = sa.Integer()


@compiles(Construct)
def _construct(element, compiler, **kw):
    return "audit_row(1)"


class Mild(Construct):
    inherit_cache = True


@compiles(Mild)
def _mild(element, compiler, **kw):
    return "abs(1)"


class A(Base):
    __tablename__ = "a"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(50))
    x: orm.Mapped[int]
    at: orm.Mapped[sa.DateTime] = orm.mapped_column(sa.DateTime)
    data: orm.Mapped[dict] = orm.mapped_column(sa.JSON)
    free: orm.Mapped[int] = orm.query_expression()
    bs: orm.Mapped[list["B"]] = orm.relationship(back_populates="a")

    @hybrid_property
    def loud(self):
        return self.name

    @loud.inplace.expression
    @classmethod
    def _loud(cls):
        return func.audit(cls.name)


class B(Base):
    __tablename__ = "b"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    a_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(A.id))
    kind: orm.Mapped[str] = orm.mapped_column(sa.String(10))
    lock: orm.Mapped[int]  # names that are words of the language
    update: orm.Mapped[int]
    a: orm.Mapped[A] = orm.relationship(back_populates="bs")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "b"}


class BSpecial(B):
    __tablename__ = "b_special"
    id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(B.id), primary_key=True)
    extra: orm.Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "special"}


class Counted(Base):
    """A class with a harmless column property."""

    __tablename__ = "counted"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


Counted.many = orm.column_property(sa.select(func.count(A.id)).where(A.id == Counted.id).scalar_subquery())


class Hidden(Base):
    """A class whose every load calls a function: nothing of it shows in select(Hidden)."""

    __tablename__ = "hidden"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    a_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(A.id))


Hidden.seen = orm.column_property(sa.select(func.audit(A.id)).where(A.id == Hidden.a_id).scalar_subquery())


class Typed(Base):
    __tablename__ = "typed"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    loud: orm.Mapped[str] = orm.mapped_column(Shouting())
    guarded: orm.Mapped[str] = orm.mapped_column(Guarded())


class Quiet(Base):
    """Relationships that call a function where nobody looks for it."""

    __tablename__ = "quiet"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    a_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(A.id))
    hiddens: orm.Mapped[list[Hidden]] = orm.relationship(
        primaryjoin=lambda: orm.foreign(Hidden.a_id) == Quiet.a_id, viewonly=True, uselist=True
    )
    by_audit: orm.Mapped[list[B]] = orm.relationship(
        primaryjoin=lambda: sa.and_(orm.foreign(B.a_id) == Quiet.a_id, func.audit(B.id) == 1), viewonly=True, uselist=True
    )
    in_order: orm.Mapped[list[B]] = orm.relationship(
        primaryjoin=lambda: orm.foreign(B.a_id) == Quiet.a_id, order_by=lambda: func.audit(B.id), viewonly=True, uselist=True
    )
    eager: orm.Mapped[list[B]] = orm.relationship(
        primaryjoin=lambda: sa.and_(orm.foreign(B.a_id) == Quiet.a_id, func.audit(B.id) == 2),
        viewonly=True, uselist=True, lazy="raise",
    )  # fmt: skip


class EagerlyQuiet(Base):
    """Its relationship is loaded by a join, without being asked for."""

    __tablename__ = "eagerly_quiet"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    hidden_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Hidden.id))
    hidden: orm.Mapped[Hidden] = orm.relationship(lazy="joined")


t = A.__table__
SEQUENCE = sa.Sequence("numbers")
a2 = aliased(A)
JSONB = sa.cast(A.data, postgresql.JSONB)
SERIES = func.generate_series(1, 5)
one = sa.select(A.id).where(A.x == 1)
inner = sa.select(A).with_for_update().subquery()


def recursive(piece=None, name="tree"):
    base = sa.select(A.id.label("n")).where(A.x == 1).cte(name, recursive=True)
    step = sa.select(base.c.n + 1).where(base.c.n < 5)
    return base.union_all(step if piece is None else step.where(piece))


# name: statement, or a function that makes it, with the dialects that it concerns
PLAIN = {
    "entity": (sa.select(A), ALL),
    "columns": (sa.select(A.id, A.name.label("n"), (A.x + 1).label("y")), ALL),
    "core": (sa.select(t).where(t.c.x > 3).order_by(t.c.id.desc()), ALL),
    "count": (sa.select(func.count()).select_from(A), ALL),
    "count distinct": (sa.select(func.count(A.name.distinct())), ALL),
    "in list": (sa.select(A).where(A.id.in_([1, 2, 3])), ALL),
    "in empty": (sa.select(A).where(A.id.in_([])), ALL),
    "not in": (sa.select(A).where(A.id.not_in([1])), ALL),
    "tuple in": (sa.select(A).where(sa.tuple_(A.id, A.x).in_([(1, 2)])), ALL),
    "in subquery": (sa.select(A).where(A.id.in_(sa.select(B.a_id))), ALL),
    "exists": (sa.select(A).where(sa.exists().where(B.a_id == A.id)), ALL),
    "select exists": (sa.select(sa.exists(one)), ALL),
    "any": (sa.select(A).where(A.bs.any(B.kind == "b")), ALL),
    "has": (sa.select(B).where(B.a.has(A.x == 1)), ALL),
    "contains": (sa.select(A).where(A.name.contains("x%", autoescape=True)), ALL),
    "like": (sa.select(A).where(A.name.like("x") | A.name.ilike("y") | A.name.regexp_match("z")), ALL),
    "between": (sa.select(A).where(A.x.between(1, 3), ~A.x.between(4, 5)), ALL),
    "null": (sa.select(A).where(A.x.is_(None), A.name.is_not(None), A.x.is_distinct_from(A.id)), ALL),
    "case": (sa.select(sa.case((A.x == 1, "one"), (A.x == 2, "two"), else_="many")), ALL),
    "case in order": (sa.select(A).order_by(sa.case((A.x == 1, 0), else_=1), A.name.desc().nulls_last()), POSTGRESQL),
    "cast": (sa.select(sa.cast(A.x, sa.String(10)), sa.cast(A.name, sa.Numeric(10, 2)), sa.cast(A.at, sa.Date)), ALL),
    "type_coerce": (sa.select(sa.type_coerce(A.name, sa.Integer)), ALL),
    "arithmetic": (sa.select(A.x + 1, A.x * 2, A.x / 3, A.x // 4, A.x % 5, -A.x, A.x.op("&")(1)), ALL),
    "concat": (sa.select(A.name + "x" + A.name, A.name.concat("y")), ALL),
    "group by having": (sa.select(A.x, func.sum(A.id)).group_by(A.x).having(func.count() > 1), ALL),
    "rollup": (sa.select(A.x, func.sum(A.id)).group_by(func.rollup(A.x)), POSTGRESQL),
    "grouping sets": (sa.select(A.x).group_by(func.grouping_sets(A.x, A.id)), ()),
    "distinct": (sa.select(A.x).distinct(), ALL),
    "distinct on": (sa.select(A.x).prefix_with("DISTINCT ON (a.name)"), POSTGRESQL),
    "limit": (sa.select(A).limit(10).offset(20), ALL),
    "fetch": (sa.select(A).order_by(A.id).fetch(10, with_ties=True), POSTGRESQL),
    "page": (sa.select(A).where(sa.tuple_(A.at, A.id) > (1, 2)).order_by(A.at, A.id).limit(11), ALL),
    "slice": (sa.select(A).slice(2, 5), ALL),
    "window": (sa.select(func.row_number().over(partition_by=A.x, order_by=A.id), func.lag(A.x, 1).over(order_by=A.id)), ALL),
    "frame": (sa.select(func.sum(A.x).over(order_by=A.id, rows=(-2, 0))), ALL),
    "filter": (sa.select(func.count(A.id).filter(A.x > 1)), (*POSTGRESQL, "sqlite")),
    "filter over": (sa.select(func.sum(A.id).filter(A.x > 1).over(order_by=A.id)), (*POSTGRESQL, "sqlite")),
    "within group": (sa.select(func.percentile_cont(0.5).within_group(A.x)), POSTGRESQL),
    "string_agg": (sa.select(func.aggregate_strings(A.name, ",")), ALL),
    "cte": (sa.select(one.cte("recent")), ALL),
    "cte materialized": (sa.select(one.cte("recent").suffix_with("")), ALL),
    "recursive cte": (sa.select(recursive()), ALL),
    "quoted cte": (sa.select(recursive(name="Tree of")), ALL),
    "nested cte": (sa.select(sa.select(one.cte("recent")).cte("again")), ALL),
    "subquery": (sa.select(one.subquery("sub")), ALL),
    "scalar subquery": (sa.select(A.id, sa.select(func.max(B.id)).where(B.a_id == A.id).scalar_subquery()), ALL),
    "lateral": (sa.select(A.id, sa.select(B.id).where(B.a_id == A.id).lateral("l").c.id), POSTGRESQL),
    "union": (sa.union_all(sa.select(A.id), sa.select(B.id)).order_by("id").limit(3), ALL),
    "except": (sa.except_(sa.select(A.id), sa.select(B.id)), ALL),
    "nested union": (sa.union(sa.select(A.id), sa.union_all(sa.select(B.id), one)), ALL),
    "from union": (sa.select(A).from_statement(sa.select(A)), ()),
    "entity from subquery": (sa.select(aliased(A, sa.select(A).where(A.x == 1).subquery())), ALL),
    "join": (sa.select(A, B).join(A.bs), ALL),
    "outer join": (sa.select(A).outerjoin(B, sa.and_(B.a_id == A.id, B.kind == "b")), ALL),
    "self join": (sa.select(A, a2).join(a2, a2.x == A.x), ALL),
    "polymorphic": (sa.select(B), ALL),
    "with polymorphic": (sa.select(orm.with_polymorphic(B, "*")), ALL),
    "polymorphic flat": (sa.select(orm.with_polymorphic(B, [BSpecial], flat=True, aliased=True)), ALL),
    "of_type": (sa.select(A).join(A.bs.of_type(BSpecial)), ALL),
    "joinedload": (sa.select(A).options(joinedload(A.bs)), ALL),
    "joinedload limit": (sa.select(A).options(joinedload(A.bs)).limit(5), ALL),
    "selectinload": (sa.select(A).options(selectinload(A.bs)), ALL),
    "subqueryload": (sa.select(A).options(subqueryload(A.bs)), ALL),
    "contains_eager": (sa.select(A).join(A.bs).options(orm.contains_eager(A.bs)), ALL),
    "load_only": (sa.select(A).options(orm.load_only(A.name), orm.defer(A.x)), ALL),
    "loader criteria": (sa.select(A).options(with_loader_criteria(A, A.x == 1)), ALL),
    "with_expression": (sa.select(A).options(with_expression(A.free, A.x + 1)), ALL),
    "column property": (sa.select(Counted), ALL),
    "bundle": (sa.select(orm.Bundle("pair", A.id, A.name)), ALL),
    "bind": (sa.select(sa.literal(1), sa.bindparam("y", 2), sa.null(), sa.true()), ALL),
    "literal column": (sa.select(sa.literal_column("1"), sa.literal_column("'it''s for update'")), ALL),
    "harmless text inside": (sa.select(A).where(sa.text("x > :low")), ALL),
    "table sample": (sa.select(sa.tablesample(A, func.bernoulli(10), seed=sa.literal(1))), POSTGRESQL),
    "table sample system": (sa.select(sa.tablesample(A, func.system(10))), POSTGRESQL),
    "values": (sa.select(sa.values(sa.column("n", sa.Integer), name="v").data([(1,), (2,)])), (*POSTGRESQL, "sqlite")),
    "json": (sa.select(A.data["k"].as_string(), A.data[("a", "b")].as_integer()).where(A.data["n"].as_float() > 1), ALL),
    "json boolean": (sa.select(A).where(A.data["f"].as_boolean()), ALL),
    "schema": (sa.select(sa.table("t", sa.column("c"), schema="s")), ALL),
    "mild construct": (sa.select(Mild()), ALL),
    "names like words": (sa.select(B.lock, B.update.label("update"), B.lock.label("merge")).order_by(B.lock), ALL),
    "extract": (sa.select(sa.extract("year", A.at), func.coalesce(A.x, 0), func.nullif(A.x, 0)), ALL),
    "text functions": (sa.select(func.lower(A.name), func.trim(A.name), func.replace(A.name, "a", "b")), ALL),
    "substring": (sa.select(func.substring(A.name, 1, 3)), ALL),
    "date": (sa.select(func.date(A.at), func.count()).group_by(func.date(A.at)), ALL),
    "for in text": (sa.select(sa.literal_column("'nextval for update'")), ALL),
    "collate": (sa.select(A).order_by(sa.collate(A.name, "C")), ALL),
    "not": (sa.select(A).where(~(A.x == 1) & sa.not_(sa.or_(A.x == 2, A.x == 3))), ALL),
    "any array": (sa.select(A).where(A.x == sa.any_(pg_array([1, 2]))), POSTGRESQL),
    "array slice": (sa.select(sa.column("tags", postgresql.ARRAY(sa.Integer))[1:3]), POSTGRESQL),
    "array contains": (sa.select(A).where(sa.cast(A.name, postgresql.ARRAY(sa.Integer)).contains([1])), POSTGRESQL),
    "array of select": (sa.select(func.array(one.scalar_subquery())), POSTGRESQL),
    "jsonb": (sa.select(JSONB.contains({"a": 1}), JSONB.has_key("a")), POSTGRESQL),
    "jsonb path": (sa.select(A.data[("a", "b")], JSONB[("a", "b")].astext), POSTGRESQL),
    "unnest": (sa.select(func.unnest(pg_array([1, 2])).table_valued("n")), POSTGRESQL),
    "generate_series": (sa.select(SERIES.table_valued("n", with_ordinality="o").render_derived()), POSTGRESQL),
    "text search": (sa.select(A).where(func.to_tsvector("english", A.name).bool_op("@@")(func.to_tsquery("x"))), POSTGRESQL),
    "random order": (sa.select(A).order_by(func.random()), (*POSTGRESQL, "sqlite")),
    "rand order": (sa.select(A).order_by(func.rand()), MYSQL),
    "json_each": (sa.select(A, func.json_each(A.data).table_valued("value")), (*POSTGRESQL, "sqlite")),
    "clock of the statement": (sa.select(A).where(A.at < func.now(), A.at < func.current_timestamp()), (*MYSQL, "sqlite")),
    "now in a literal": (sa.select(sa.literal_column("date('now')")), ("sqlite",)),
    "index hint": (sa.select(A).with_hint(A, "USE INDEX (ix)", "mysql").with_hint(A, "USE INDEX (ix)", "mariadb"), MYSQL),
    "text": (sa.text("SELECT 1, :low"), ("sqlite",)),
    "text columns": (sa.text("SELECT id FROM a").columns(A.id), ("sqlite",)),
    "from text": (sa.select(A).from_statement(sa.text("SELECT * FROM a")), ("sqlite",)),
    "straight join": (sa.select(A).prefix_with("STRAIGHT_JOIN"), MYSQL),
    "full text": (sa.select(A).where(mysql.match(A.name, against="x").in_boolean_mode()), MYSQL),
}  # fmt: skip

# What must be found wherever it stands: column expressions that call something, or stand for the transaction's time.
PIECES = {
    "unknown function": (func.audit(A.id), ALL),
    "method of a schema": (func.app.audit(A.id), ALL),
    "harmless name in a schema": (func.app.lower(A.name), ALL),
    "quoted function": (getattr(func, "Audit Trail")(A.id), ALL),
    "quoted harmless name": (sa.sql.functions.Function(quoted_name("Count", quote=True), A.id), ALL),
    "generic function": (touch(A.id), ALL),
    "function in function": (func.coalesce(func.lower(func.audit(A.id)), "x"), ALL),
    "literal column": (sa.literal_column("audit(1)", sa.Integer), ALL),
    "literal column with space": (sa.literal_column("audit \n (1)", sa.Integer), ALL),
    "text": (sa.type_coerce(sa.literal_column("(1 + audit(1))"), sa.Integer), ALL),
    "operator text": (A.x.op("+ audit(1) +")(1), ALL),
    "construct": (Construct(), ALL),
    "hybrid": (A.loud, ALL),
    "comment": (sa.literal_column("1 /* audit */", sa.Integer), ALL),
    "line comment": (sa.literal_column("1 -- audit", sa.Integer), ALL),
    "conditional comment": (sa.literal_column("1 /*! FOR UPDATE */", sa.Integer), ALL),
    "semicolon": (sa.literal_column("1; SELECT 2", sa.Integer), ALL),
    "scalar for update": (sa.select(A.id).with_for_update().scalar_subquery(), ALL),
    "filtered aggregate": (func.audit(A.id).filter(A.x == 1), ALL),
    "window": (func.count().over(partition_by=func.audit(A.id)), ALL),
    "now": (func.now(), POSTGRESQL),
    "current_timestamp": (func.current_timestamp(), POSTGRESQL),
    "current_date": (func.current_date(), POSTGRESQL),
    "localtime": (func.localtime(), POSTGRESQL),
    "transaction_timestamp": (func.transaction_timestamp(), POSTGRESQL),
    "now as text": (sa.literal_column("'now'::timestamp"), POSTGRESQL),
    "tomorrow as text": (sa.literal_column("timestamp 'tomorrow 10:00'"), POSTGRESQL),
    "sequence": (SEQUENCE.next_value(), (*POSTGRESQL, "mariadb")),
    "currval": (func.currval("numbers"), POSTGRESQL),
    "sequence column": (sa.literal_column("numbers.nextval", sa.Integer), ALL),
    "next value for": (sa.literal_column("NEXT VALUE FOR numbers", sa.Integer), ALL),
    "next value for quoted": (sa.literal_column('NEXT VALUE FOR "numbers"', sa.Integer), ALL),
    "advisory lock": (func.pg_advisory_xact_lock(1), POSTGRESQL),
    "backend": (func.pg_backend_pid(), POSTGRESQL),
    "set_config": (func.set_config("a.b", "c", True), POSTGRESQL),
    "current_setting": (func.current_setting("a.b"), POSTGRESQL),
    "slice bound": (sa.cast(A.name, postgresql.ARRAY(sa.Integer))[1 : func.audit(1)], POSTGRESQL),
    "dollar quotes": (sa.literal_column("$$x$$"), POSTGRESQL),
    "someone's function": (func.truncate(A.name), POSTGRESQL),
    "someone's keyword": (func.next(A.name), POSTGRESQL),
    "last_insert_id": (func.last_insert_id(), MYSQL),
    "found_rows": (func.found_rows(), MYSQL),
    "get_lock": (func.get_lock("x", 1), MYSQL),
    "sleep": (func.sleep(0), MYSQL),
    "user variable": (sa.literal_column("@n := @n + 1", sa.Integer), MYSQL),
    "read variable": (sa.literal_column("@n", sa.Integer), MYSQL),
    "system variable": (sa.literal_column("@@last_insert_id", sa.Integer), MYSQL),
    "hash comment": (sa.literal_column("1 # x\n", sa.Integer), MYSQL),
    "escaped text": (sa.literal_column(r"'a\' , audit(1), \'b'", sa.String), MYSQL),
    "escaped double quotes": (sa.literal_column(r'"a\" , audit(1), \"b"', sa.String), MYSQL),
    "insert function": (func.insert("abc", 1, 1, "x"), MYSQL),
    "last_insert_rowid": (func.last_insert_rowid(), ("sqlite",)),
    "changes": (func.changes(), ("sqlite",)),
    "load_extension": (func.load_extension("x"), ("sqlite",)),
}  # fmt: skip

# Where a piece may stand.
PLACES = {
    "columns": lambda p: sa.select(A.id, p.label("p")),
    "where": lambda p: sa.select(A).where(p == 1),
    "where not": lambda p: sa.select(A).where(~sa.or_(A.x == 1, sa.and_(A.x == 2, p == 1))),
    "order by": lambda p: sa.select(A).order_by(A.id, sa.desc(p)),
    "group by": lambda p: sa.select(func.count()).select_from(A).group_by(p),
    "having": lambda p: sa.select(A.x).group_by(A.x).having(func.max(p) > 1),
    "case when": lambda p: sa.select(sa.case((p == 1, 1), else_=2)),
    "case else": lambda p: sa.select(sa.case((A.x == 1, 1), else_=p)),
    "cast": lambda p: sa.select(sa.cast(p, sa.String(5))),
    "in list": lambda p: sa.select(A).where(A.x.in_([sa.literal(1), p])),
    "in subquery": lambda p: sa.select(A).where(A.x.in_(sa.select(p))),
    "exists": lambda p: sa.select(A).where(sa.exists().where(sa.and_(B.a_id == A.id, p == 1))),
    "subquery": lambda p: sa.select(sa.select(p.label("p")).subquery()),
    "deep subquery": lambda p: sa.select(sa.select(sa.select(sa.select(p.label("p")).subquery()).cte("c")).subquery()),
    "scalar subquery": lambda p: sa.select(sa.select(p).scalar_subquery()),
    "cte": lambda p: sa.select(sa.select(p.label("p")).cte("c")),
    "recursive": lambda p: sa.select(recursive(p == 1)),
    "unused cte": lambda p: sa.select(A).add_cte(sa.select(p.label("p")).cte("c")),
    "nesting cte": lambda p: sa.select(sa.select(A.id).add_cte(sa.select(p.label("p")).cte("c", nesting=True)).subquery()),
    "union": lambda p: sa.union_all(sa.select(A.id), sa.select(p)),
    "union first": lambda p: sa.union(sa.select(p), sa.select(A.id)),
    "union order": lambda p: sa.union(sa.select(A.id), sa.select(B.id)).order_by(p),
    "nested union": lambda p: sa.select(sa.union(sa.select(A.id), sa.intersect(sa.select(B.id), sa.select(p))).subquery()),
    "join on": lambda p: sa.select(A).join(B, sa.and_(B.a_id == A.id, p == 1)),
    "limit": lambda p: sa.select(A).limit(sa.type_coerce(p, sa.Integer)),
    "offset": lambda p: sa.select(A).limit(5).offset(sa.type_coerce(p, sa.Integer)),
    "partition": lambda p: sa.select(func.count().over(partition_by=p)),
    "window order": lambda p: sa.select(func.count().over(order_by=p)),
    "tuple": lambda p: sa.select(A).where(sa.tuple_(A.id, p) == sa.tuple_(1, 2)),
    "function argument": lambda p: sa.select(func.coalesce(A.x, p)),
    "lateral": lambda p: sa.select(A.id, sa.select(p.label("p")).lateral("l")),
    "extract": lambda p: sa.select(sa.extract("year", p)),
    "between": lambda p: sa.select(A).where(A.x.between(1, p)),
    "joined load criteria": lambda p: sa.select(A).options(joinedload(A.bs.and_(p == 1))),
    "loader criteria": lambda p: sa.select(A).options(with_loader_criteria(A, p == 1)),
    "with_expression": lambda p: sa.select(A).options(with_expression(A.free, p)),
    "joined loader criteria": lambda p: sa.select(A).options(joinedload(A.bs), with_loader_criteria(B, B.id == sa.select(p))),
    "entity of subquery": lambda p: sa.select(aliased(A, sa.select(A).where(p == 1).subquery())),
    "bundle": lambda p: sa.select(orm.Bundle("b", A.id, p.label("p"))),
    "dml in cte": lambda p: sa.select(sa.select(p.label("p")).cte("c")).where(sa.exists(sa.select(A.id))),
}  # fmt: skip

# Loader options say nothing once the statement is a part of another: SQLAlchemy leaves them out.
OPTIONS = {"joined load criteria", "loader criteria", "with_expression", "joined loader criteria"}

# Whole statements that must pin.
PINNED = {
    "text": (sa.text("SELECT 1"), (*POSTGRESQL, *MYSQL)),
    "text columns": (sa.text("SELECT id FROM a").columns(A.id), (*POSTGRESQL, *MYSQL)),
    "from statement": (sa.select(A).from_statement(sa.text("SELECT * FROM a")), (*POSTGRESQL, *MYSQL)),
    "text that writes": (sa.text("UPDATE a SET x = 1"), ALL),
    "text that calls": (sa.text("SELECT audit(1)"), ALL),
    "text with a comment": (sa.text("SELECT 1 -- really"), ALL),
    "text of the connection": (sa.text("PRAGMA query_only"), ALL),
    "text from statement that calls": (sa.select(A).from_statement(sa.text("SELECT audit(1)")), ALL),
    "insert": (sa.insert(A), ALL),
    "update": (sa.update(A).values(x=1), ALL),
    "delete": (sa.delete(A), ALL),
    "ddl": (sa.DDL("CREATE TABLE z (id INT)"), ALL),
    "create table": (sa.schema.CreateTable(t), ALL),
    "sequence": (SEQUENCE, ALL),
    "function": (func.lower("x"), ALL),
    "lambda": (sa.lambda_stmt(lambda: sa.select(A)), ALL),
    "for update": (sa.select(A).with_for_update(), ALL),
    "for share": (sa.select(A).with_for_update(read=True, nowait=True), ALL),
    "for update of": (sa.select(A).join(A.bs).with_for_update(of=B, skip_locked=True), ALL),
    "key share": (sa.select(A).with_for_update(key_share=True), ALL),
    "for update in subquery": (sa.select(inner), ALL),
    "for update in cte": (sa.select(sa.select(A).with_for_update().cte("c")), ALL),
    "for update in exists": (sa.select(A).where(sa.exists(sa.select(B.id).with_for_update())), ALL),
    "for update in union": (sa.union_all(sa.select(A.id), sa.select(inner.c.id)), ALL),
    "for update four deep": (sa.select(sa.select(sa.select(sa.select(inner).subquery()).cte()).subquery()), ALL),
    "for update of entity": (sa.select(aliased(A, inner)), ALL),
    "insert in cte": (sa.select(sa.insert(A).values(x=1).returning(A.id).cte("c")), ALL),
    "update in cte": (sa.select(A).add_cte(sa.update(B).values(lock=1).returning(B.id).cte("c")), ALL),
    "delete in cte": (sa.select(sa.delete(B).returning(B.id).cte("c")), ALL),
    "delete in nested cte": (sa.select(sa.select(sa.delete(B).returning(B.id).cte("c")).cte("d")), ALL),
    "prefix": (sa.select(A).prefix_with("SQL_CALC_FOUND_ROWS"), ALL),
    "prefix comment": (sa.select(A).prefix_with("/*+ hint */"), ALL),
    "suffix": (sa.select(A).suffix_with("FOR UPDATE"), ALL),
    "suffix lock": (sa.select(A).suffix_with("LOCK IN SHARE MODE"), ALL),
    "suffix into": (sa.select(A).suffix_with("INTO OUTFILE '/tmp/x'"), ALL),
    "statement hint": (sa.select(A).with_statement_hint("FOR SHARE"), ALL),
    "statement hint comment": (sa.select(A).with_statement_hint("/*+ SeqScan(a) */"), ALL),
    "cte suffix": (sa.select(one.cte("c").suffix_with("FOR UPDATE")), ALL),
    "cte prefix": (sa.select(one.cte("c").prefix_with("/* x */")), POSTGRESQL),
    "select into": (sa.select(A).prefix_with("1 INTO copy_of_a FROM a; SELECT"), ALL),
    "table valued": (sa.select(func.audit(1).table_valued("n")), ALL),
    "scalar valued": (sa.select(func.audit(1).scalar_table_valued("n")), ALL),
    "column valued": (sa.select(func.audit(1).column_valued("n")), ALL),
    "derived": (sa.select(func.audit(1).table_valued("n").render_derived(name="lower", with_types=False)), ALL),
    "table valued join": (sa.select(A).join(func.audit(A.id).table_valued("n").lateral(), sa.true()), ALL),
    "sample method": (sa.select(sa.tablesample(A, func.audit(10))), ALL),
    "column property": (sa.select(Hidden), ALL),
    "column property of an alias": (sa.select(aliased(Hidden)), ALL),
    "joined eager column property": (sa.select(EagerlyQuiet), ALL),
    "joinedload column property": (sa.select(Quiet).options(joinedload(Quiet.hiddens)), ALL),
    "primaryjoin": (sa.select(Quiet).join(Quiet.by_audit), ALL),
    "primaryjoin joined": (sa.select(Quiet).options(joinedload(Quiet.by_audit)), ALL),
    "primaryjoin exists": (sa.select(Quiet).where(Quiet.by_audit.any()), ALL),
    "relationship order": (sa.select(Quiet).options(joinedload(Quiet.in_order)), ALL),
    "column_expression": (sa.select(Typed.loud), ALL),
    "column_expression of entity": (sa.select(Typed).where(Typed.id == 1), ALL),
    "bind_expression": (sa.select(Typed.id).where(Typed.guarded == "x"), ALL),
    "quoted dml": (sa.select(sa.literal_column("1) FROM a; DELETE FROM a; SELECT (1")), ALL),
    "values of a sequence": (sa.select(sa.values(sa.column("n", sa.Integer), name="v").data([(func.audit(1),)])), ALL),
}  # fmt: skip


def table(rows):
    return [
        pytest.param(dialect, statement, id=f"{name}-{dialect}")
        for name, (statement, dialects) in rows.items()
        for dialect in dialects
    ]


def sql(dialect, statement):
    return str(statement.compile(dialect=READS[dialect]._dialect))


@pytest.mark.parametrize(("dialect", "statement"), table(PLAIN))
def test_plain(dialect, statement):
    """R32: what every program reads with needs no transaction."""
    assert READS[dialect](statement), sql(dialect, statement)


@pytest.mark.parametrize(("dialect", "statement"), table(PINNED))
def test_pinned(dialect, statement):
    """R33: what writes, locks, calls or cannot be looked into begins a transaction."""
    assert not READS[dialect](statement)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dialect", ["psycopg", "asyncpg", "pymysql", "sqlite"])
def test_forbidden_pieces_everywhere(dialect, place):
    """R33: what must not run in autocommit is found wherever it stands in a statement."""
    reads, put = READS[dialect], PLACES[place]
    found = {name for name, (piece, dialects) in PIECES.items() if dialect in dialects and not reads(put(piece))}

    assert found == {name for name, (_, dialects) in PIECES.items() if dialect in dialects}
    assert reads(put(A.x)) is (dialect in POSTGRESQL or _compiles(dialect, put(A.x))), sql(dialect, put(A.x))


def _compiles(dialect, statement):
    try:
        sql(dialect, statement)
    except sa.exc.CompileError:
        return False
    return True


@pytest.mark.parametrize("loads", [Quiet.by_audit, Quiet.in_order, Quiet.hiddens])
def test_separate_loads_are_looked_at_themselves(loads):
    """R33: a selectin load's own statement pins where it calls something; the statement that asks for it does not."""
    asked = []
    engine = sa.create_engine("sqlite://")
    sa.event.listen(engine, "before_execute", lambda c, clause, *rest: asked.append(clause))
    engine.connect().connection.create_function("audit", 1, lambda x: x)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Quiet(a_id=1))
        session.flush()
        asked.clear()
        session.scalars(sa.select(Quiet).options(selectinload(loads))).all()

    assert [READS["sqlite"](clause) for clause in asked] == [True, False]
    engine.dispose()


# ------------------------------------------------------------------------------------------------ generated statements

WRAPS = (
    lambda s: sa.select(s.subquery()),
    lambda s: sa.select(s.cte()),
    lambda s: sa.select(A.id).where(A.id.in_(_one_column(s))),
    lambda s: sa.select(A.id).where(sa.exists(s)),
    lambda s: sa.select(A.id, _one_column(s).limit(1).scalar_subquery().label("s")),
    lambda s: sa.select(sa.union_all(_one_column(s), sa.select(A.id)).subquery()),
    lambda s: sa.select(A.id).join(_named(s), sa.true()),
    lambda s: sa.select(A.id, sa.case((sa.exists(s), 1), else_=0).label("c")),
    lambda s: sa.select(A.id).add_cte(s.cte()),
    lambda s: sa.select(A.id).order_by(_one_column(s).limit(1).scalar_subquery()),
    lambda s: sa.select(A.id, func.coalesce(_one_column(s).limit(1).scalar_subquery(), 0).label("f")),
    lambda s: s.limit(7).offset(1) if isinstance(s, sa.Select) else s,
    lambda s: s.distinct() if isinstance(s, sa.Select) else s,
    lambda s: sa.select(aliased(A, sa.select(A).where(sa.exists(s)).subquery())),
    lambda s: sa.select(A).where(A.bs.any(sa.exists(s))),
    lambda s: sa.select(A.id).options() if s is None else sa.select(func.count()).select_from(s.subquery()),
)


def _named(statement):
    return statement.subquery()


def _one_column(statement):
    return sa.select(next(iter(statement.subquery().c)))


LOCKED = {
    "for update": lambda: sa.select(A.id).with_for_update(),
    "deleting": lambda: sa.select(sa.delete(B).returning(B.id).cte("gone")),
    "inserting": lambda: sa.select(sa.insert(B).values(lock=1).returning(B.id).cte("new")),
    "suffix": lambda: sa.select(A.id).suffix_with("FOR SHARE"),
    "prefix": lambda: sa.select(A.id).prefix_with("SQL_CALC_FOUND_ROWS"),
    "hidden": lambda: sa.select(Hidden.id, Hidden.seen),
}


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(dialect=st.sampled_from(ALL), wraps=st.lists(st.sampled_from(WRAPS), max_size=4))
def test_generated_reads_are_plain(dialect, wraps):
    """R32: however a read is wrapped, it stays one."""
    statement = sa.select(A.id).where(A.x == 3)
    for wrap in wraps:
        statement = wrap(statement)

    assert READS[dialect](statement), sql(dialect, statement)


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(
    dialect=st.sampled_from(ALL),
    core=st.one_of(st.sampled_from(list(LOCKED)), st.tuples(st.sampled_from(list(PLACES)), st.sampled_from(list(PIECES)))),
    wraps=st.lists(st.sampled_from(WRAPS), max_size=4),
)
def test_generated_hiding_places(dialect, core, wraps):
    """R33: at any depth, in any wrapping, a forbidden piece is found."""
    if isinstance(core, str):
        statement = LOCKED[core]()
    else:
        place, name = core
        piece, dialects = PIECES[name]
        if dialect not in dialects or (wraps and place in OPTIONS):
            return
        statement = PLACES[place](piece)
    for wrap in wraps:
        statement = wrap(statement)

    assert not READS[dialect](statement), sql(dialect, statement)


WORDS = (
    "SELECT",
    "a",
    "FROM t",
    "(",
    ")",
    ",",
    "'x'",
    '"q"',
    "1",
    ":p",
    "WHERE",
    "lower(a)",
    "AS b",
    ".",
    "x.y",
    "=",
    "::int",
    "CASE",
)
FORBIDDEN = (
    "audit(1)",
    "FOR UPDATE",
    "now()",
    "DELETE",
    "nextval",
    "s.f(1)",
    '"f"(1)',
    "--",
    "/*",
    "INTO",
    "$$",
    "LOCK",
    "@v := 1",
)


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(
    before=st.lists(st.sampled_from(WORDS), max_size=8),
    bad=st.sampled_from(FORBIDDEN),
    after=st.lists(st.sampled_from(WORDS), max_size=8),
)
def test_random_sql(before, bad, after):
    """R33: in any sequence of tokens a forbidden one is found, unless a name must stand there."""
    text = f"SELECT {' '.join(before)} , {bad} {' '.join(after)}"

    assert not is_plain_sql(text, "postgresql"), text


# --------------------------------------------------------------------------------------------------- what the servers say

VOLATILE = {"clock_timestamp", "gen_random_uuid", "random"}  # each call anew, whatever the transaction
OF_EXTENSIONS = set(plainread._EXTENSIONS.split())


def test_harmless_on_postgresql():
    """R33: every function called harmless is PostgreSQL's own, none volatile but for time or chance."""
    with _connection("psycopg") as connection:
        rows = connection.exec_driver_sql(
            "SELECT proname, bool_or(provolatile = 'v') FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY 1"
        )
        volatile = dict(map(tuple, rows))
        words = dict(map(tuple, connection.exec_driver_sql("SELECT word, catcode FROM pg_get_keywords()")))
    names = HARMLESS["postgresql"] - OF_EXTENSIONS

    assert {name for name in names if volatile.get(name)} == VOLATILE
    assert {name for name in names if name not in volatile and words.get(name) not in ("C", "R")} == {"cube", "rollup", "ilike"}
    # A word of the language that could be the name of somebody's function as well:
    assert {word for word in plainread.BEFORE_PARENTHESIS if words.get(word) not in ("C", "R")} == {"is", "join", "like"}


def test_harmless_on_postgresql_is_stable_between_transactions():
    """R33: none of the functions that PostgreSQL calls stable gives the time of the transaction."""
    with _connection("psycopg") as connection:
        rows = connection.exec_driver_sql(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile = 's' AND pronargs = 0"
        )
        stable = set(rows.scalars())

    builders = {f"{kind}_build_{what}" for kind in ("json", "jsonb") for what in ("array", "object")}
    assert stable & HARMLESS["postgresql"] == {"statement_timestamp", "version"} | builders
    assert {"now", "transaction_timestamp"} <= stable


def test_harmless_on_mariadb():
    """R33: every function called harmless is MariaDB's own or a word of its language, or one of MySQL's."""
    with _connection("pymysql") as connection:
        own = set(connection.exec_driver_sql("SELECT lower(function) FROM information_schema.sql_functions").scalars())
        own |= set(connection.exec_driver_sql("SELECT lower(word) FROM information_schema.keywords").scalars())

    assert HARMLESS["mysql"] - own == {"any_value", "grouping", "json_schema_valid", "regexp_like"}
    assert plainread.BEFORE_PARENTHESIS - own == {"lateral"}
    assert not HARMLESS["mysql"] & {
        "found_rows",
        "last_insert_id",
        "row_count",
        "connection_id",
        "sleep",
        "benchmark",
        "get_lock",
    }


def test_harmless_on_sqlite():
    """R33: of SQLite's own functions those that tell of the connection's past, or reach out of the database, are not harmless."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        own = {row[0] for row in connection.execute("SELECT name FROM pragma_function_list WHERE builtin = 1")}
    odd = {name for name in own if name.isidentifier()} - HARMLESS["sqlite"]

    assert {"changes", "last_insert_rowid", "load_extension", "total_changes"} <= odd
    assert odd <= {
        "changes", "current_date", "current_time", "current_timestamp", "last_insert_rowid", "load_extension",
        "sqlite_compileoption_get", "sqlite_compileoption_used", "sqlite_log", "sqlite_source_id", "subtype", "total_changes",
        "fts3_tokenizer",
    }  # fmt: skip


SERVERS = ("psycopg", "pymysql", "sqlite")


@pytest.fixture(scope="module")
def connections():
    """A connection to each server, on which the tables of this file are."""
    open_ones, tables = {}, [A.__table__, B.__table__, BSpecial.__table__, Counted.__table__]
    for driver in SERVERS:
        open_ones[driver] = _connection(driver)
        Base.metadata.create_all(open_ones[driver], tables=tables)
        open_ones[driver].commit()
    yield open_ones
    for connection in open_ones.values():
        Base.metadata.drop_all(connection, tables=tables)
        connection.commit()
        connection.close()


@pytest.mark.parametrize(("dialect", "statement"), [row for row in table(PLAIN) if row.values[0] in SERVERS])
def test_plain_statements_run(connections, dialect, statement):
    """R32: the statements of the table above are such as the servers take; else the table would prove nothing."""
    errors = (sa.exc.ProgrammingError, sa.exc.OperationalError, sa.exc.DataError)
    with connections[dialect].begin(), contextlib.suppress(errors):
        connections[dialect].execute(statement, {"low": 1})
        return
    with connections[dialect].begin(), pytest.raises(errors, match=ABOUT_NAMES):
        connections[dialect].execute(statement, {"low": 1})


# A statement was understood if it fails on a name, a type, an index or an extension that is not there; two forms SQLite lacks.
ABOUT_NAMES = r"does not exist|cannot cast|no such|doesn't exist|Unknown collation|FULLTEXT|Key 'ix'|datatype|near \"\(\": syntax"


def _connection(driver):
    address = "sqlite://" if driver == "sqlite" else servers.url(driver)
    return sa.create_engine(address, poolclass=sa.pool.NullPool).connect()


# ------------------------------------------------------------------------------------------------------------ the memory


def test_the_answer_is_remembered_by_cache_key(monkeypatch):
    """R32: a statement of the same shape is looked at once; SQLAlchemy's private `_generate_cache_key` still gives its key."""
    reads, looked = PlainReads(sqlite.dialect()), []
    monkeypatch.setattr(PlainReads, "_look", lambda self, statement, **_: looked.append(statement) or True)

    for x in range(5):
        assert reads(sa.select(A).where(A.x == x))
    reads(sa.select(A).where(A.id == 1))

    assert len(looked) == 2
    assert list(reads._answers) == [
        sa.select(A).where(A.x == 0)._generate_cache_key().key,
        sa.select(A).where(A.id == 0)._generate_cache_key().key,
    ]


def test_what_has_no_cache_key_is_looked_at_each_time():
    """R33: a statement that SQLAlchemy does not cache is looked at each time and not remembered."""

    class Uncached(sa.ColumnElement):
        inherit_cache = False
        text = "1"

    @compiles(Uncached)
    def _uncached(element, compiler, **kw):
        return element.text

    reads, element = PlainReads(sqlite.dialect()), Uncached()
    assert reads(sa.select(element))
    element.text = "audit(1)"

    assert not reads(sa.select(element))
    assert not reads._answers


def test_the_memory_is_bounded():
    """R32: a program that makes ever new statements does not make tenure grow."""
    reads = PlainReads(sqlite.dialect())
    for n in range(plainread._REMEMBERED + 100):
        assert reads(sa.select(sa.column(f"c{n}")))

    assert len(reads._answers) == plainread._REMEMBERED
    assert reads(sa.select(sa.column("c0")))


def test_the_memory_is_shared_by_threads(monkeypatch):
    """R36: threads that ask and forget at once get right answers."""
    monkeypatch.setattr(plainread, "_REMEMBERED", 5)
    reads, wrong, start = PlainReads(sqlite.dialect()), [], threading.Barrier(8)

    def ask(seed):
        start.wait()
        for n in range(60):
            column = sa.column(f"c{(n * seed) % 11}")
            if not reads(sa.select(column)) or reads(sa.select(func.audit(column))):
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(1, 9)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

    assert not wrong
    assert len(reads._answers) <= 5


def test_what_cannot_be_compiled_pins_and_is_not_remembered():
    """R33: a statement that the dialect cannot compile is left to SQLAlchemy, which says so; no answer is kept."""

    class Strange(sa.ColumnElement):
        inherit_cache = True

    reads = PlainReads(sqlite.dialect())

    assert not reads(sa.select(Strange()))
    assert not reads._answers


# ----------------------------------------------------------------------------------- what a rollback would lose

STORES_NOTHING = [
    "SELECT 1",
    "SELECT a FROM t FOR UPDATE",
    "SELECT a FROM t FOR NO KEY UPDATE OF t SKIP LOCKED",
    "SELECT a FROM t LOCK IN SHARE MODE",
    "SELECT now(), current_timestamp, CAST('now' AS timestamp)",
    "SELECT nextval('s'), pg_advisory_xact_lock(1), set_config('a.b', 'c', true)",
]
MAY_STORE = [
    "UPDATE t SET a = 1",
    "WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT a FROM x",
    "WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x FOR UPDATE",
    "SELECT a INTO b FROM t",
    "SELECT charge(1)",
    "SELECT pg_notify('a', 'b')",
    "CALL charge(1)",
    "LOCK TABLE t",
    "SELECT 1; DELETE FROM t",
    "NOTIFY a",
]


@pytest.mark.parametrize("sql", STORES_NOTHING)
def test_what_a_rollback_loses_nothing_of(sql):
    """R15: time, locks and sequences end with the transaction, and a statement of these alone is no lost work."""
    assert READS["psycopg"].stores_nothing(sa.text(sql))
    assert READS["psycopg"].stores_nothing(sa.text(sql))


@pytest.mark.parametrize("sql", MAY_STORE)
def test_what_a_rollback_may_lose(sql):
    """R15: what may have stored something counts as work."""
    assert not READS["psycopg"].stores_nothing(sa.text(sql))


def test_what_is_not_a_select_may_be_lost():
    """R15: a statement object that is no SELECT, and a connection that was asked for, count as work."""
    for statement in (None, sa.func.now(), sa.insert(sa.table("t"))):
        assert not READS["psycopg"].stores_nothing(statement)
