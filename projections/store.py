"""The DuckDB file: opened by one process, written in transactions, copied between them."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from streams.errors import BadConfiguration

FILE: Final = "roster.duckdb"
SNAPSHOTS_KEPT: Final = 3
FORMAT: Final = 2
"""Of the tables. Another one means: file the log again."""
DDL: Final = ("ledger", "budgets", "history", "panes", "views")
CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "python_enable_replacements": False,  # SQL must not see this process's variables
}
SETTINGS: Final = (
    # Analysts send SQL: it reaches this file and nothing else on the machine.
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET memory_limit = '2GB'",
    # Checkpoints within a transaction cost its freshness: rarely, and when idle (streams.md, 3.2).
    "SET wal_autocheckpoint = '512MB'",
    "SET lock_configuration = true",
)


def connect(path: Path) -> duckdb.DuckDBPyConnection:
    """Opens or makes the file, with its tables. Its lock is the fence: one projector at a time.

    Raises BadConfiguration if another process holds it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = duckdb.connect(str(path), config=CONFIG)
    except OSError as error:
        raise BadConfiguration(f"{path.parent} cannot be used: {error.strerror}") from None
    except duckdb.Error as error:
        raise _explained(path, error) from None
    try:
        for setting in SETTINGS:
            db.execute(setting)
        with transaction(db):
            db.execute(_ddl("store"))
            found = db.execute("SELECT max(version) FROM projection_format").fetchall()[0][0]
            if found is None:
                db.execute("INSERT INTO projection_format VALUES (?)", [FORMAT])
            elif found != FORMAT:  # said before our views stumble over its tables
                raise BadConfiguration(
                    f"{path} has format {found}, this version writes {FORMAT}:"
                    " remove the file, and it is made again from the log"
                )
            for name in DDL:
                db.execute(_ddl(name))
    except BaseException:
        db.close()
        raise
    return db


def _ddl(name: str) -> str:
    return (files("projections") / f"{name}.sql").read_text(encoding="utf-8")


def _explained(path: Path, error: duckdb.Error) -> BadConfiguration:
    text = str(error)
    holder = re.search(r"held in (.+?) \(PID (\d+)\)", text)
    if "lock" in text and holder is not None:
        return BadConfiguration(
            f"{path} is in use by process {holder[2]} ({Path(holder[1]).name}):"
            " one projector at a time, stop that one first"
        )
    return BadConfiguration(f"{path} cannot be opened: {text.splitlines()[0]}")


@contextlib.contextmanager
def transaction(db: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All of the block or nothing of it."""
    db.execute("BEGIN TRANSACTION")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # a failed commit has already rolled back
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def batch(db: duckdb.DuckDBPyConnection, table: pa.Table, name: str = "batch") -> Iterator[None]:
    """Makes Arrow rows visible to SQL under a name."""
    db.register(name, table)
    try:
        yield
    finally:
        db.unregister(name)


def insert(db: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows given as dictionaries that name every column; a wrong type raises."""
    if rows:
        columns = schema(db, table)
        odd = set(columns.names) ^ set(rows[0])  # pyarrow would fill or drop them in silence
        if odd:
            raise KeyError(f"{table}: {sorted(odd)}")
        with batch(db, pa.Table.from_pylist(list(rows), schema=columns)):
            db.execute(f"INSERT INTO {table} BY NAME SELECT * FROM batch")


def schema(db: duckdb.DuckDBPyConnection, table: str) -> pa.Schema:
    """Columns of a table as Arrow."""
    empty: pa.Table = db.sql(f"SELECT * FROM {table} LIMIT 0").to_arrow_table()
    return empty.schema


@dataclass(frozen=True, slots=True)
class Store:
    """The open file. handle: for copies. It stays open as long as the database: closing any handle
    of a file releases all locks that the process has on it (POSIX), DuckDB's among them."""

    db: duckdb.DuckDBPyConnection
    path: Path
    handle: int

    def close(self) -> None:
        """Closes the file; another projector may have it then."""
        with contextlib.suppress(duckdb.Error):  # already invalid after a failed write
            self.db.close()
        os.close(self.handle)

    def snapshot(self, folder: Path) -> Path:
        """Copies the file to a place where any tool may open it; returns the copy's path.

        Called by the writer between transactions. Old copies are removed, the newest few stay.
        Raises duckdb.Error, OSError.
        """
        rows = self.db.execute(
            "SELECT coalesce(sum(next_offset), 0) FROM projection_offsets"
        ).fetchall()
        target = folder / f"roster-{int(rows[0][0]):015d}.duckdb"
        folder.mkdir(parents=True, exist_ok=True)
        self.db.execute("CHECKPOINT")
        log = self.path.with_name(self.path.name + ".wal")
        if log.exists() and log.stat().st_size > 0:
            raise duckdb.TransactionException("a reader holds the log back, try again")
        fresh = target.with_suffix(".tmp")
        with fresh.open("wb") as copy:
            done = 0
            while chunk := os.pread(self.handle, 1 << 24, done):
                done += copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        fresh.replace(target)
        for old in sorted(folder.glob("roster-*.duckdb"))[:-SNAPSHOTS_KEPT]:
            old.unlink(missing_ok=True)
        return target


def opened(path: Path) -> Store:
    """The file, open. Raises BadConfiguration as connect does."""
    db = connect(path)
    return Store(db, path, os.open(path, os.O_RDONLY))
