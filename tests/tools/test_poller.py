"""What the view knows, gathered from a real broker."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from schemas import (
    HeadedEvent,
    MeterMark,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileRejected,
    ModelProfileScored,
)
from schemas.envelope import Event
from schemas.model_profile import RankingStatus, RejectionKind
from streams import kafka as clients
from streams import settings as settings_
from streams import topics
from streams.codec import encode
from streams.ranking_header import header as ranking_header
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.status import StatusFile
from streams.topics import (
    FOLDED,
    MODE_CHANGED,
    MODEL_FALLBACK_USED,
    MODEL_PROFILE_REJECTED,
    MODEL_PROFILE_SCORED,
    Topic,
)
from tools.log_reader import Rankings, newest, newest_rankings
from tools.poller import Law, Poller, watermark
from tools.supervisor import ProcessState

Publish = Callable[[Topic, str, HeadedEvent], None]
NOW = time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def publish(kafka: str, registry: str) -> Iterator[Publish]:
    topics.create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        catalogue = Catalogue(client)
        outbound = clients.Outbound(clients.producer(kafka))

        def send(topic: Topic, key: str, event: HeadedEvent) -> None:
            headers = []
            if isinstance(event, ModelProfileScored):
                headers = [ranking_header(event)]
            outbound.send(topic.name, key.encode(), encode(catalogue, topic, event), headers)
            outbound.flush()

        yield send


@pytest.fixture
def here(kafka: str, registry: str, tmp_path: Path) -> Settings:
    loaded = settings_.load({"ROSTER_KAFKA": kafka, "ROSTER_REGISTRY": registry})
    return replace(loaded, data=tmp_path, deployment=f"d{uuid4().hex}")


def eventually(check: Callable[[], object], within_s: float = 15.0) -> None:
    until = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.05)


def header(**more: object) -> dict[str, object]:
    return {"event_id": str(uuid4()), "occurred_at_ms": NOW, "source": "test", **more}


def ranking(role: str, as_of_ms: int, status: RankingStatus, revision: int = 0) -> Event:
    return ModelProfileScored.model_validate(
        header(
            role=role,
            deployment_mode="TEST",
            status=status,
            as_of_ms=as_of_ms,
            window_start_ms=0,
            window_end_ms=1,
            revision=revision,
            generation=1,
            policy_event_id="p",
            policy_version=1,
            marks=[],
            inputs=[],
            entries=[],
        )
    )


def test_the_newest_ranking_of_a_key_counts_whatever_the_order_of_the_log(
    publish: Publish, here: Settings
) -> None:
    role = f"role-{uuid4().hex}"
    final, provisional = RankingStatus.FINAL, RankingStatus.PROVISIONAL
    story = [(50, final, 0), (90, provisional, 0), (90, final, 0), (90, final, 1), (60, final, 3)]
    for as_of_ms, status, revision in story:
        event = ranking(role, as_of_ms, status, revision)
        assert isinstance(event, ModelProfileScored)
        publish(MODEL_PROFILE_SCORED, f"{role}/TEST", event)
    (found,) = [r for r in newest_rankings(here) if r.role == role]
    assert (found.as_of_ms, found.status, found.revision) == (90, final, 1)


def test_rankings_without_the_header_are_ordered_all_the_same(
    kafka: str, registry: str, publish: Publish
) -> None:
    role = f"role-{uuid4().hex}"
    with Registry(registry) as client:
        catalogue = Catalogue(client, [MODEL_PROFILE_SCORED])
        outbound = clients.Outbound(clients.producer(kafka))
        for as_of_ms in (70, 30):
            event = ranking(role, as_of_ms, RankingStatus.FINAL)
            value = encode(catalogue, MODEL_PROFILE_SCORED, event)
            outbound.send(MODEL_PROFILE_SCORED.name, f"{role}/TEST".encode(), value)
        outbound.flush()
        rankings = Rankings(catalogue)
        rankings.take(list(clients.read_to_end(kafka, MODEL_PROFILE_SCORED.name)))
        assert [r.as_of_ms for r in rankings.now() if r.role == role] == [70]


def test_the_newest_event_of_a_key_counts(publish: Publish, here: Settings) -> None:
    for mode in ("TEST", "LOCAL"):
        event = ModeChanged.model_validate(
            header(deployment=here.deployment, to_mode=mode, actor="ann")
        )
        publish(MODE_CHANGED, here.deployment, event)
    found = newest(here, MODE_CHANGED, ModeChanged)[here.deployment.encode()]
    assert found.event.to_mode == "LOCAL"


def test_the_poller_follows_mode_rankings_and_notable_events(
    publish: Publish, here: Settings
) -> None:
    role = f"role-{uuid4().hex}"
    poller = Poller(here, "joined columns")
    try:
        publish(
            MODE_CHANGED,
            here.deployment,
            ModeChanged.model_validate(
                header(deployment=here.deployment, to_mode="qa", actor="ann")
            ),
        )
        for _ in range(5):
            fallback = ModelFallbackUsed.model_validate(
                header(
                    tenant="acme",
                    role="code",
                    from_model=f"{role}/a",
                    to_model="q/b",
                    reason="timeout",
                    attempt=2,
                    added_latency_us=1,
                )
            )
            publish(MODEL_FALLBACK_USED, f"acme/{fallback.event_id}", fallback)
        rejected = ModelProfileRejected.model_validate(
            header(
                scope="system",
                role=role,
                deployment_mode="TEST",
                rejected_event_id="e",
                kind=RejectionKind.CONFLICT,
                field="expected_version",
                value="3",
                actual_version=4,
                actor="bob",
                cause_topic="model.profile.updated",
                cause_partition=0,
                cause_offset=0,
            )
        )
        publish(MODEL_PROFILE_REJECTED, f"system/{role}/TEST", rejected)
        event = ranking(role, NOW, RankingStatus.FINAL)
        assert isinstance(event, ModelProfileScored)
        publish(MODEL_PROFILE_SCORED, f"{role}/TEST", event)

        def told() -> set[str]:
            return {f"{n.kind}: {n.text}" for n in poller.state().notable}

        eventually(lambda: any(f"5 from {role} (timeout)" in text for text in told()))
        eventually(lambda: [r for r in poller.state().rankings if r.role == role])
        eventually(lambda: f"mode: {here.deployment} switched to TEST by ann" in told())
        wanted = f"rejected: system/{role}/TEST by bob: conflict, expected_version=3"
        eventually(lambda: wanted in told())
        state = poller.state()
        assert (state.mode, state.joined) == ("TEST", "joined columns")
        assert state.rankings_published >= 1
        assert state.first_ranking_ms is not None
        assert state.trouble is None
    finally:
        poller.close()


def test_reports_of_processes_become_rates_and_laws(here: Settings, publish: Publish) -> None:
    del publish  # the topics are there
    restarts = 0

    def children() -> list[ProcessState]:
        return [
            ProcessState(
                name="meter",
                state="ready",
                pid=os.getpid(),
                restarts=restarts,
                last_reason="killed by SIGKILL" if restarts else None,
                up_s=1.0,
                rss_bytes=2**20,
                log=here.data,
            )
        ]

    poller = Poller(here, children=children)
    try:
        report = StatusFile(here.data, "meter-0")
        law = {"consumed": 6, "applied": 4, "duplicate": 1, "control": 1}
        for n in range(5):
            report.write(records_in=100 * n, records_out=n, lag=7, law=law, force=True)
            time.sleep(0.6)
        (process,) = poller.state().processes
        assert (process.name, process.state, process.lag) == ("meter", "ready", 7)
        assert process.in_per_s is not None and 50 < process.in_per_s < 300
        assert poller.state().laws == (Law(name="meter", counters=law),)
        assert poller.state().laws[0].holds
        assert not Law(name="x", counters={**law, "consumed": 7}).holds
        restarts = 1
        (notable,) = [n for n in poller.state().notable if n.kind == "process"]
        assert notable.text == "meter ended (killed by SIGKILL) and is started again"
        assert len([n for n in poller.state().notable if n.kind == "process"]) == 1
    finally:
        poller.close()


def test_the_watermark_is_the_least_of_all_partitions_and_none_while_one_is_unknown() -> None:
    def mark(topic: Topic, partition: int, watermark_ms: int | None) -> MeterMark:
        counters = dict.fromkeys(
            (
                "consumed",
                "applied",
                "duplicate",
                "late",
                "dead_lettered",
                "conflict",
                "control",
                "replay_from",
            ),
            0,
        )
        return MeterMark(
            source_topic=topic.name,
            source_partition=partition,
            generation=2,
            up_to_offset=0,
            watermark_ms=watermark_ms,
            newest_event_ms=None,
            newest_append_ms=None,
            kept_from_ms=None,
            owner="x",
            **counters,
        )

    marks = [mark(topic, p, 100 + p) for topic in FOLDED for p in range(topic.partitions)]
    assert watermark(marks) == 100
    assert all(watermark([m for m in marks if m is not gone]) is None for gone in marks)
    assert watermark([*marks[:-1], mark(FOLDED[-1], FOLDED[-1].partitions - 1, None)]) is None
