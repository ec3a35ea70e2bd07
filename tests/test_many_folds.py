"""One recorded log, folded again and again under generations of their own: by one meter and one
worker and by three of each, in fetches of three sizes, under five orders of hashing. Every time the
finals must be those of the plain fold, and `roster verify` must bear them out.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from processors.agents import SOURCES
from processors.pane_fold import PartitionFold
from processors.scorer import Scorer
from processors.stretches import stretches
from schemas import (
    Event,
    LlmInvocation,
    ModelProfileScored,
    ModelQualityObserved,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.model_profile import RankingStatus
from schemas.values import Outcome
from streams import kafka as clients
from streams import settings
from streams.codec import decode, encode, tenant_key
from streams.ranking_header import summary
from streams.registry import Catalogue, Registry, register_all
from streams.topics import (
    BY_NAME,
    FOLDED,
    LLM_INVOCATION,
    MODEL_PROFILE_SCORED,
    MODEL_QUALITY_OBSERVED,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    SLM_BENCHMARK_RESULTS,
    Topic,
    create,
)
from tests.support.events import good
from tests.support.worker import AGENTS, METER, Worker, running, until
from tools import stack
from tools.supervisor import Supervisor

pytestmark = pytest.mark.system
PANE: Final = 300_000
PANES: Final = 24  # two hours
CALLS: Final = 2_500
FETCHES: Final = ((10_000, 5_000, 1_000_000), (97, 40, 20_000), (7, 3, 2_000))
"""Records that a meter takes at a time, records that a worker does, bytes of a fetch."""
RUNS: Final = ((1, 0, 0), (3, 1, 1), (1, 2, 2), (1, 0, 3), (3, 2, 4))
"""Processes of each kind, fetch size, seed of hashing."""
SMALL = """
from processors import agents
from streams import app, kafka
kafka.drain.__defaults__ = ({drained},)
kafka.CONSUMER.update({{"max.partition.fetch.bytes": {fetched}, "queued.min.messages": {drained}}})
app.POLL_RECORDS = {polled}
agents.SLICE = {polled}
"""


@dataclass
class Recording:
    """A broker with the log; expected: what the plain fold makes of it."""

    kafka: str
    registry: str
    catalogue: Catalogue
    data: Path
    expected: set[str] = field(default_factory=set)

    def messages(self, topic: Topic) -> Iterator[Any]:
        return clients.read_to_end(self.kafka, topic.name)

    def events(self, topic: Topic) -> list[Recorded[Any]]:
        found = (decode(self.catalogue, message) for message in self.messages(topic))
        return [item for item in found if isinstance(item, Recorded)]

    def count(self, generation: int) -> int:
        """Published finals of a generation, as their headers say."""
        said = (summary(message) for message in self.messages(MODEL_PROFILE_SCORED))
        return sum(
            one is not None and (one.generation, one.status) == (generation, "FINAL")
            for one in said
        )

    def finals(self, generation: int) -> dict[str, set[str]]:
        """event_id -> what it says, of each published final."""
        found: dict[str, set[str]] = {}
        for item in self.events(MODEL_PROFILE_SCORED):
            scored: ModelProfileScored = item.event
            if scored.generation == generation and scored.status is RankingStatus.FINAL:
                found.setdefault(scored.event_id, set()).add(canonical(scored))
        return found


def canonical(scored: ModelProfileScored) -> str:
    """A ranking without what differs between generations and moments of decision."""
    apart = {"event_id", "generation", "marks", "inputs"}
    return json.dumps(scored.model_dump(mode="json", exclude=apart), sort_keys=True)


def digest(finals: set[str]) -> str:
    return hashlib.sha256("\n".join(sorted(finals)).encode()).hexdigest()


# --- the log


def statements() -> Iterator[tuple[Topic, Event]]:
    """Policies of two roles and modes, one of them in the middle of the two hours; cards of all
    models but one; a benchmark."""
    middle = begin_ms() + PANES // 2 * PANE
    rules: dict[str, Any] = {
        "min_samples": 5,
        "min_trials": 5,
        "window_panes": 6,
        "hysteresis_closes": 2,
        "hysteresis_min_ms": 2 * PANE,
        "evidence_modes": [],
        "benchmarks": [{"name": "rouge", "weight": 1, "floor_e9": 0, "target_e9": 10**9}],
    }
    for number, (role, mode, at_ms) in enumerate(
        [
            ("code", "prod", 0),
            ("chat", "prod", 0),
            ("code", "qa", 0),
            ("chat", "qa", 0),
            ("code", "prod", middle),
        ]
    ):
        weights = {"weight_cost": 5500, "weight_quality": 0} if at_ms else {}
        percentile = {"latency_percentile": 99, "evidence_modes": ["qa"]} if mode == "qa" else {}
        own = {"role": role, "deployment_mode": mode, "occurred_at_ms": at_ms}
        yield (
            SCORING_POLICY_UPDATED,
            good(
                ScoringPolicyUpdated,
                **{**rules, **own, **weights, **percentile, "event_id": f"policy{number}"},
            ),
        )
    for model in "abc":
        for unit in ("INPUT_TOKEN", "CACHED_TOKEN", "OUTPUT_TOKEN"):
            price = 10**11 * (ord(model) - 96) + 1
            card = {"event_id": f"{model}-{unit}", "model": model, "unit": unit}
            yield (
                RATE_CARD_UPDATED,
                good(RateCardUpdated, **card, price_picousd_per_million=price, valid_from_ms=0),
            )
        shown = {"name": "rouge", "value": 0.4, "scale": "UNIT", "direction": "HIGHER"}
        ends = {"ci_low": 0.3, "ci_high": 0.5, "role": None}
        if model != "c":
            yield (
                SLM_BENCHMARK_RESULTS,
                good(SlmBenchmarkResults, event_id=f"r-{model}", model=model, **shown, **ends),
            )


NOW: Final = time.time_ns() // 1_000_000


def begin_ms() -> int:
    """Two hours that ended more than an hour ago: all their panes have left the windows."""
    return (NOW // PANE - PANES - 20) * PANE


def happened(rng: random.Random) -> Iterator[LlmInvocation | ModelQualityObserved]:
    """Calls and observations of two hours in the order of their arrival: out of order by up to nine
    minutes, a few of them by an hour; some repeated, some ids with another body."""
    arrivals = []
    for number in range(CALLS):
        at_ms = begin_ms() + rng.randrange(PANES * PANE)
        behind = 3_600_000 if rng.random() < 0.01 else rng.randrange(540_000)
        arrivals.append((at_ms + behind, at_ms, number))
    for _, at_ms, number in sorted(arrivals):
        shared = {
            "event_id": f"e{number if rng.random() < 0.98 else rng.randrange(CALLS)}",
            "occurred_at_ms": at_ms,
            "tenant": rng.choice("tuv"),
            "role": rng.choice(("code", "chat", "dialogue", "nobody")),
            "mode": rng.choice(("prod", "qa", None)),
            "model": rng.choice(("a", "b", "c", "unpriced")),
        }
        one: LlmInvocation | ModelQualityObserved
        if rng.random() < 0.2:
            metric = rng.choice(("quality", "policy_compliance", "other"))
            one = good(ModelQualityObserved, **shared, metric=metric, n=3, hits=rng.randrange(4))
        else:
            one = good(
                LlmInvocation,
                **shared,
                outcome=rng.choice([Outcome.SUCCESS] * 8 + [Outcome.FAILURE, Outcome.REFUSAL]),
                input_tokens=rng.randrange(4_000),
                output_tokens=rng.randrange(900),
                latency_us=int(10**6 * rng.lognormvariate(0, 0.6)),
                reported_cost_picousd=rng.choice((None, None, rng.randrange(10**10))),
            )
        yield one
        if rng.random() < 0.02:
            yield one


def write(recording: Recording) -> None:
    """Appends all; in the end one event to every partition that closes the panes before it."""
    out = clients.Outbound(clients.producer(recording.kafka))
    for topic, event in statements():
        out.send(topic.name, b"key", encode(recording.catalogue, topic, event), partition=0)
    out.flush()
    for event in happened(random.Random(4)):
        topic = LLM_INVOCATION if isinstance(event, LlmInvocation) else MODEL_QUALITY_OBSERVED
        out.send(topic.name, tenant_key(event), encode(recording.catalogue, topic, event))
    for topic in FOLDED:
        for partition in range(topic.partitions):
            kind = topic.events[0]
            assert kind in (LlmInvocation, ModelQualityObserved)
            own = {"event_id": f"end-{partition}", "occurred_at_ms": NOW - 20 * 60_000}
            end: Any = good(kind, **own, role="nobody")
            value = encode(recording.catalogue, topic, end)
            out.send(topic.name, tenant_key(end), value, partition=partition)
    out.flush()


def plain(recording: Recording) -> set[str]:
    """Finals of the log folded in one go, in this process."""
    scorer = Scorer(SOURCES, 2)
    scorer.statements(
        recording.events(SCORING_POLICY_UPDATED),
        recording.events(RATE_CARD_UPDATED),
        recording.events(SLM_BENCHMARK_RESULTS),
    )
    said: list[ModelProfileScored] = []
    verdicts = {"late": 0, "duplicate": 0, "conflict": 0}
    for name in SOURCES:
        found = list(recording.messages(BY_NAME[name]))
        for partition, stretch in stretches(recording.catalogue, BY_NAME[name], found).items():
            fold = PartitionFold(name, partition, 2, None)
            fold.fold(stretch)
            for fact in fold.facts():
                scorer.fact(fact)
            mark = fold.mark(None, "plain")
            verdicts = {verdict: n + getattr(mark, verdict) for verdict, n in verdicts.items()}
            said += scorer.mark(mark, catching_up=True)
    assert all(verdicts.values()), verdicts  # the log has some of each
    return {canonical(final) for final in said}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    with Supervisor(tmp_path_factory.mktemp("folds")) as supervisor:
        addresses, children = stack.local(supervisor.data, settings.load().cache, usual=None)
        supervisor.add(*children)
        supervisor.wait_ready(within_s=2 * stack.READY_WITHIN_S)
        create(clients.admin(addresses.kafka), 1)
        with Registry(addresses.registry) as client:
            made = Recording(
                addresses.kafka, addresses.registry, register_all(client), supervisor.data
            )
            write(made)
            made.expected = plain(made)
            yield made


def test_the_log_has_something_to_say(recording: Recording) -> None:
    finals = [json.loads(text) for text in recording.expected]
    assert len(finals) > 4 * PANES
    assert {f["revision"] for f in finals} == {0}
    keys = {(f["role"], f["deployment_mode"]) for f in finals}
    assert keys == {
        (role, mode) for role in ("code", "dialogue") for mode in ("PRODUCTION", "TEST")
    }
    entries = [entry for f in finals for entry in f["entries"]]
    assert {entry["status"] for entry in entries} >= {"ranked", "provisional", "unrankable"}
    assert {entry["rank"] for entry in entries} >= {1, 2, None}
    assert len({f["leader"]["model"] for f in finals}) > 1


@pytest.mark.parametrize(("processes", "size", "seed"), RUNS, ids=str)
def test_who_folds_in_what_portions_and_order_changes_no_final(
    recording: Recording, tmp_path: Path, processes: int, size: int, seed: int
) -> None:
    generation = 100 + seed
    drained, polled, fetched = FETCHES[size]
    before = SMALL.format(drained=drained, polled=polled, fetched=fetched)
    made = [
        Worker(
            recording.kafka,
            recording.registry,
            tmp_path / f"{kind}{number}",
            before=before,
            generation=generation,
            main=main,
            environ={"PYTHONHASHSEED": str(seed)},
        )
        for number in range(processes)
        for kind, main in (("meter", METER), ("agents", AGENTS))
    ]
    with running(*made):
        expected = len(recording.expected)
        until(lambda: recording.count(generation) >= expected, 60, lambda: told(made))
        workers = [w for w in made if w.data.name.startswith("agents")]
        until(lambda: all(w.ready() for w in workers), 30, lambda: told(made))
        leave(made)
    found = recording.finals(generation)
    assert all(len(texts) == 1 for texts in found.values())
    said = {text for texts in found.values() for text in texts}
    assert digest(said) == digest(recording.expected), said ^ recording.expected
    assert len(found) == len(said)


def told(workers: list[Worker]) -> str:
    return "\n".join(worker.log()[-2_000:] for worker in workers)


def leave(workers: list[Worker]) -> None:
    """Ends all: who leaves the group is not waited for by the next ones."""
    for worker in workers:
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
    for worker in workers:
        assert worker.process is not None
        assert worker.process.wait(15) == 0, worker.log()


@pytest.mark.parametrize("generation", [101, 102])
def test_verify_recomputes_every_final_from_the_positions_it_names(
    recording: Recording, generation: int
) -> None:
    command = [sys.executable, "-m", "tools", "verify", "--rankings", "--json"]
    env = {
        **os.environ,
        "ROSTER_KAFKA": recording.kafka,
        "ROSTER_REGISTRY": recording.registry,
        "ROSTER_DATA": str(recording.data),
        "ROSTER_GENERATION": str(generation),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-1_000:]
    report = json.loads(done.stdout)
    assert report["differences"] == []
    assert report["values_compared"] > 10 * len(recording.expected)
