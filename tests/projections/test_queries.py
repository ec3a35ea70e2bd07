import math
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from projections import store
from projections.queries import Refused, ask, plain


@pytest.fixture
def db(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    made = store.connect(tmp_path / store.FILE)
    made.execute(
        "INSERT INTO projection_offsets VALUES ('llm.invocation', 3, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0)"
    )
    yield made
    made.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS n",
        "WITH a AS (SELECT 1 AS n) SELECT * FROM a",
        "FROM projection_offsets",
        "VALUES (1)",
        "SHOW TABLES",
        "DESCRIBE invocations",
        "SUMMARIZE projection_offsets",
        "EXPLAIN SELECT 1",
        "SELECT 1 AS n;",
        "-- a comment\nSELECT 1 AS n",
    ],
)
def test_what_reads_is_answered(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    answer = ask(db.cursor(), sql, 100)
    assert len(answer.columns) == len(answer.types) == len(answer.rows[0])
    assert answer.offsets == {"llm.invocation": {"3": 9}}


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO outbox VALUES ('a', 'b', 'c', 'd')",
        "DELETE FROM projection_offsets",
        "UPDATE projection_offsets SET next_offset = 0",
        "CREATE TABLE t AS SELECT 1",
        "CREATE TEMP TABLE t AS SELECT 1",
        "DROP TABLE invocations",
        "WITH a AS (DELETE FROM projection_offsets RETURNING *) SELECT * FROM a",
        "EXPLAIN ANALYZE DELETE FROM projection_offsets",
        "COPY projection_offsets TO 'out.csv'",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "EXPORT DATABASE '/tmp/out'",
        "ATTACH ':memory:' AS other",
        "DETACH roster",
        "USE roster",
        "PRAGMA table_info('invocations')",
        "SET threads = 1",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "CALL force_checkpoint()",
        "CHECKPOINT",
        "INSTALL httpfs",
        "LOAD httpfs",
        "BEGIN",
        "COMMIT",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE invocations",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM 'pyproject.toml'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM db",  # a variable of this process
        "PREPARE p AS SELECT 1",
        "SELEC 1",
        "",
        "   ",
        "-- nothing",
    ],
)
def test_whatever_else_is_refused_with_one_line_and_changes_nothing(
    db: duckdb.DuckDBPyConnection, sql: str
) -> None:
    with pytest.raises(Refused) as refused:
        ask(db.cursor(), sql, 100)
    assert str(refused.value) and "\n" not in str(refused.value)
    assert db.execute("SELECT topic, next_offset FROM projection_offsets").fetchall() == [
        ("llm.invocation", 9)
    ]
    assert db.execute("SELECT count(*) FROM outbox").fetchall() == [(0,)]


def test_a_question_that_takes_too_long_is_stopped(db: duckdb.DuckDBPyConnection) -> None:
    endless = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
    with pytest.raises(Refused, match=r"stopped after 0\.2 s"):
        ask(db.cursor(), endless, 10, timeout_s=0.2)
    assert ask(db.cursor(), "SELECT 1", 10).rows == [[1]]  # the file is none the worse


def test_no_more_rows_are_moved_than_were_asked_for(db: duckdb.DuckDBPyConnection) -> None:
    answer = ask(db.cursor(), "FROM range(1000000)", 3)
    assert (answer.rows, answer.more) == ([[0], [1], [2]], True)
    assert not ask(db.cursor(), "FROM range(3)", 3).more


def test_every_value_becomes_json_without_losing_a_digit(db: duckdb.DuckDBPyConnection) -> None:
    answer = ask(
        db.cursor(),
        "SELECT 170141183460469231731687303715884105727::HUGEINT, 0.1::DECIMAL(38, 12),"
        " 'NaN'::DOUBLE, TIMESTAMP '2026-01-02 03:04:05.678', DATE '2026-01-02',"
        " '019a0000-0000-7000-8000-000000000000'::UUID, '\\x00\\xFF'::BLOB, [1, NULL],"
        " {'a': 1.5::DECIMAL(3, 1)}, INTERVAL 1 DAY, NULL, TRUE",
        1,
    )
    assert answer.rows[0] == [
        2**127 - 1,
        "0.100000000000",
        "nan",
        "2026-01-02T03:04:05.678000",
        "2026-01-02",
        "019a0000-0000-7000-8000-000000000000",
        "00ff",
        [1, None],
        {"a": "1.5"},
        "1 day, 0:00:00",
        None,
        True,
    ]
    assert plain(math.inf) == "inf"
