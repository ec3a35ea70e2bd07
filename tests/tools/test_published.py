"""Published rankings by time, id and stretch: the projector's tables and the log say the same."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from projections import history, store
from projections.queries import ask
from schemas import ModeChanged, ModelProfileScored, Recorded, ScoringPolicyUpdated
from schemas.envelope import Event, Position
from schemas.model_profile import LeaderState
from streams import kafka as clients
from streams import settings, topics
from streams.codec import encode
from streams.errors import Unreachable
from streams.ranking_header import header
from streams.registry import Catalogue, Registry
from streams.topics import MODE_CHANGED, MODEL_PROFILE_SCORED, SCORING_POLICY_UPDATED, Topic
from tests.support.events import good
from tests.support.rankings import WINDOW_END, entries, evidence, final, policy
from tools.published import (
    Log,
    Row,
    Source,
    Tables,
    Wanted,
    answered,
    chosen,
    mode_in_force,
    policy_of,
)

ROLE = f"role {uuid4()} it's"
POLICY = str(uuid4())
PANE = 300_000
PANEL = {
    "leader": evidence([1_500_000] * 80, cost=10**9, quality=(160, 200)),
    "far": evidence([2_500_000] * 80, cost=6 * 10**9, quality=(100, 200), failed=9),
    "silent": evidence([], failed=4),
}


def rules(mode: str, **changes: object) -> ScoringPolicyUpdated:
    return policy(role=ROLE, deployment_mode=mode, event_id=f"{POLICY}-{mode}", **changes)


def story() -> tuple[list[ModelProfileScored], list[ScoringPolicyUpdated]]:
    """Two modes; finals of three panes, one corrected, one repeated; provisionals; a heartbeat."""
    records, policies = [], []
    for mode in ("PRODUCTION", "TEST"):
        said = rules(
            mode,
            benchmarks=({"name": "wer", "weight": 2, "floor_e9": 3 * 10**8, "target_e9": 10**8},),
            sla_success=9_000,
        )
        policies.append(said)
        ranked = entries(PANEL, said)
        before: LeaderState | None = None
        for pane in range(3):
            end = WINDOW_END + pane * PANE
            record = final(ranked, said, before=before, window_end_ms=end)
            before = record.leader
            records.append(record)
            records.append(
                final(ranked[:2], said, window_end_ms=end + 60_000, status="PROVISIONAL")
            )
        again = final(ranked[:1], said, window_end_ms=WINDOW_END + PANE, revision=1)
        records += [again, again, final((), said, window_end_ms=WINDOW_END, status="HEARTBEAT")]
    return records, policies


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tables]:
    """The story, filed as the projector files it."""
    records, policies = story()
    file = store.opened(tmp_path_factory.mktemp("tables") / store.FILE)

    def place(topic: Topic, events: list[Event]) -> list[Recorded[Event]]:
        return [
            Recorded(event, Position(topic.name, 0, offset, 1_000 + offset), b"k")
            for offset, event in enumerate(events)
        ]

    for topic, told in (
        (MODEL_PROFILE_SCORED, [*records]),
        (SCORING_POLICY_UPDATED, [*policies]),
    ):
        placed = place(topic, list(told))
        bodies = [f"{r.event!r}".encode() for r in placed]
        with store.transaction(file.db):
            history.file(file.db, topic.name, placed, bodies)

    def question(text: str, most: int) -> list[Row]:
        found = ask(file.db.cursor(), text, most)
        assert not found.more
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    yield Tables(question)
    file.close()


@pytest.fixture(scope="module")
def log(kafka: str, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The story, as the agents publish it."""
    records, policies = story()
    topics.create(clients.admin(kafka), 1)
    out = clients.Outbound(clients.producer(kafka))
    with Registry(registry) as client:
        catalogue = Catalogue(client, [MODEL_PROFILE_SCORED, SCORING_POLICY_UPDATED])
        for record in records:
            key = f"{record.role}/{record.deployment_mode}".encode()
            value = encode(catalogue, MODEL_PROFILE_SCORED, record)
            out.send(MODEL_PROFILE_SCORED.name, key, value, [header(record)])
        for said in policies:
            value = encode(catalogue, SCORING_POLICY_UPDATED, said)
            out.send(SCORING_POLICY_UPDATED.name, b"k", value)
    out.flush()
    here = settings.load({"ROSTER_DATA": str(tmp_path_factory.mktemp("log"))})
    return Log(replace(here, kafka=kafka, registry=registry))


@pytest.fixture(params=["tables", "log"])
def source(request: pytest.FixtureRequest) -> Source:
    found: Source = request.getfixturevalue(request.param)
    return found


def told(found: list[ModelProfileScored]) -> list[tuple[str, str, int, int]]:
    """mode, status, panes since the first, revision."""
    return [
        (
            r.deployment_mode,
            r.status.value,
            (r.as_of_ms - 600_000 - WINDOW_END) // PANE,
            r.revision,
        )
        for r in found
    ]


def test_the_newest_of_each_status_comes_whole(source: Source) -> None:
    found = source.standing(chosen(ROLE, "prod"))
    assert told(found) == [("PRODUCTION", "FINAL", 2, 0), ("PRODUCTION", "PROVISIONAL", 2, 0)]
    records, _ = story()
    published = {r.event_id: r for r in records}
    assert found == [published[r.event_id] for r in found]


def test_at_a_moment_it_is_what_was_published_then_and_corrections_count(source: Source) -> None:
    at = WINDOW_END + 600_000 + PANE
    found = source.standing(chosen(ROLE, None, at_ms=at))
    assert told(found) == [
        ("PRODUCTION", "FINAL", 1, 1),
        ("PRODUCTION", "PROVISIONAL", 0, 0),
        ("TEST", "FINAL", 1, 1),
        ("TEST", "PROVISIONAL", 0, 0),
    ]
    assert len(found[0].entries) == 1
    assert source.standing(chosen(ROLE, None, at_ms=WINDOW_END)) == []


def test_a_stretch_has_each_time_once_its_end_excluded(source: Source) -> None:
    first = WINDOW_END + 600_000
    stretch = chosen(ROLE, "TEST", status=("FINAL",), from_ms=first, to_ms=first + 2 * PANE)
    found = source.history(stretch)
    assert told(found) == [("TEST", "FINAL", 0, 0), ("TEST", "FINAL", 1, 1)]


def test_an_id_finds_its_ranking_and_that_names_its_policy(source: Source) -> None:
    records, policies = story()
    assert source.by_id(records[2].event_id) == records[2]
    assert source.by_id("no such'id") is None
    found = source.policy(policies[1].event_id)
    assert found is not None
    assert found.event == policies[1]
    assert found.at.topic == "scoring.policy.updated"
    assert source.policy("other") is None


def test_more_rankings_than_a_page_holds_are_all_there(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tables.history(Wanted(ROLE))
    monkeypatch.setattr("tools.published.MOST", 3)
    assert tables.history(Wanted(ROLE)) == whole
    assert len(whole) == 12


def test_where_no_projector_answers_the_log_does(log: Log, tmp_path: Path) -> None:
    records, _ = story()
    nobody = replace(log.settings, data=tmp_path, api="http://127.0.0.1:9")
    assert answered(nobody, lambda s: s.by_id(records[0].event_id)) == records[0]


def test_a_policy_of_the_tables_is_the_one_that_was_set(tables: Tables) -> None:
    row = tables.ask("SELECT * FROM policies ORDER BY src_offset", 10)[0]
    assert policy_of(row).event == story()[1][0]
    assert policy_of(row).at == Position("scoring.policy.updated", 0, 0, 1_000)


def test_a_mode_is_in_force_from_its_own_event_time_on(log: Log) -> None:
    here = replace(log.settings, deployment=f"d{uuid4().hex}")
    out = clients.Outbound(clients.producer(here.need_kafka()))
    late, future = WINDOW_END + 10, 2 * (time.time_ns() // 1_000_000)
    with Registry(here.need_registry()) as client:
        catalogue = Catalogue(client, [MODE_CHANGED])
        for number, (at_ms, to) in enumerate(
            [(WINDOW_END, "prod"), (WINDOW_END + 20, "qa"), (late, "local"), (future, "training")]
        ):
            changed = good(
                ModeChanged,
                event_id=f"mode{number}",
                source=here.deployment,
                occurred_at_ms=at_ms,
                deployment=here.deployment,
                to_mode=to,
            )
            value = encode(catalogue, MODE_CHANGED, changed)
            out.send(MODE_CHANGED.name, here.deployment.encode(), value)
    out.flush()
    moments = (WINDOW_END, late - 1, late, WINDOW_END + 19, WINDOW_END + 20, None, future)
    assert [mode_in_force(here, at_ms) for at_ms in moments] == [
        *("PRODUCTION", "PRODUCTION", "LOCAL", "LOCAL", "TEST", "TEST", "TRAINING")
    ]
    with pytest.raises(Unreachable, match="had set no mode by then: name one with --mode"):
        mode_in_force(here, WINDOW_END - 1)
