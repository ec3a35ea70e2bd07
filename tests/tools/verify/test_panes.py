"""DuckDB's panes, as the projections fill them, against the plain fold of the same events."""

import random
from pathlib import Path
from typing import Any

import pytest

from projections import store
from schemas import HeadedEvent, LlmInvocation, ModelQualityObserved
from schemas.avro import encode
from schemas.values import MAX_LATENCY_US, MAX_PICOUSD, MAX_TOKENS, OUTCOMES
from streams.topics import LLM_INVOCATION, MODEL_QUALITY_OBSERVED, Topic
from tests.support import events
from tests.support.book import APPENDED, Book
from tools.verify import panes, recompute
from tools.verify.compare import Report
from tools.verify.database import open_file
from tools.verify.log import Record
from tools.verify.recompute import Meter, Rules, seen

NOON = 1_771_243_200_000
MINUTE = 60_000
SUBJECTS = (panes.TOTALS, panes.LATENCIES, panes.QUALITY, panes.NEWEST)
Told = list[tuple[Topic, list[HeadedEvent]]]


def compared(folder: Path, told: Told, rules: Rules = Rules()) -> Report:  # noqa: B008  # frozen
    database = open_file(folder / store.FILE)
    assert not isinstance(database, str)
    report = Report()
    check = panes.PanesCheck(database, rules, report)
    for topic, said in told:
        meter = Meter(rules)
        due = check.begin((topic.name, 0), len(said))
        for offset, event in enumerate(said):
            record = Record(topic.name, 0, offset, APPENDED, b"key", encode(event))
            f = event.model_dump(mode="json")
            if meter.step(record, (type(event).__name__, f), seen(record, f)) == "applied":
                check.take(record, f)
            if due and due[0][0] == offset + 1:
                due.pop()[1](meter)
        assert not due
    panes.compare(check)
    database.db.close()
    return report


def filed(folder: Path, told: Told, size: int = 10**6) -> None:
    """Files the events in batches of so many."""
    book = Book(folder)
    for topic, said in told:
        for start in range(0, len(said), size):
            batch: Any = said[start : start + size]
            if topic is LLM_INVOCATION:
                book.call(*batch)
            else:
                book.say(topic, *batch)
    book.db.close()


def story(chance: random.Random) -> Told:
    """Two logs in which ids come again, in their pane or another, and times jump back and forth."""
    at = NOON
    calls: list[HeadedEvent] = []
    bits: list[HeadedEvent] = []
    for _ in range(200):
        at += chance.randrange(3 * MINUTE)
        shared = {
            "event_id": f"e{chance.randrange(60)}",
            "occurred_at_ms": at - chance.choice([0, 0, 1, 4, 9, 30]) * MINUTE,
            "source": "gateway",
            "tenant": chance.choice(["acme", "zeta"]),
            "mode": chance.choice(["prod", "PRODUCTION", None]),
            "role": chance.choice(["chat", "code"]),
            "provider": "p",
            "model": chance.choice("abc"),
        }
        tokens = ("input_tokens", "cached_tokens", "output_tokens")
        call = {
            **{name: chance.choice([0, 7, MAX_TOKENS]) for name in tokens},
            "outcome": chance.choice(["SUCCESS", "SUCCESS", *OUTCOMES[1:]]),
            "latency_us": chance.choice([1, 50, chance.randint(1, MAX_LATENCY_US)]),
            "reported_cost_picousd": chance.choice([None, None, 5, MAX_PICOUSD]),
        }
        bit = {"metric": chance.choice(["quality", "x", "y"]), "n": 3, "hits": chance.randint(0, 3)}
        calls.append(events.good(LlmInvocation, **shared, **call))
        bits.append(events.good(ModelQualityObserved, **shared, **bit))
        for said in (calls, bits):
            if chance.random() < 0.2:
                said.append(chance.choice(said))
    return [(LLM_INVOCATION, calls), (MODEL_QUALITY_OBSERVED, bits)]


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_and_the_plain_fold_agree(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    told = story(chance)
    filed(tmp_path, told, chance.choice([29, 90, 1000]))
    report = compared(tmp_path, told)
    assert report.differences == []
    assert all(report.compared[subject] for subject in SUBJECTS)


def test_tables_name_what_a_fact_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recompute, "MODELS_PER_PANE", 1)
    monkeypatch.setattr(recompute, "METRICS_PER_MODEL", 1)
    told = story(random.Random(7))
    filed(tmp_path, told)
    assert compared(tmp_path, told).differences == []


def test_what_the_file_has_not_read_yet_is_not_counted(tmp_path: Path) -> None:
    told = story(random.Random(8))
    filed(tmp_path, [(topic, said[:50]) for topic, said in told])
    longer = compared(tmp_path, told)
    assert longer.differences == []
    assert all(longer.compared[subject] for subject in SUBJECTS)


def test_a_file_that_was_cut_otherwise_is_not_compared(tmp_path: Path) -> None:
    told = story(random.Random(9))
    filed(tmp_path, told)
    report = compared(tmp_path, told, Rules(pane_ms=60_000))
    assert [report.compared[subject] for subject in SUBJECTS[:3]] == [0, 0, 0]
    assert "the file was cut by" in report.remarks[0]
