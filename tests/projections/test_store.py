import os
import stat
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from projections import store
from streams.errors import BadConfiguration


def opened_elsewhere(path: Path) -> str:
    """The error of another process that opens the file; '' if it may."""
    code = (
        "from pathlib import Path; from projections import store;"
        f" store.connect(Path({str(path)!r})).close()"
    )
    root = Path(store.__file__).parent.parent
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root
    )
    return other.stderr.strip().splitlines()[-1] if other.returncode else ""


def test_a_second_process_is_told_who_holds_the_file(tmp_path: Path) -> None:
    db = store.connect(tmp_path / store.FILE)
    assert f"in use by process {os.getpid()}" in opened_elsewhere(tmp_path / store.FILE)
    db.close()


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfiguration, match="cannot be used"):
        store.connect(tmp_path / "file" / "sub" / store.FILE)
    if os.geteuid() != 0:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(BadConfiguration, match="cannot be opened"):
            store.connect(tmp_path / store.FILE)


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / store.FILE).write_text("something else entirely" * 1000)
    with pytest.raises(BadConfiguration, match="cannot be opened"):
        store.connect(tmp_path / store.FILE)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    db = store.connect(tmp_path / store.FILE)
    db.execute("UPDATE projection_format SET version = 99")
    db.execute("DROP TABLE rankings")
    db.execute("CREATE TABLE rankings (status VARCHAR)")  # views of ours would stumble over it
    db.close()
    with pytest.raises(BadConfiguration, match="has format 99"):
        store.connect(tmp_path / store.FILE)


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    db = store.connect(tmp_path / store.FILE)
    with pytest.raises(ZeroDivisionError), store.transaction(db):
        db.execute("INSERT INTO outbox VALUES ('a', 'b', 'c', 'd')")
        raise ZeroDivisionError
    assert db.execute("SELECT count(*) FROM outbox").fetchall() == [(0,)]
    db.close()


def test_rows_must_name_every_column(tmp_path: Path) -> None:
    db = store.connect(tmp_path / store.FILE)
    with pytest.raises(KeyError, match="value"):
        store.insert(db, "outbox", [{"event_id": "a", "topic": "b", "record_key": b"c"}])
    db.close()


def test_a_snapshot_is_whole_and_only_the_newest_few_are_kept(tmp_path: Path) -> None:
    file = store.opened(tmp_path / store.FILE)
    for offset in range(1, 6):
        file.db.execute(
            "INSERT OR REPLACE INTO projection_offsets"
            " VALUES ('t', 0, ?, ?, ?, 0, 0, 0, 0, 0, 0, 0)",
            [offset, offset, offset],
        )
        made = file.snapshot(tmp_path / "snapshots")
    with duckdb.connect(str(made), read_only=True) as copy:
        assert copy.execute("SELECT next_offset FROM projection_offsets").fetchall() == [(5,)]
    assert len(list((tmp_path / "snapshots").iterdir())) == store.SNAPSHOTS_KEPT
    file.close()


def test_the_file_stays_locked_when_it_is_copied(tmp_path: Path) -> None:
    file = store.opened(tmp_path / store.FILE)
    file.snapshot(tmp_path / "snapshots")
    assert f"in use by process {os.getpid()}" in opened_elsewhere(tmp_path / store.FILE)
    file.close()
    assert opened_elsewhere(tmp_path / store.FILE) == ""
