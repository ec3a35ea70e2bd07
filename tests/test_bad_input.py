"""Bad input on every topic of a running system: one verdict each, nobody stops, work goes on.

Told in order on one data folder, without the sample workload. At the end `roster verify` must find
every number proven, and every process must be the one that was started.
"""

import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import fastavro
import pytest
from confluent_kafka import KafkaError, Message, Producer

from schemas import (
    BudgetUpdated,
    DeadLetter,
    Event,
    HeadedEvent,
    LlmInvocation,
    MeterMark,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileUpdated,
    ModelQualityObserved,
    ModelRegistered,
    PaneFact,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.avro import schema_text
from schemas.dead_letter import KEEP_BYTES
from schemas.values import MAX_INT, MAX_LONG
from streams import kafka as clients
from streams import topics
from streams.codec import FOLDED, decode, encode, frame
from streams.registry import Catalogue, Registry
from streams.status import read_all
from streams.topics import (
    BUDGET_UPDATED,
    DEAD_LETTERS,
    LATE_EVENTS,
    LLM_INVOCATION,
    MODEL_PROFILE_ACTIVE,
    MODEL_PROFILE_UPDATED,
    SLM_METRICS,
    TOPICS,
    Topic,
)
from tests.support import bad, commands
from tests.support.events import good
from tools import stack
from tools.supervisor import running

pytestmark = pytest.mark.system
WITHIN_S: Final = 3.0
"""After bad input the next good event is applied within a second; the rest is for a machine that
runs other things, too."""
FOREIGN: Final = 999  # generation of facts that nobody ranks
Place = tuple[str, int, int]


@dataclass
class System:
    data: Path
    bootstrap: str = ""
    api: str = ""
    client: Registry | None = None
    catalogue: Catalogue | None = None
    producer: Producer | None = None
    pids: dict[str, int] = field(default_factory=dict)
    expected: dict[Place, bad.Bad] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def roster(self, *words: str) -> subprocess.CompletedProcess[str]:
        return commands.roster(self.data, *words, timeout_s=120)

    def sql(self, query: str) -> list[list[Any]]:
        request = urllib.request.Request(
            f"{self.api}/v1/sql",
            data=json.dumps({"sql": query}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            rows: list[list[Any]] = json.load(answer)["rows"]
        return rows

    def encoded(self, topic: Topic, event: Event) -> bytes:
        assert self.catalogue is not None
        return encode(self.catalogue, topic, event)

    def send(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...] = (),
        partition: int = -1,
    ) -> list[Place]:
        """Appends a record; the list holds its place once flush has returned."""
        assert self.producer is not None
        landed: list[Place] = []

        def note(error: KafkaError | None, message: Message) -> None:
            assert error is None, (topic.name, error)
            landed.append((topic.name, message.partition() or 0, message.offset() or 0))

        self.producer.produce(
            topic.name, value, key, headers=list(headers), partition=partition, on_delivery=note
        )
        return landed

    def flush(self) -> None:
        assert self.producer is not None
        assert self.producer.flush(30) == 0

    def say(self, topic: Topic, event: Event, key: bytes = b"key", partition: int = -1) -> None:
        if isinstance(event, FOLDED):
            key = bad.key_of(event)
        self.send(topic, key, self.encoded(topic, event), partition=partition)

    def letters(self) -> dict[Place, list[DeadLetter]]:
        """All dead letters, by the place of the record."""
        found: dict[Place, list[DeadLetter]] = {}
        assert self.catalogue is not None
        for message in clients.read_to_end(self.bootstrap, DEAD_LETTERS.name):
            item = decode(self.catalogue, message)
            if isinstance(item, Recorded) and isinstance(item.event, DeadLetter):
                one = item.event
                place = (one.origin_topic, one.origin_partition, one.origin_offset)
                found.setdefault(place, []).append(one)
        return found


def until(condition: Callable[[], Any], within_s: float, why: str) -> float:
    """Seconds until something holds."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, why
        time.sleep(0.02)
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("bad") / "data")
    stack.choose_ports(made.data, usual=None)
    command = [sys.executable, "-m", "tools", "up", "--no-workload", "--json"]
    with (made.data.parent / "up.out").open("wb") as out:
        up = subprocess.Popen(command, env=commands.environ(made.data), stdout=out, stderr=out)
    try:

        def ready() -> bool:
            assert up.poll() is None, (made.data.parent / "up.out").read_text()
            found = running(made.data)
            if found is None or "api" not in found.addresses:
                return False
            made.bootstrap, made.api = found.addresses["kafka"], found.addresses["api"]
            made.pids = found.children
            return {"kafka", "registry", "agents", "meter", "projector"} <= set(found.children)

        until(ready, 120, "it did not start")
        found = running(made.data)
        assert found is not None
        made.client = Registry(found.addresses["registry"])
        made.catalogue = Catalogue(made.client)
        made.producer = clients.producer(made.bootstrap)
        until(lambda: works(made), 60, "the agents did not begin")
        yield made
    finally:
        if made.client is not None:
            made.client.close()
        up.terminate()
        up.wait(60)


def works(system: System) -> bool:
    """Whether the agents say that they have caught up."""
    return any(
        name.startswith("agents") and report["note"] in {"ready", "standing by"}
        for name, report in read_all(system.data).items()
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def invocation(**changes: Any) -> LlmInvocation:
    return good(LlmInvocation, **{"event_id": str(uuid4()), "occurred_at_ms": now_ms(), **changes})


# --- every fault on every topic


def rows(system: System, topic: Topic) -> Iterator[bad.Bad]:
    """All that can be wrong with the events of a topic."""
    assert system.catalogue is not None
    other = topics.MODE_CHANGED if topic is not topics.MODE_CHANGED else LLM_INVOCATION
    other_id = system.catalogue.id_of(other, other.events[0])
    for event in topic.events:
        one = bad.good_now(event, now_ms())
        for row in bad.framing(system.catalogue, topic, one, other_id):
            if row.key is not None or not topic.compacted:  # there the broker itself refuses it
                yield row
        yield from bad.of_fields(system.catalogue, topic, event, now_ms())


Applied = Callable[[], Any]


def profile(system: System) -> Applied:
    """A change of a profile that is good: it must come to be in force."""
    event = good(ModelProfileUpdated, event_id=str(uuid4()), scope="tenant:bad", model="p/good")
    system.say(MODEL_PROFILE_UPDATED, event, event.profile_key().encode())
    assert system.catalogue is not None
    catalogue = system.catalogue

    def in_force() -> bool:
        found = [
            decode(catalogue, m)
            for m in clients.read_to_end(system.bootstrap, MODEL_PROFILE_ACTIVE.name)
        ]
        causes = [getattr(i.event, "cause_event_id", "") for i in found if isinstance(i, Recorded)]
        return event.event_id in causes

    return in_force


def refusal(system: System) -> Applied:
    """A change that is refused: the agents say so on model.profile.rejected."""
    event = good(ModelProfileUpdated, event_id=str(uuid4()), model="no slash")
    system.say(MODEL_PROFILE_UPDATED, event, event.profile_key().encode())
    query = f"SELECT 1 FROM profile_rejections WHERE rejected_event_id = '{event.event_id}'"
    return lambda: system.sql(query)


def crossing(system: System) -> Applied:
    """A spend above a budget: the projector says so on budget.threshold.crossed."""
    tenant = f"t{uuid4().hex}"
    system.say(BUDGET_UPDATED, good(BudgetUpdated, event_id=str(uuid4()), tenant=tenant))
    system.flush()
    system.say(LLM_INVOCATION, invocation(tenant=tenant, reported_cost_picousd=100))
    return lambda: system.sql(f"SELECT 1 FROM budget_thresholds WHERE tenant = '{tenant}'")


def lateness(system: System) -> Applied:
    """An event far behind its partition: the meter says so on late.events."""
    late = invocation(occurred_at_ms=now_ms() - 3_600_000)
    system.say(LLM_INVOCATION, invocation(), partition=5)
    system.say(LLM_INVOCATION, late, partition=5)
    return lambda: system.sql(f"SELECT 1 FROM late_events WHERE late_event_id = '{late.event_id}'")


def burial(system: System) -> Applied:
    """A bad record elsewhere: its dead letter is filed."""
    landed = system.send(topics.MODE_CHANGED, b"k", b"\x01bad")
    system.flush()
    _, partition, offset = landed[0]
    system.expected[landed[0]] = bad.Bad("burial", b"k", b"\x01bad", "bad_magic")
    return lambda: system.sql(
        "SELECT 1 FROM dead_letters WHERE origin_topic = 'mode.changed'"
        f" AND origin_partition = {partition} AND origin_offset = {offset}"
    )


def metered(system: System) -> Applied:
    """An invocation: facts and marks of it pass through slm.metrics."""
    role = f"role-{uuid4()}"
    system.say(LLM_INVOCATION, invocation(role=role))

    def fact() -> bool:
        found = clients.read_to_end(system.bootstrap, SLM_METRICS.name)
        return any(role.encode() in (m.key() or b"") for m in found)

    return fact


def filed(event: type[HeadedEvent], table: str, **changes: Any) -> Callable[[System], Applied]:
    """A good event of the topic itself: the projector files it."""

    def send(system: System) -> Applied:
        topic = next(t for t in TOPICS if event in t.events)
        one = good(event, **{"event_id": str(uuid4()), "occurred_at_ms": now_ms(), **changes})
        system.say(topic, one)
        return lambda: system.sql(f"SELECT 1 FROM {table} WHERE event_id = '{one.event_id}'")

    return send


NEXT: Final[dict[str, Callable[[System], Applied]]] = {
    "llm.invocation": filed(LlmInvocation, "invocations"),
    "model.fallback.used": filed(ModelFallbackUsed, "fallbacks"),
    "model.profile.updated": profile,
    "model.profile.rejected": refusal,
    "model.profile.active": profile,
    "mode.changed": filed(ModeChanged, "mode_changes"),
    "model.registered": filed(ModelRegistered, "model_registrations"),
    "scoring.policy.updated": filed(ScoringPolicyUpdated, "policies", role="nobody"),
    "rate.card.updated": filed(RateCardUpdated, "rate_cards"),
    "budget.updated": filed(BudgetUpdated, "budget_updates", tenant="nobody"),
    "budget.threshold.crossed": crossing,
    "slm.metrics": metered,
    "model.profile.scored": refusal,
    "model.profile.recommended": refusal,
    "model.quality.observed": filed(ModelQualityObserved, "quality_observations"),
    "slm.benchmark.results": filed(SlmBenchmarkResults, "benchmark_results"),
    "late.events": lateness,
    "dead.letters": burial,
}
"""What is sent after the bad records of a topic, and by what its effect is seen."""
UNBURIED: Final = {DEAD_LETTERS.name, MODEL_PROFILE_ACTIVE.name}
"""Dead letters have none of their own; model.profile.active is written again from the table."""


@pytest.mark.parametrize("topic", [t for t in TOPICS if t.events], ids=lambda topic: topic.name)
def test_after_every_fault_the_next_good_event_is_applied(system: System, topic: Topic) -> None:
    landed = [(row, system.send(topic, row.key, row.value)) for row in rows(system, topic)]
    assert len(landed) > 20
    applied = NEXT[topic.name](system)
    system.flush()
    took = until(applied, WITHIN_S, f"{topic.name}: not applied within {WITHIN_S:.0f} s")
    system.figures[topic.name] = took
    print(f"{topic.name}: {len(landed)} bad records, the next good event after {took:.2f} s")
    if topic.name not in UNBURIED:
        system.expected |= {place[0]: row for row, place in landed}


# --- what is not wrong, but hard


def test_large_headers_and_keys_are_refused_and_told(system: System) -> None:
    for topic in (LLM_INVOCATION, topics.MODE_CHANGED, MODEL_PROFILE_UPDATED):
        many = tuple((f"h{i}", b"x" * 1000) for i in range(900))
        key = b"k" * (KEEP_BYTES + 1)
        for row, headers in (
            (bad.Bad("headers", b"k", b"\x01x", "bad_magic"), many),
            (bad.Bad("key", key, b"\x01x", "bad_magic"), ()),
            (bad.Bad("no text", b"\xff\x00", b"\x01x", "bad_magic"), (("h", b"\xff\x00"),)),
            (bad.Bad("digits", b"k", b"\x01x", "bad_magic"), (("roster-append-ms", b"9" * 14),)),
        ):
            landed = system.send(topic, row.key, row.value, headers)
            system.flush()
            system.expected[landed[0]] = row
    applied = filed(ModeChanged, "mode_changes")(system)
    system.flush()
    until(applied, WITHIN_S, "not applied")


@pytest.mark.parametrize("topic", [LLM_INVOCATION, MODEL_PROFILE_UPDATED, SLM_METRICS])
def test_a_copy_may_say_nonsense_of_its_append_time(system: System, topic: Topic) -> None:
    for header in (b"9" * 10_000, b"", b"-1", b"\xff"):
        row = bad.Bad("copy", b"k", b"\x01x", "bad_magic")
        landed = system.send(topic, row.key, row.value, (("roster-append-ms", header),))
        system.flush()
        system.expected[landed[0]] = row
    applied = NEXT[topic.name](system)
    system.flush()
    until(applied, WITHIN_S, "not applied")


def test_what_stands_under_the_key_of_a_mark_is_no_mark_by_that(system: System) -> None:
    ours = good(MeterMark, source_partition=7).key()
    for row in (
        bad.Bad("mark", ours, b"\x01x", "bad_magic"),
        bad.Bad("mark", b"mark", b"\x00\x7f\xff\xff\xffx", "schema_unknown"),
        bad.Bad("fact", good(PaneFact).key(), b"\x01x", "bad_magic"),
    ):
        landed = system.send(SLM_METRICS, row.key, row.value)
        system.flush()
        system.expected[landed[0]] = row
    applied = metered(system)
    system.flush()
    until(applied, WITHIN_S, "not applied")


def test_schemas_of_endless_data_are_not_allowed(system: System) -> None:
    registry = system.client
    assert registry is not None
    link = {"name": "next", "type": ["null", "L"], "default": None}
    bodies = {
        "items without bytes": (
            {"type": "array", "items": "null"},
            b"\xfe" + b"\xff" * 8 + b"\x01",
        ),
        "a list": ({"type": "record", "name": "L", "fields": [link]}, b"\x02" * 200_000),
    }
    for name, (bomb, body) in bodies.items():
        schema = json.loads(schema_text(LlmInvocation))
        schema["fields"].insert(0, {"name": "bomb", "type": bomb})
        schema_id = registry.register(f"test-{uuid4()}", json.dumps(schema))
        value = frame(schema_id, body)
        landed = system.send(LLM_INVOCATION, b"k", value)
        system.flush()
        system.expected[landed[0]] = bad.Bad(name, b"k", value, "schema_not_allowed")
    applied = filed(LlmInvocation, "invocations")(system)
    system.flush()
    until(applied, WITHIN_S, "not applied")


def test_an_id_counts_once_and_another_body_is_a_conflict(system: System) -> None:
    first = invocation(tenant="twice")
    other = first.model_copy(update={"output_tokens": 6})
    for event in (first, first, other, first):
        system.say(LLM_INVOCATION, event)
    landed = system.send(LLM_INVOCATION, bad.key_of(first), system.encoded(LLM_INVOCATION, other))
    applied = filed(LlmInvocation, "invocations")(system)
    system.flush()
    until(applied, WITHIN_S, "not applied")
    filed_once = "SELECT output_tokens FROM invocations WHERE tenant = 'twice'"
    until(lambda: system.sql(filed_once) == [[5]], WITHIN_S, "not the first one, once")
    place = landed[0]
    until(lambda: place in system.letters(), WITHIN_S, "no dead letter")
    found = system.letters()[place]
    assert [one.reason for one in found] == ["id_conflict"]
    assert found[0].value == system.encoded(LLM_INVOCATION, other)


def test_the_largest_numbers_are_counted_exactly(system: System) -> None:
    card = good(
        RateCardUpdated, event_id=str(uuid4()), provider="huge", price_picousd_per_million=MAX_LONG
    )
    system.say(topics.RATE_CARD_UPDATED, card)
    system.say(
        topics.RATE_CARD_UPDATED,
        card.model_copy(update={"event_id": str(uuid4()), "unit": "OUTPUT_TOKEN"}),
    )
    budget = good(BudgetUpdated, event_id=str(uuid4()), tenant="huge", cap_picousd=MAX_LONG)
    system.say(BUDGET_UPDATED, budget)
    policy = good(
        ScoringPolicyUpdated,
        event_id=str(uuid4()),
        role="huge",
        min_samples=MAX_INT,
        min_trials=MAX_INT,
        emit_epsilon_e9=MAX_LONG,
        emit_min_interval_ms=MAX_LONG,
        heartbeat_ms=MAX_LONG,
        reference_cost_picousd=MAX_LONG,
    )
    system.say(topics.SCORING_POLICY_UPDATED, policy)
    system.flush()
    time.sleep(0.05)  # a card counts for what is appended after it
    tokens = {"input_tokens": 10**9, "output_tokens": 10**9, "latency_us": 10**12}
    for reported in (None, MAX_LONG):
        one = invocation(
            **{"tenant": "huge", "provider": "huge", "role": "huge", **tokens},
            reported_cost_picousd=reported,
            profile_version=MAX_LONG,
        )
        system.say(LLM_INVOCATION, one)
    system.flush()
    query = "SELECT cost_picousd::VARCHAR FROM invocations WHERE tenant = 'huge' ORDER BY 1"
    until(lambda: len(system.sql(query)) == 2, WITHIN_S, "not applied")
    by_card = 2 * 10**9 * MAX_LONG // 10**6
    assert sorted(int(row[0]) for row in system.sql(query)) == [MAX_LONG, by_card]
    crossed = "SELECT threshold_percent, spent_picousd FROM budget_thresholds WHERE tenant = 'huge'"
    until(lambda: len(system.sql(crossed)) == 2, WITHIN_S, "no threshold")


def test_strange_texts_are_data(system: System) -> None:
    texts = ("a\x00b", "'; DROP TABLE invocations;--", "\u202etxt", "=1+1", "{{7*7}}", "🦊" * 1000)
    ids = []
    for text in texts:
        one = invocation(tenant="texts", error_code=text, trace_id=text, request_id=text)
        ids.append(one.event_id)
        system.say(LLM_INVOCATION, one)
        name = text.replace("\x00", "")[:100]
        system.say(LLM_INVOCATION, invocation(tenant="names", role=name, mode=name))
        system.say(topics.MODE_CHANGED, good(ModeChanged, event_id=str(uuid4()), reason=text))
    system.flush()
    query = "SELECT error_code FROM invocations WHERE tenant = 'texts'"
    until(lambda: len(system.sql(query)) == len(texts), WITHIN_S, "not applied")
    assert {row[0] for row in system.sql(query)} == set(texts)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": "[" * 1000 + "]" * 1000},
        {"extra": '{"a":' * 40 + "1" + "}" * 40},
        {"extra": "no json"},
        {"temperature": 1e308},
        {"temperature": -0.0},
        {"max_tokens": -1},
        {"max_tokens": MAX_LONG},
        {"model": ""},
        {"model": "p/" + "m" * 200_000},
        {"scope": "tenant:" + "a" * 200_000},
        {"scope": "../etc"},
        {"scope": "a\x00b"},
        {"fallbacks": ["p/m"] * 30_000 + ["no slash"]},
        {"credential_ref": "sk-0123456789"},
        {"base_url": "javascript:alert(1)"},
        {"expected_version": MAX_LONG},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_ill_formed_profile_is_refused_visibly(system: System, changes: dict[str, Any]) -> None:
    event = good(ModelProfileUpdated, event_id=str(uuid4()), **changes)
    system.say(MODEL_PROFILE_UPDATED, event, event.profile_key().encode())
    system.flush()
    query = f"SELECT field FROM profile_rejections WHERE rejected_event_id = '{event.event_id}'"
    until(lambda: system.sql(query), WITHIN_S, "not refused")
    assert system.sql(query)[0][0].partition(".")[0] == next(iter(changes))


def test_facts_of_nobody_are_no_evidence(system: System) -> None:
    """Well-formed facts and marks of another generation, the largest numbers in them."""
    base = good(PaneFact).models[0]
    largest = base.model_copy(
        update={
            "unit_sums": ("9" * 80,) * 3,
            "unit_products": ("9" * 80,) * 6,
            "outcomes": (MAX_LONG,) * 9,
            "latency_buckets": (1102,),
            "latency_counts": (MAX_LONG,),
        }
    )
    fact = good(PaneFact, generation=FOREIGN).model_copy(update={"models": (largest,)})
    mark = good(MeterMark, generation=FOREIGN, up_to_offset=MAX_LONG)
    system.send(SLM_METRICS, fact.key(), system.encoded(SLM_METRICS, fact))
    system.send(SLM_METRICS, mark.key(), system.encoded(SLM_METRICS, mark))
    applied = metered(system)
    system.flush()
    until(applied, WITHIN_S, "not applied")


# --- what a policy may say, and an observation


def in_force(system: System, role: str) -> list[Any]:
    """Policy, its version, and next offset of policies read, of the newest ranking of a role."""
    found = system.sql(
        "SELECT policy_event_id, policy_version, inputs FROM rankings"
        f" WHERE role = '{role}' ORDER BY as_of_ms DESC, src_offset DESC LIMIT 1"
    )
    if not found:
        return []
    policy, version, inputs = found[0]
    places = json.loads(inputs) if isinstance(inputs, str) else inputs
    read = {place["topic"]: place["next_offset"] for place in places}
    return [policy, version, read[topics.SCORING_POLICY_UPDATED.name]]


def ranked(system: System, role: str, after: int) -> list[Any]:
    """The same once there is a ranking that had read the policies up to an offset."""
    found: list[Any] = []

    def there() -> bool:
        nonlocal found
        for partition in range(LLM_INVOCATION.partitions):  # time moves on in all of them
            system.say(LLM_INVOCATION, invocation(role=role), partition=partition)
        system.flush()
        time.sleep(0.3)
        found = in_force(system, role)
        return bool(found) and found[2] > after

    until(there, 30, f"no ranking of {role} after offset {after}")
    return found


def test_a_bad_policy_is_told_with_its_field_and_the_old_one_stays_in_force(
    system: System,
) -> None:
    topic, role = topics.SCORING_POLICY_UPDATED, f"unheard-of {uuid4().hex}"
    told = {"role": role, "deployment_mode": "TEST", "evidence_modes": []}
    quick = {"emit_min_interval_ms": 0, "emit_epsilon_e9": 0, "heartbeat_ms": 1}
    old = good(ScoringPolicyUpdated, event_id=str(uuid4()), **told, **quick)
    system.say(topic, old)
    system.flush()
    assert ranked(system, role, 0)[:2] == [old.event_id, 1]  # a role nobody knows is ranked as sent

    span = {"name": "wer", "weight": 1, "floor_e9": 5, "target_e9": 5}
    assert system.catalogue is not None
    schema_id = system.catalogue.id_of(topic, ScoringPolicyUpdated)
    less = json.loads(schema_text(ScoringPolicyUpdated))
    less["fields"] = [f for f in less["fields"] if f["name"] != "reference_latency_us"]
    assert system.client is not None
    without = system.client.register(f"test-{uuid4()}", json.dumps(less))
    landed = []
    for changes, reason, said in (
        ({"weight_cost": 1501}, "invalid_field", "weights must sum to 10,000"),
        ({"part_availability": 0}, "invalid_field", "parts must sum to 10,000"),
        ({"reference_cost_picousd": -1}, "out_of_range", "reference_cost_picousd=-1"),
        ({"reference_cost_picousd": 0}, "out_of_range", "reference_cost_picousd=0"),
        ({"reference_latency_us": None}, "decode_error", "reference_latency_us"),
        ({"latency_percentile": 42}, "invalid_field", "latency_percentile=42"),
        ({"quality_metrics": ["a b"]}, "invalid_field", "quality_metrics.0='a b'"),
        ({"benchmarks": [span]}, "invalid_field", "benchmarks.0"),
        ({"hysteresis_closes": 0}, "out_of_range", "hysteresis_closes=0"),
        (
            {"event_id": old.event_id, "weight_cost": 0},
            "id_conflict",
            "the same id with another body",
        ),
    ):
        fields = {**old.model_dump(), "event_id": str(uuid4()), **changes}
        if reason == "id_conflict":
            fields["weight_quality"] = 10_000 - 4500
        missing = reason == "decode_error"
        body = written(less, fields) if missing else bad.datum(ScoringPolicyUpdated, fields)
        value = frame(without if missing else schema_id, body)
        key = f"{role}/TEST".encode()
        place = system.send(topic, key, value)
        system.flush()
        system.expected[place[0]] = bad.Bad(str(changes), key, value, reason)
        landed.append((place[0], reason, said))
    for (_, partition, offset), reason, said in landed:
        query = (
            "SELECT reason, detail FROM dead_letters"
            f" WHERE origin_topic = '{topic.name}' AND origin_partition = {partition}"
            f" AND origin_offset = {offset}"
        )
        until(lambda query=query: system.sql(query), WITHIN_S, said)  # type: ignore[misc]
        ((found, detail),) = system.sql(query)
        assert (found, said in detail) == (reason, True), detail
    listed = system.roster("dead-letters", "list", "--json").stdout
    offsets = {row["origin_offset"] for row in json.loads(listed)}
    assert {place[2] for place, *_ in landed} <= offsets

    last = max(place[2] for place, *_ in landed)
    assert ranked(system, role, last)[:2] == [old.event_id, 1]
    better = old.model_copy(update={"event_id": str(uuid4()), "reason": None})
    system.say(topic, better)
    system.flush()
    assert ranked(system, role, last + 1)[:2] == [
        better.event_id,
        2,
    ]  # the bad ones are not counted


def written(schema: Any, fields: dict[str, Any]) -> bytes:
    """Fields under any schema."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), fields)
    return out.getvalue()


def posted(system: System, body: str) -> tuple[int, Any]:
    """Answer to an observation over HTTP."""
    request = urllib.request.Request(
        f"{system.api}/v1/quality",
        data=body.encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_what_is_refused_at_the_edge_is_told_with_its_field_and_never_sent(
    system: System,
) -> None:
    tenant, role = f"t{uuid4().hex}", f"unheard-{uuid4().hex}"
    whole = {"tenant": tenant, "role": role, "provider": "p", "model": "m", "n": 2, "hits": 1}
    for changes, name in (
        ({"hits": float("nan")}, "hits"),
        ({"hits": 3}, "hits"),
        ({"n": 0, "hits": 0}, "n"),
        ({"metric": "a b"}, "metric"),
        ({"role": ""}, "role"),
    ):
        status, problem = posted(system, json.dumps({**whole, **changes}))
        assert (status, problem["field"], bool(problem["allowed"])) == (422, name, True), problem
    odd = {"event_id": str(uuid4()), "metric": "never.heard.of"}
    status, answer = posted(system, json.dumps({**whole, **odd}))
    assert (status, answer["event_id"]) == (201, odd["event_id"])
    status, answer = posted(system, json.dumps({**whole, **odd, "hits": 2}))  # the same id again
    assert status == 201
    kept = f"SELECT role, metric, hits FROM quality_observations WHERE tenant = '{tenant}'"
    until(lambda: system.sql(kept), WITHIN_S, "not applied")
    conflict = (
        "SELECT reason FROM dead_letters WHERE origin_topic = 'model.quality.observed'"
        f" AND origin_partition = {answer['partition']} AND origin_offset = {answer['offset']}"
    )
    until(lambda: system.sql(conflict), WITHIN_S, "no dead letter")
    assert system.sql(conflict) == [["id_conflict"]]
    assert system.sql(kept) == [[role, "never.heard.of", 1]]

    for words, said in (
        (("policies", "set", role, "TEST", "weight_cost=1"), "weight_quality"),
        (("benchmarks", "add", "p", "m", "wer", "nan"), "value=nan"),
        (("benchmarks", "add", "p", "m", "bleu", "41.5"), "value must be 0 to 1 in scale UNIT"),
        (("rankings", "--role", role, "--at", "never"), "ISO 8601"),
    ):
        result = system.roster(*words)
        assert (result.returncode, result.stdout) == (2, ""), (words, result.stderr)
        assert said in result.stderr and result.stderr.count("\n") == 1, result.stderr


# --- what is left of it


def test_every_bad_record_has_exactly_one_dead_letter_with_its_reason_and_bytes(
    system: System,
) -> None:
    assert len(system.expected) > 1_000

    def all_there() -> bool:
        return set(system.expected) <= set(system.letters())

    until(all_there, 10, "dead letters are missing")
    letters = system.letters()
    for place, row in system.expected.items():
        about = (place, row.name)
        assert {one.reason for one in letters[place]} == {row.reason}, about
        # The agents bury again what they read again, under the same id.
        assert len({one.event_id for one in letters[place]}) == 1, about
        if place[0] != SLM_METRICS.name:
            assert len(letters[place]) == 1, about
        one = letters[place][0]
        small = row.value is not None and len(row.value) <= KEEP_BYTES
        assert one.value == (row.value if small else None), about
        assert one.value_length == (None if row.value is None else len(row.value)), about
        assert one.key == (row.key if len(row.key or b"") <= KEEP_BYTES else None), about
    reasons = {row.reason for row in system.expected.values()}
    assert reasons == {
        *("null_key", "empty_value", "bad_frame", "bad_magic", "schema_unknown", "too_large"),
        *("schema_not_allowed", "decode_error", "trailing_bytes", "not_finite", "out_of_range"),
        *("invalid_field", "ts_future", "ts_too_old", "id_conflict"),
    }


def test_the_late_event_is_charged_all_the_same(system: System) -> None:
    late = system.sql("SELECT late_event_id FROM late_events")
    assert late
    for (event_id,) in late:
        assert system.sql(f"SELECT count(*) FROM invocations WHERE event_id = '{event_id}'") == [
            [1]
        ]
    assert LATE_EVENTS.name in NEXT


def test_no_process_has_died(system: System) -> None:
    found = running(system.data)
    assert found is not None
    assert found.children == system.pids
    states = json.loads(system.roster("status", "--json").stdout)["processes"]
    print({name: f"{s:.2f} s" for name, s in sorted(system.figures.items())})
    assert {row["process"] for row in states} >= {"meter", "agents", "projector"}


def test_the_log_proves_every_number(system: System) -> None:
    result = system.roster("verify", "--json")
    assert result.stdout, result.stderr
    said = json.loads(result.stdout)
    assert said["differences"] == []
    assert result.returncode == 0
    assert said["values_compared"] > 1_000
