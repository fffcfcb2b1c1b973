import pytest

from tenure.engines.masked import masked


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT name FROM users WHERE name = 'patient-0815'", "SELECT name FROM users WHERE name = ?"),
        ("SELECT 'it''s' , 'patient'", "SELECT ? , ?"),
        ("SELECT ''", "SELECT ?"),
        (r"SELECT 'it\'s patient', 'x'", "SELECT ?"),
        (r"SELECT 'a\' , 'patient'", "SELECT ?"),
        ("SELECT 'patient", "SELECT ?"),
        ("SELECT E'patient', N'patient', X'0815'", "SELECT E?, N?, X?"),
        ("SELECT $$patient$$, $a$pat$$ient$a$", "SELECT ?, ?"),
        ("SELECT $$patient", "SELECT ?"),
        ("SELECT -0815.5e3, 0x0815, 1_000, .5, a[0:815]", "SELECT -?, ?, ?, .?, a[?:?]"),
        ('SELECT u1.name2 FROM "order" AS u1 LIMIT 10', 'SELECT u1.name2 FROM "order" AS u1 LIMIT ?'),
        ('SELECT "patient-0815"', "SELECT ?"),
        (
            "SELECT :p1, :param_1, %(param_1)s, $1, __[POSTCOMPILE_id_1]",
            "SELECT :p1, :param_1, %(param_1)s, $1, __[POSTCOMPILE_id_1]",
        ),
        ("SELECT /* patient */ a -- patient\nFROM t", "SELECT   a  \nFROM t"),
        ("SELECT 'a -- b' FROM t", "SELECT ? FROM t"),
        ("SELECT a /* patient", "SELECT a  "),
        ("SELECT a #> b", "SELECT a #> b"),
    ],
)
def test_values_are_masked(sql, shown):
    """R58: the text of a statement is shown without its strings, numbers and comments; names and parameters stay."""
    assert masked(sql, "postgresql") == shown


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ('SELECT "patient"', "SELECT ?"),
        ("SELECT a # patient\nFROM t", "SELECT a  \nFROM t"),
        ("SELECT `name` FROM t", "SELECT `name` FROM t"),
    ],
)
@pytest.mark.parametrize("dialect", ["mysql", "mariadb"])
def test_values_are_masked_on_mysql(sql, shown, dialect):
    """R58: on MySQL double quotes make strings, and a comment may begin with a hash."""
    assert masked(sql, dialect) == shown
