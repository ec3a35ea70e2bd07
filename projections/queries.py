"""Questions of people to the file while it is written: one reading statement, bounded."""

import datetime
import math
import threading
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import duckdb

MAX_ROWS: Final = 100_000
TIMEOUT_S: Final = 10.0
READING: Final = frozenset({duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN})
"""What DuckDB's parser makes of SELECT, WITH, FROM, VALUES, SHOW, DESCRIBE, SUMMARIZE, EXPLAIN."""
ALLOWED: Final = "one statement that reads (SELECT, WITH, SHOW, DESCRIBE, SUMMARIZE, EXPLAIN)"


class Refused(Exception):
    """A question that is not answered; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows as JSON takes them. more: there were more rows than were asked for."""

    columns: list[str]
    types: list[str]
    rows: list[list[Any]]
    more: bool
    offsets: dict[str, dict[str, int]]  # topic -> partition -> next offset, of the same moment


def ask(
    cursor: duckdb.DuckDBPyConnection, sql: str, max_rows: int, timeout_s: float = TIMEOUT_S
) -> Answer:
    """Runs one reading statement on a cursor of its own, which is closed.

    Raises Refused for anything but a reading statement, for an error in it, and after timeout_s.
    """
    timer: threading.Timer | None = None
    late = threading.Event()

    def interrupt() -> None:
        late.set()
        cursor.interrupt()

    try:
        _one_reading_statement(sql)
        timer = threading.Timer(timeout_s, interrupt)
        timer.daemon = True
        timer.start()
        # Whatever the parser let pass: in such a transaction nothing can be written.
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        offsets = _offsets(cursor)
        cursor.execute(sql)
        described = cursor.description or []
        rows = cursor.fetchmany(max_rows + 1)
        return Answer(
            columns=[str(column[0]) for column in described],
            types=[str(column[1]) for column in described],
            rows=[[plain(value) for value in row] for row in rows[:max_rows]],
            more=len(rows) > max_rows,
            offsets=offsets,
        )
    except duckdb.Error as error:
        if late.is_set():
            raise Refused(
                f"stopped after {timeout_s:g} s; ask for less, or take a snapshot"
            ) from None
        raise Refused(_one_line(error)) from None
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()  # it must not interrupt a connection that is gone
        cursor.close()


def _one_reading_statement(sql: str) -> None:
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise Refused(_one_line(error)) from None
    if len(statements) != 1:
        raise Refused(f"{len(statements)} statements; allowed: {ALLOWED}")
    if statements[0].type not in READING:
        raise Refused(f"a statement of type {statements[0].type.name}; allowed: {ALLOWED}")


def _offsets(cursor: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for topic, partition, offset in cursor.execute(
        "SELECT topic, partition, next_offset FROM projection_offsets ORDER BY ALL"
    ).fetchall():
        found.setdefault(topic, {})[str(partition)] = offset
    return found


def _one_line(error: duckdb.Error) -> str:
    return " ".join(str(error).split("\n\nLINE")[0].split())


def plain(value: Any) -> Any:
    """A value of DuckDB as JSON takes it: decimals, times and ids as text, bytes as hex."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value) if isinstance(value, (uuid.UUID, datetime.timedelta)) else repr(value)
