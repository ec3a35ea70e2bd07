"""A small log with everything in it, taken by the real processes on a broker of its own: verify
holds, and notices every single thing that is changed afterwards.

Told in order: what is forged in the log stays there, so each later lie is looked for by its
subject. All processes have ended by then, so nobody mends it.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import fastavro
import pytest

from schemas import (
    BudgetThresholdCrossed,
    BudgetUpdated,
    Event,
    LateEvent,
    LlmInvocation,
    MeterMark,
    ModelProfileActive,
    ModelProfileRecommended,
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
    ModelQualityObserved,
    ModelRegistered,
    PaneFact,
    Position,
    RateCardUpdated,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from streams import kafka as clients
from streams import settings, topics
from streams.codec import FOLDED, decode_value, encode, tenant_key
from streams.registry import Catalogue, Registry, register_all
from streams.settings import Settings
from tests.support import events
from tools import stack
from tools.supervisor import Supervisor
from tools.verify import (
    Stretch,
    Work,
    database,
    facts,
    letters,
    panes,
    profiles,
    rankings,
    recommended,
    rules,
    verify,
    verify_rankings,
)
from tools.verify.compare import Report
from tools.verify.log import Log, SchemaTexts
from tools.verify.records import Decoder

pytestmark = pytest.mark.system

HOUR = 3_600_000
TAKEN_WITHIN_S = 90.0


@dataclass
class World:
    """settings: of a cluster of its own. out: publishes. catalogue: to encode with."""

    settings: Settings
    out: clients.Outbound
    catalogue: Catalogue

    def publish(self, topic: topics.Topic, event: Event, key: str | bytes | None = None) -> None:
        if key is None:
            key = tenant_key(event) if isinstance(event, FOLDED) else b"k"
        raw = key.encode() if isinstance(key, str) else key
        self.out.send(topic.name, raw, encode(self.catalogue, topic, event))

    def report(
        self,
        file: Path | None = None,
        stretch: Stretch = Stretch(),  # noqa: B008  # frozen
        *,
        rankings_only: bool = False,
    ) -> Report:
        log = Log(self.settings.need_kafka())
        texts = SchemaTexts(self.settings.need_registry())
        report = Report()
        work = Work(log, Decoder(texts), report, rules(self.settings), lambda *_: lambda _: None)
        try:
            if rankings_only:
                verify_rankings(work, stretch)
            else:
                verify(work, self.settings, file, stretch)
        finally:
            log.close()
            texts.close()
        return report

    def newest(self, topic: str, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        """(message, its event) of the newest record of a topic that is wanted."""
        found = None
        for message in clients.read_to_end(self.settings.need_kafka(), topic):
            key, value = message.key(), message.value()
            if not isinstance(value, bytes) or not isinstance(key, bytes):
                continue
            declared = topics.SLM_METRICS.name if topic == facts.TABLE else topic
            here = (message.partition() or 0, message.offset() or 0)
            at = Position(declared, *here, append_ms=time.time_ns() // 1_000_000)
            taken = decode_value(self.catalogue, at, key, value)
            event = getattr(taken, "event", None)
            if event is not None and wanted(event):
                found = (message, event)
        assert found is not None, topic
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A cluster, a mixed log, and what agents, meter and projector made of it; they have ended."""
    data = tmp_path_factory.mktemp("verify")
    with Supervisor(data) as supervisor:
        at, children = stack.local(data, settings.load().cache, usual=None)
        supervisor.add(*children)
        supervisor.wait_ready(within_s=2 * stack.READY_WITHIN_S)
        mine = replace(
            settings.load({"ROSTER_DATA": str(data)}),
            kafka=at.kafka,
            registry=at.registry,
            api=None,
        )
        topics.create(clients.admin(at.kafka), 1)
        with Registry(at.registry) as client:
            out = clients.Outbound(clients.producer(at.kafka))
            made = World(mine, out, register_all(client))
            publish_statements(made)
            publish_invocations(made)
            publish_observations(made)
            taken(made, data)
            yield made


def publish_statements(world: World) -> None:
    at = {"occurred_at_ms": 1}
    for mode in ("TEST", "PRODUCTION"):
        policy = events.good(
            ScoringPolicyUpdated,
            **at,
            event_id=f"policy-{mode}",
            deployment_mode=mode,
            evidence_modes=[],
            window_panes={"TEST": 288, "PRODUCTION": 3}[mode],
            min_quality=0,
            min_reliability=0,
            benchmarks=[{"name": "rouge", "weight": 2, "floor_e9": 0, "target_e9": 10**9}],
        )
        world.publish(topics.SCORING_POLICY_UPDATED, policy, f"code/{mode}")
    for unit in ("INPUT_TOKEN", "OUTPUT_TOKEN"):
        card = events.good(RateCardUpdated, **at, event_id=f"card-{unit}", unit=unit,
                           price_picousd_per_million=3_333_333)  # fmt: skip
        world.publish(topics.RATE_CARD_UPDATED, card, "p/m")
    for i, value in enumerate((41.5, 43.25)):
        result = events.good(
            SlmBenchmarkResults,
            **at,
            event_id=f"result-{i}",
            name="rouge",
            value=value,
            scale="PERCENT",
            direction="HIGHER",
            role=None,
            ci_low=value - 1,
            ci_high=value + 1,
        )
        world.publish(topics.SLM_BENCHMARK_RESULTS, result, f"{result.provider}/{result.model}")
    again = card.model_copy(update={"price_picousd_per_million": 1})
    world.publish(topics.RATE_CARD_UPDATED, again, "p/m")  # a conflict: filed, and a dead letter
    model = events.good(ModelRegistered, **at)
    for one in (model, model, model.model_copy(update={"tier": "large"})):
        world.publish(topics.MODEL_REGISTERED, one, "p/m")
    budget = events.good(BudgetUpdated, **at, cap_picousd=5_000, thresholds=[50, 100])
    world.publish(topics.BUDGET_UPDATED, budget, "acme/b")
    changes: list[dict[str, Any]] = [
        {"expected_version": 0},
        {"expected_version": 0},
        {"temperature": 3.0},
        {"model": "p/other"},
    ]
    for i, change in enumerate(changes):
        profile = events.good(ModelProfileUpdated, **at, event_id=f"profile-{i}", **change)
        world.publish(topics.MODEL_PROFILE_UPDATED, profile, profile.profile_key())
    gone = events.good(ModelProfileUpdated, **at, event_id="set", scope="mode")
    world.publish(topics.MODEL_PROFILE_UPDATED, gone, gone.profile_key())
    deletion = events.good(
        ModelProfileUpdated, **at, event_id="gone", scope="mode", action="DELETE", model=""
    )
    world.publish(topics.MODEL_PROFILE_UPDATED, deletion, deletion.profile_key())
    world.out.send("mode.changed", b"k", b"{}")
    world.out.flush()
    time.sleep(0.05)  # cards count for invocations that are appended at least 1 ms later


def publish_invocations(world: World) -> None:
    """Three hours of event time, then repeats, conflicts, a late one and bad bytes."""
    topic = topics.LLM_INVOCATION
    now = time.time_ns() // 1_000_000
    good = [
        events.good(
            LlmInvocation,
            event_id=f"e{i}",
            occurred_at_ms=now - 3 * HOUR + i * 18_000,
            mode=("TEST", "production", None)[i % 3],
            role=("code", "chat")[i % 7 == 0],
            model=("m", "dear", "free")[i % 3],
            outcome=("SUCCESS", "REFUSAL", "TIMEOUT", "SUCCESS")[i % 4],
            input_tokens=i,
            latency_us=1 + i * 997,
            reported_cost_picousd=i if i % 5 == 0 else None,
        )
        for i in range(600)
    ]
    for event in good:
        world.publish(topic, event)
    last = good[-1]
    world.publish(topic, last)
    world.publish(topic, last.model_copy(update={"output_tokens": 9}))
    world.publish(topic, good[0].model_copy(update={"occurred_at_ms": now}))
    late = good[0].model_copy(update={"event_id": "e0"})
    world.publish(topic, late)  # the same id, and its pane is closed: late, and a duplicate
    for i in range(40):
        world.publish(topic, good[1].model_copy(update={"event_id": f"late{i}"}))
    key, value = tenant_key(last), encode(world.catalogue, topic, last)
    for bad in (b"", b"\x00", b"\x01" + value[1:], value[:-1], value + b"\x00", b"\x00" * 300_000):
        world.out.send(topic.name, key, bad)
    world.out.send(topic.name, None, value)
    world.out.send(topic.name, b"other", value)
    world.publish(topic, last.model_copy(update={"occurred_at_ms": now + HOUR}))
    world.out.flush()


def publish_observations(world: World) -> None:
    """Bits for two models over the same hours; a repeat, a conflict, a late one and bad ones."""
    topic = topics.MODEL_QUALITY_OBSERVED
    now = time.time_ns() // 1_000_000
    good = [
        events.good(
            ModelQualityObserved,
            event_id=f"q{i}",
            occurred_at_ms=now - 3 * HOUR + i * 60_000,
            mode=("TEST", "production", None)[i % 3],
            role=("code", "chat")[i % 5 == 0],
            provider="p",
            model=("m", "dear")[i % 2],
            metric=("quality", "policy_compliance", "refusal_accuracy", "other")[i % 4],
            n=3,
            hits=(3, 2)[i % 3 == 0],
        )
        for i in range(180)
    ]
    for event in good:
        world.publish(topic, event)
    last = good[-1]
    world.publish(topic, last)
    world.publish(topic, last.model_copy(update={"hits": 0}))
    for i in range(20):
        world.publish(topic, good[0].model_copy(update={"event_id": f"late{i}"}))
    world.out.send(topic.name, tenant_key(last), b"\x00")
    world.out.send(topic.name, b"other", encode(world.catalogue, topic, last))
    world.out.flush()


def taken(world: World, data: Path) -> None:
    """Runs the processes until verify finds nothing behind, then ends them: the meter first, which
    might else close a pane after the others have gone."""
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ROSTER_")},
        "ROSTER_DATA": str(data),
        "ROSTER_CACHE": str(settings.load().cache),
        "ROSTER_KAFKA": world.settings.need_kafka(),
        "ROSTER_REGISTRY": world.settings.need_registry(),
    }
    with (data / "processes.log").open("ab") as log:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "tools", verb], env=environ, stdout=log, stderr=log
            )
            for verb in ("meter", "agents", "projector")
        ]
    meter = running[0]
    try:
        until = time.monotonic() + TAKEN_WITHIN_S
        while time.monotonic() < until:
            time.sleep(1)
            report = world.report()  # while they work: it must hold at every moment
            assert report.total == 0, report.differences
            if settled(report):
                if meter.poll() is not None:
                    return
                meter.send_signal(signal.SIGTERM)
                meter.wait(20)
        said = (data / "processes.log").read_text(errors="replace")[-3000:]
        pytest.fail(f"not taken within {TAKEN_WITHIN_S:.0f} s: {report.remarks} {said}")
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


ALL = (
    facts.MARKS,
    facts.FACTS,
    facts.ROWS,
    rankings.LAST,
    rankings.MARKS,
    rankings.GAPS,
    recommended.EVENTS,
    profiles.ROWS,
    profiles.PUBLISHED,
    profiles.REFUSED,
    database.LAW,
    database.ROWS,
    database.SUMS,
    database.PANES,
    database.HOURS,
    database.HISTORY,
    database.ENTRIES,
    database.THRESHOLDS,
    panes.TOTALS,
    panes.LATENCIES,
    panes.QUALITY,
    panes.NEWEST,
    letters.DEAD,
    letters.LATE,
)


def settled(report: Report) -> bool:
    """Nothing lags, and there was something to compare under every heading."""
    waits = ("lags", "wait", "newer", "not compared", "not looked for")
    behind = [text for text in report.remarks if any(word in text for word in waits)]
    return not behind and all(report.compared.get(subject) for subject in ALL)


def test_it_holds_and_every_subject_was_compared(world: World) -> None:
    report = world.report(stretch=Stretch(every=True))
    assert report.differences == []
    assert settled(world.report())
    assert report.compared[rankings.EVERY] > 10_000
    assert report.compared[database.ROWS] == 640  # each id once
    assert report.compared[letters.LATE] >= 61


def test_rankings_alone_are_recomputed_stretch_by_stretch(world: World) -> None:
    """Two stretches that meet hold every final once; nothing else is compared."""
    whole = world.report(stretch=Stretch(every=True), rankings_only=True)
    assert (whole.total, set(whole.compared)) == (
        0,
        {rankings.EVERY, rankings.MARKS, rankings.GAPS},
    )
    middle = time.time_ns() // 1_000_000 - 2 * HOUR
    halves = [
        world.report(stretch=stretch, rankings_only=True)
        for stretch in (Stretch(True, None, middle), Stretch(True, middle, None))
    ]
    assert [half.total for half in halves] == [0, 0]
    assert all(half.finals > 10 for half in halves)
    assert sum(half.finals for half in halves) == whole.finals
    assert sum(half.compared[rankings.GAPS] for half in halves) == whole.compared[rankings.GAPS]


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ("UPDATE invocations SET output_tokens = output_tokens + 1 WHERE event_id = 'e7'",
         database.ROWS),
        ("UPDATE invocations SET cost_picousd = cost_picousd + 1 WHERE event_id = 'e6'",
         database.SUMS),
        ("DELETE FROM invocations WHERE event_id = 'e8'", database.ROWS),
        ("INSERT INTO invocations SELECT * FROM invocations WHERE event_id = 'e9'", database.ROWS),
        ("UPDATE cost_panes SET n = n + 1 WHERE rowid = 0", database.PANES),
        ("UPDATE cost_panes SET cost_picousd = cost_picousd - 1 WHERE rowid = 0", database.HOURS),
        ("UPDATE projection_offsets SET applied = applied + 1 WHERE topic = 'llm.invocation'",
         database.LAW),
        ("UPDATE projection_offsets SET next_offset = next_offset + 1, consumed = consumed + 1,"
         " control = control + 1 WHERE topic = 'mode.changed'", database.LAW),
        ("DELETE FROM rate_cards WHERE src_offset = 1", database.HISTORY),
        ("DELETE FROM model_registrations WHERE src_offset = 0", database.HISTORY),
        ("UPDATE model_registrations SET verdict = 'applied'", database.HISTORY),
        ("UPDATE rankings SET body_hash = uuid() WHERE rowid = 0", database.HISTORY),
        ("UPDATE metrics_panes SET success = success + 1 WHERE rowid = 0", panes.TOTALS),
        ("UPDATE metrics_panes SET reported_cost_cost = reported_cost_cost + 1::BIGNUM"
         " WHERE rowid = 0", panes.TOTALS),
        ("UPDATE metrics_panes SET model = 'else' WHERE rowid = 0", panes.TOTALS),
        ("UPDATE metrics_panes SET latency_counts = [2] WHERE latency_counts = [1]",
         panes.LATENCIES),
        ("UPDATE metrics_panes SET latency_buckets = [], latency_counts = []", panes.LATENCIES),
        ("DELETE FROM quality_panes WHERE metric = 'other'", panes.QUALITY),
        ("UPDATE quality_panes SET hits = hits - 1 WHERE rowid = 0", panes.QUALITY),
        ("UPDATE quality_panes SET tenant = 'else' WHERE rowid = 0", panes.QUALITY),
        ("UPDATE projection_offsets SET newest_ms = newest_ms - 1"
         " WHERE topic = 'model.quality.observed'", panes.NEWEST),
        ("UPDATE ranking_entries SET score = nextafter(score, 9) WHERE score IS NOT NULL",
         database.ENTRIES),
        ("UPDATE ranking_entries SET parts = '[]' WHERE parts <> '[]'", database.ENTRIES),
        ("UPDATE ranking_entries SET position = position + 1", database.ENTRIES),
        ("DELETE FROM ranking_entries WHERE position > 0", database.ENTRIES),
        ("INSERT INTO ranking_entries SELECT * FROM ranking_entries WHERE position = 0",
         database.ENTRIES),
    ],
)  # fmt: skip
def test_it_notices_a_change_in_the_file(
    world: World, tmp_path: Path, change: str, subject: str
) -> None:
    copy = tmp_path / "copy.duckdb"
    shutil.copy(world.settings.data / "roster.duckdb", copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute(change)
    report = world.report(copy)
    assert report.wrong.get(subject), report.wrong
    assert report.differences[0].where


def again(world: World, topic: topics.Topic, message: Any, event: Event) -> None:
    """A record like one that is there, with something changed."""
    value = encode(world.catalogue, topic, event)
    world.out.send(topic.name, message.key(), value, partition=message.partition())
    world.out.flush()


def forge_fact(world: World) -> None:
    message, fact = world.newest(facts.TOPIC, lambda e: isinstance(e, PaneFact))
    first = fact.models[0].model_copy(update={"input_tokens": fact.models[0].input_tokens + 1})
    changed = fact.model_copy(update={"models": (first, *fact.models[1:])})
    again(world, topics.SLM_METRICS, message, changed)


def forge_mark(world: World) -> None:
    message, mark = world.newest(facts.TOPIC, lambda e: isinstance(e, MeterMark))
    again(world, topics.SLM_METRICS, message, mark.model_copy(update={"late": mark.late + 1}))


def forge_metrics_row(world: World) -> None:
    message, _ = world.newest(facts.TABLE)
    value = bytearray(message.value())
    value[-2] ^= 1
    world.out.send(facts.TABLE, message.key(), bytes(value), partition=message.partition())
    world.out.flush()


def forge_profile_row(world: World) -> None:
    message = next(
        m
        for m in clients.read_to_end(world.settings.need_kafka(), profiles.TABLE)
        if m.value() is not None
    )
    schema = fastavro.parse_schema(
        json.loads((files("processors.tables") / "profiles.avsc").read_text()), named_schemas={}
    )
    row: Any = fastavro.schemaless_reader(io.BytesIO(message.value() or b""), schema, None)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, {**row, "version": row["version"] + 1})
    partition = message.partition() or 0
    world.out.send(profiles.TABLE, message.key(), out.getvalue(), partition=partition)
    world.out.flush()


def forge_active(world: World) -> None:
    message, active = world.newest(profiles.ACTIVE)
    assert isinstance(active, ModelProfileActive)
    changed = active.model_copy(update={"model": "p/forged"})
    again(world, topics.MODEL_PROFILE_ACTIVE, message, changed)


def forge_refusal(world: World) -> None:
    message, refused = world.newest(profiles.REJECTED)
    assert isinstance(refused, ModelProfileRejected)
    changed = refused.model_copy(update={"cause_offset": 0, "event_id": "forged"})
    again(world, topics.MODEL_PROFILE_REJECTED, message, changed)


def forge_ranking(world: World) -> None:
    """The next revision of a final, with one digit of one percentile changed."""
    message, final = world.newest(rankings.TOPIC, lambda e: e.status == "FINAL" and e.entries)
    assert isinstance(final, ModelProfileScored)
    latency = final.entries[0].latency_us
    entry = final.entries[0].model_copy(update={"latency_us": (latency or 0) + 1e-6})
    changed = final.model_copy(
        update={
            "entries": (entry, *final.entries[1:]),
            "revision": final.revision + 1,
            "event_id": "forged",
        }
    )
    again(world, topics.MODEL_PROFILE_SCORED, message, changed)


def forge_recommendation(world: World) -> None:
    message, said = world.newest(recommended.TOPIC)
    assert isinstance(said, ModelProfileRecommended)
    changed = said.model_copy(update={"samples": said.samples + 1})
    again(world, topics.MODEL_PROFILE_RECOMMENDED, message, changed)


def forge_threshold(world: World) -> None:
    message, crossed = world.newest(database.CROSSED)
    assert isinstance(crossed, BudgetThresholdCrossed)
    changed = crossed.model_copy(
        update={"event_id": "forged", "spent_picousd": crossed.spent_picousd + 1}
    )
    again(world, topics.BUDGET_THRESHOLD_CROSSED, message, changed)


def forge_dead_letter(world: World) -> None:
    message, dead = world.newest(letters.DEAD_TOPIC)
    again(world, topics.DEAD_LETTERS, message, dead.model_copy(update={"reason": "bad_frame"}))


def forge_late(world: World) -> None:
    message, late = world.newest(letters.LATE_TOPIC)
    assert isinstance(late, LateEvent)
    again(world, topics.LATE_EVENTS, message, late.model_copy(update={"watermark_ms": 1}))


@pytest.mark.parametrize(
    ("forge", "subject"),
    [
        (forge_metrics_row, facts.ROWS),
        (forge_fact, facts.FACTS),
        (forge_mark, facts.MARKS),
        (forge_profile_row, profiles.ROWS),
        (forge_active, profiles.PUBLISHED),
        (forge_refusal, profiles.REFUSED),
        (forge_recommendation, recommended.EVENTS),
        (forge_ranking, rankings.LAST),
        (forge_threshold, database.THRESHOLDS),
        (forge_dead_letter, letters.DEAD),
        (forge_late, letters.LATE),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_it_notices_a_lie_in_the_log(
    world: World, forge: Callable[[World], None], subject: str
) -> None:
    before = world.report().wrong.get(subject, 0)
    assert before == 0
    forge(world)
    report = world.report()
    assert report.wrong.get(subject), report.wrong


def test_a_file_that_is_not_there_is_told_in_one_line(world: World, tmp_path: Path) -> None:
    from streams.errors import BadConfiguration

    with pytest.raises(BadConfiguration, match=r"--duckdb is .*; allowed: a DuckDB file"):
        world.report(tmp_path / "none.duckdb")
    foreign = tmp_path / "foreign.duckdb"
    duckdb.connect(str(foreign)).close()
    report = world.report(foreign)
    assert any("is not a projection" in text for text in report.remarks)
