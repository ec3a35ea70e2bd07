"""What the file is compared with names every column that it has."""

from pathlib import Path

import pytest

from projections import store
from schemas import ModelProfileScored
from streams.topics import BY_NAME
from tests.support.events import raw
from tools.verify import panes
from tools.verify.database import STATEMENTS, TABLES, said, said_entries
from tools.verify.log import Record
from tools.verify.recompute import Totals


@pytest.mark.parametrize(("topic", "table"), TABLES.items())
def test_every_column_of_a_history_table_is_recomputed(
    tmp_path: Path, topic: str, table: str
) -> None:
    db = store.connect(tmp_path / store.FILE)
    columns = {row[0] for row in db.execute(f"DESCRIBE {table}").fetchall()}
    db.close()
    place = {"src_partition", "src_offset", "append_ms", "body_hash"}
    verdict = {"verdict"} if topic in STATEMENTS else set()
    recomputed = said(table, raw(BY_NAME[topic].events[0]))
    assert set(recomputed) == columns - place - verdict


def test_every_column_of_entries_and_panes_is_recomputed(tmp_path: Path) -> None:
    db = store.connect(tmp_path / store.FILE)
    columns = {
        table: [row[0] for row in db.execute(f"DESCRIBE {table}").fetchall()]
        for table in ("ranking_entries", "metrics_totals")
    }
    db.close()
    ranking = raw(ModelProfileScored)
    record = Record("model.profile.scored", 0, 0, 0, b"k", b"v")
    assert ranking["entries"]
    for entry in said_entries(record, ranking):
        assert set(entry) == set(columns["ranking_entries"])
    assert columns["metrics_totals"] == [*panes.KEY.split(", "), *panes.SUMS]
    assert len(panes.sums(Totals())) == len(panes.SUMS)
