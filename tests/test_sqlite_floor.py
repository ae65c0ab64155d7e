"""SQLite 3.24 is the floor: no newer SQL in the sources, and a run on the oldest we can get."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from tests import old_sqlite, support

SOURCES = sorted((support.ROOT / "medialib").glob("*.py"))
NEWER = {  # what came with which version after 3.24
    "window function (3.25)": r"\bOVER\s*\(|\bROW_NUMBER\s*\(|\bLAG\s*\(",
    "RENAME COLUMN (3.25)": r"\bRENAME\s+COLUMN\b",
    "VACUUM INTO (3.27)": r"\bVACUUM\s+INTO\b",
    "FILTER on an aggregate (3.30)": r"\)\s*FILTER\s*\(",
    "NULLS FIRST or LAST (3.30)": r"\bNULLS\s+(FIRST|LAST)\b",
    "generated column (3.31)": r"\bGENERATED\s+ALWAYS\b|\b(STORED|VIRTUAL)\s*[,)]",
    "IIF (3.32)": r"\bIIF\s*\(",
    "UPDATE … FROM (3.33)": r"\bUPDATE\s+\w+\s+SET\b[^;]*\bFROM\b",
    "RETURNING (3.35)": r"\bRETURNING\b",
    "DROP COLUMN (3.35)": r"\bDROP\s+COLUMN\b",
    "MATERIALIZED (3.35)": r"\bMATERIALIZED\b",
    "mathematical function (3.35)": r"\b(CEIL|FLOOR|POW|SQRT|LOG10|LOG2|MOD)\s*\(",
    "STRICT (3.37)": r"\)\s*STRICT\b",
    "-> or ->> (3.38)": r"->>?\s*'",
    "unixepoch (3.38)": r"\bUNIXEPOCH\s*\(\s*\)",
    "RIGHT or FULL JOIN (3.39)": r"\b(RIGHT|FULL)\s+(OUTER\s+)?JOIN\b",
    "IS DISTINCT FROM (3.39)": r"\bIS\s+(NOT\s+)?DISTINCT\s+FROM\b",
    "concat, string_agg (3.44)": r"\b(CONCAT|CONCAT_WS|STRING_AGG)\s*\(",
}
SQL_START = re.compile(r"\s*(SELECT|INSERT|REPLACE|UPDATE|DELETE|CREATE|ALTER|DROP|WITH|FROM|WHERE|"
                       r"ORDER|GROUP|ON|AND|PRAGMA)\b")


def texts_of(node: ast.AST):
    """(line, text) of every string constant and f-string below a node."""
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            pieces = (piece.value if isinstance(piece, ast.Constant) else " x "
                      for piece in part.values)
            yield part.lineno, "".join(pieces)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.lineno, part.value


def outer(sql: str) -> str:
    """The statement without what stands in parentheses, such as subqueries."""
    inner = None
    while inner != sql:
        inner, sql = sql, re.sub(r"\([^()]*\)", " ", sql)
    return sql


def newer_sql(source: str) -> list:
    """(line, feature) for each piece of SQL that SQLite 3.24 does not know."""
    return [(line, feature) for line, text in texts_of(ast.parse(source)) if SQL_START.match(text)
            for feature, pattern in NEWER.items()
            if re.search(pattern, outer(text) if "UPDATE" in feature else text)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_newer_sql(path):
    assert newer_sql(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("sql", "found"), [
    ("INSERT INTO a VALUES (1) RETURNING id", True),
    ("SELECT count(*) FILTER (WHERE a) FROM b", True),
    ("SELECT a FROM b ORDER BY c NULLS LAST", True),
    ("CREATE TABLE a (b INT) STRICT", True),
    ("SELECT row_number() OVER (ORDER BY a)", True),
    ("SELECT a ->> '$.b' FROM c", True),
    ("UPDATE a SET b = c.d FROM c WHERE c.e = a.e", True),
    ("UPDATE a SET b = (SELECT max(d) FROM c WHERE c.e = a.e) WHERE f = 1", False),
    ("INSERT INTO a VALUES (1) ON CONFLICT (b) DO UPDATE SET c = excluded.c", False),
])
def test_the_search_itself(sql, found):
    assert bool(newer_sql(f"A = {sql!r}")) == found


def test_old_sqlite_is_the_one_that_runs():
    """The stand-in really replaces the standard library's module."""
    done = subprocess.run(
        [support.oldest_python(), "-c", "import sqlite3; print(sqlite3.sqlite_version)"],
        env={"PYTHONPATH": str(old_sqlite.import_folder())}, capture_output=True, text=True,
        check=True)
    assert done.stdout.strip() == old_sqlite.VERSION
