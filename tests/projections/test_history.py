"""What is said of models stands in tables as it was said, once, under canonical names."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from projections import store
from schemas import (
    ClockTick,
    HeadedEvent,
    ModelProfileRecommended,
    ModelProfileScored,
    ModelQualityObserved,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from streams import topics
from streams.codec import frame
from streams.registry import Registry
from tests.support.events import good

pytestmark = pytest.mark.kafka
OLDEST = Path(__file__).parent.parent / "schemas" / "oldest.txt"


def fresh(event: type[HeadedEvent], **changes: Any) -> Any:
    now = time.time_ns() // 1_000_000
    return good(event, **{"event_id": f"h-{uuid.uuid4()}", "occurred_at_ms": now, **changes})


def rows(projector: Any, table: str, event_id: str) -> list[dict[str, Any]]:
    """The rows of an id, in log order."""
    names = [row[0] for row in projector.sql(f"SELECT column_name FROM (DESCRIBE {table})")]
    found = projector.sql(f"FROM {table} WHERE event_id = '{event_id}' ORDER BY src_offset")
    return [dict(zip(names, row, strict=True)) for row in found]


def test_an_observation_is_filed_once_and_ticks_beside_it_are_control(
    log: Any, projector: Any
) -> None:
    one = fresh(ModelQualityObserved, role="chat", mode="dev")
    other = one.model_copy(update={"hits": 3})
    tick = fresh(ClockTick)
    topic = topics.MODEL_QUALITY_OBSERVED
    for event in (one, one, other):
        log.send(topic, event)
    for _ in range(3):
        log.send(topic, tick, b"tick")
    log.flush()
    projector.caught_up(log)
    (row,) = rows(projector, "quality_observations", one.event_id)
    assert (row["role"], row["mode"]) == ("dialogue", "DEVELOPMENT")
    said = one.model_dump(mode="json", exclude={"role", "mode", "persona"})
    assert {name: row[name] for name in said} == said
    assert not rows(projector, "quality_observations", tick.event_id)
    (law,) = projector.sql(
        "SELECT sum(consumed)::INT, sum(applied)::INT, sum(duplicate)::INT, sum(conflict)::INT,"
        f" sum(control)::INT, sum(dead_lettered)::INT FROM projection_offsets"
        f" WHERE topic = '{topic.name}'"
    )
    consumed, applied, duplicate, conflict, control, dead = law
    assert min(applied, duplicate, conflict) >= 1
    assert control >= 3
    assert consumed == applied + duplicate + conflict + control + dead
    assert consumed == sum(log.ends()[topic.name].values())


def test_every_report_of_a_benchmark_is_filed_because_folds_take_it_by_offset(
    log: Any, projector: Any
) -> None:
    one = fresh(SlmBenchmarkResults, role="chat")
    other = one.model_copy(update={"value": 13.0})
    everywhere = fresh(SlmBenchmarkResults, role=None)
    for event in (one, one, other, everywhere):
        log.send(topics.SLM_BENCHMARK_RESULTS, event, b"p/m/wer")
    log.flush()
    projector.caught_up(log)
    found = rows(projector, "benchmark_results", one.event_id)
    assert [(r["verdict"], r["value"]) for r in found] == [
        ("applied", 12.5),
        ("duplicate", 12.5),
        ("conflict", 13.0),
    ]
    assert {r["role"] for r in found} == {"dialogue"}
    assert (found[0]["scale"], found[0]["direction"], found[0]["seed"]) == ("PERCENT", "LOWER", -7)
    assert rows(projector, "benchmark_results", everywhere.event_id)[0]["role"] is None


def test_of_a_recommendation_the_first_of_an_id_counts(log: Any, projector: Any) -> None:
    one = fresh(ModelProfileRecommended)
    again = one.model_copy(update={"occurred_at_ms": one.occurred_at_ms + 1})
    for event in (one, again):
        log.send(topics.MODEL_PROFILE_RECOMMENDED, event, b"code/TEST")
    log.flush()
    projector.caught_up(log)
    (row,) = rows(projector, "recommendations", one.event_id)
    said = one.model_dump(mode="json")
    assert {name: row[name] for name in said} == said
    told = projector.sql(
        f"SELECT subject, what FROM notable WHERE kind = 'recommendation'"
        f" AND src_offset = {row['src_offset']} AND src_partition = {row['src_partition']}"
    )
    assert told == [["code/TEST", "p/m leads, in force is p/a"]]


def test_a_ranking_tells_its_leader_and_its_entries_their_evidence(
    log: Any, projector: Any
) -> None:
    one = fresh(ModelProfileScored, role="unranked", generation=999)
    nobody = fresh(
        ModelProfileScored, role="unranked", generation=999, leader=None, leader_before=None
    )
    for event in (one, nobody):
        log.send(topics.MODEL_PROFILE_SCORED, event, b"unranked/TEST")
    log.flush()
    projector.caught_up(log)
    (row,) = rows(projector, "rankings", one.event_id)
    assert (row["state_hash"], row["omitted"]) == ("ab" * 32, 1)
    assert (row["leader_provider"], row["leader_model"], row["leader_since_ms"]) == (
        *("p", "m"),
        600_000,
    )
    assert (row["challenger_provider"], row["challenger_model"], row["challenger_closes"]) == (
        *("p", "a"),
        2,
    )
    assert json.loads(row["leader_before"])["closes"] == 1
    (entry,) = rows(projector, "ranking_entries", one.event_id)
    said = one.entries[0].model_dump()
    for name in ("quality_n", "quality_hits", "quality_prior", "success_low", "success_high"):
        assert entry[name] == said[name], name
    assert json.loads(entry["benchmarks"]) == list(said["benchmarks"])
    assert json.loads(entry["parts"]) == list(said["parts"])
    (empty,) = rows(projector, "rankings", nobody.event_id)
    assert {empty[n] for n in empty if n.startswith(("leader", "challenger"))} == {None}


def test_a_policy_of_the_first_version_is_filed_with_the_defaults(log: Any, projector: Any) -> None:
    """Beside one of this version, which says all of it itself."""
    text = json.dumps(_first_version())
    topic = topics.SCORING_POLICY_UPDATED
    with Registry(log.registry) as client:
        number = client.register(topic.subject(ScoringPolicyUpdated), text)
    lines = dict(line.split("  ", 1) for line in OLDEST.read_text("utf-8").splitlines())
    datum = bytes.fromhex(lines["scoring_policy_updated.v1.avsc"])
    name = uuid.uuid4().hex[:3].encode()
    log.raw(topic.name, b"code/TEST", frame(number, b"\x06" + name + datum[4:]))
    newer = fresh(ScoringPolicyUpdated)
    log.send(topic, newer, b"code/TEST")
    log.flush()
    projector.caught_up(log)
    (old,) = rows(projector, "policies", name.decode())
    assert (old["window_panes"], old["severity"], old["part_availability"]) == (288, "WARN", 5000)
    assert (old["quality_metrics"], json.loads(old["benchmarks"])) == (["quality"], [])
    assert (old["sla_success"], old["actor"]) == (None, "ann")
    (new,) = rows(projector, "policies", newer.event_id)
    assert (new["window_panes"], new["severity"], new["sla_success"]) == (12, "PAGE", 9900)
    assert json.loads(new["benchmarks"])[0]["target_e9"] == 50_000_000


def _first_version() -> Any:
    folder = Path(store.__file__).parent.parent / "schemas" / "avsc"
    return json.loads((folder / "scoring_policy_updated.v1.avsc").read_text(encoding="utf-8"))
