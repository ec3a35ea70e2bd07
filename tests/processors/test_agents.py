"""The agents as processes on a real broker: nothing lost, nothing applied twice, none stalls."""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from processors.meter_protocol import place
from processors.tables import profiles
from schemas import (
    DeadLetter,
    MeterMark,
    ModelProfileScored,
    PaneFact,
    Recorded,
    ScoringPolicyUpdated,
)
from schemas.model_profile import ProfileAction, RankingStatus
from schemas.scoring_policy import CostUnit
from schemas.slm_metrics import ModelTotals
from streams import codec, topics
from streams import kafka as clients
from streams.registry import Catalogue, Registry
from tests.support.worker import GENERATION, Worker, actives, change, running, table, until

pytestmark = pytest.mark.kafka
KEYS = 12
START_S = 90.0  # far more than it takes, on a machine that does other things too
PANE = 1_700_000_100_000 // 300_000 * 300_000


@pytest.fixture(scope="module")
def catalogue(kafka: str, registry: str) -> Iterator[Catalogue]:
    """Topics made, schemas registered."""
    topics.create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        yield Catalogue(client)


class Producer:
    """Sends changes of some profiles of its own and knows what must come of them."""

    def __init__(self, bootstrap: str, catalogue: Catalogue, rate: float = 100.0) -> None:
        name = uuid4().hex[:8]
        self.keys = [(f"tenant:{name}", f"role-{n}", "PRODUCTION") for n in range(KEYS)]
        self.catalogue = catalogue
        self.rate = rate
        self.out = clients.Outbound(clients.producer(bootstrap))
        self.expected: dict[bytes, tuple[int, str]] = {}  # version, model
        self.number = 0

    def send(self, count: int = 1) -> None:
        """Appends changes, round robin over the keys."""
        for _ in range(count):
            key = self.keys[self.number % KEYS]
            event = change(self.number, key)
            name = event.profile_key().encode()
            topic = topics.MODEL_PROFILE_UPDATED
            self.out.send(topic.name, name, codec.encode(self.catalogue, topic, event))
            self.expected[name] = (self.expected.get(name, (0, ""))[0] + 1, event.model)
            self.number += 1
        self.out.flush()

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Sends at its rate in a thread."""
        stopped = threading.Event()

        def flow() -> None:
            while not stopped.wait(10 / self.rate):
                self.send(10)

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def rows(self, bootstrap: str) -> dict[bytes, tuple[int, str]]:
        """Its rows, as the table's changelog holds them."""
        rows = {k: profiles.decode(v) for k, v in table(bootstrap, topics.PROFILES_TABLE).items()}
        return {
            key: (rows[key].version, p.model)
            for key in self.expected
            if key in rows and (p := rows[key].profile) is not None
        }

    def published(self, bootstrap: str) -> dict[bytes, tuple[int, str]]:
        """Its profiles, as model.profile.active says them."""
        said = actives(bootstrap, self.catalogue)
        return {key: (said[key].version, said[key].model) for key in self.expected if key in said}

    def arrived(self, bootstrap: str) -> bool:
        """Whether table and publication say what they must."""
        return self.rows(bootstrap) == self.expected == self.published(bootstrap)


@pytest.fixture
def producer(kafka: str, catalogue: Catalogue) -> Producer:
    """A producer with keys of its own."""
    return Producer(kafka, catalogue)


@pytest.fixture
def worker(kafka: str, registry: str, tmp_path: Path) -> Callable[..., Worker]:
    """Makes workers, each with a folder of its own."""

    def make(name: str, **given: object) -> Worker:
        return Worker(kafka, registry, tmp_path / name, **given)  # type: ignore[arg-type]  # passed through

    return make


@pytest.fixture(scope="module")
def steady(
    kafka: str, registry: str, catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    """A worker that most tests share."""
    one = Worker(kafka, registry, tmp_path_factory.mktemp("steady"))
    with running(one):
        until(one.ready, START_S, one.log)
        yield one


def test_a_worker_killed_in_mid_run_leaves_table_and_publication_exact(
    kafka: str, producer: Producer, worker: Callable[..., Worker]
) -> None:
    one = worker("one")
    with running(one):
        producer.send(600)
        until(one.ready, START_S, one.log)
        with producer.flowing():
            for _ in range(2):
                time.sleep(random.Random(producer.number).uniform(0.2, 0.8))
                one.end(signal.SIGKILL)
                one.start()
                until(one.ready, START_S, one.log)
        until(lambda: producer.arrived(kafka), 10, lambda: (producer.expected, one.log()))
        applied = one.status()["law"]
        assert applied["consumed"] == sum(
            applied.get(name, 0)
            for name in ("applied", "duplicate", "rejected", "dead_lettered", "control")
        )
        assert one.end() == 0


def test_a_restart_reads_everything_again_and_applies_nothing_twice(
    kafka: str, producer: Producer, worker: Callable[..., Worker]
) -> None:
    one = worker("one")
    with running(one):
        producer.send(60)
        until(one.ready, START_S, one.log)
        until(lambda: producer.arrived(kafka), 10, one.log)
        assert one.end() == 0
        before = {t: ends(kafka, t) for t in written()}
        one.start()
        until(one.ready, START_S, one.log)
        time.sleep(2.5)  # two rounds of reconciling
        assert one.status()["law"]["duplicate"] >= 60
        assert {t: ends(kafka, t) for t in written()} == before


def written() -> list[str]:
    """Topics that the agents write profiles to."""
    return [
        topics.changelog(topics.PROFILES_TABLE),
        topics.MODEL_PROFILE_ACTIVE.name,
        topics.MODEL_PROFILE_REJECTED.name,
    ]


def ends(bootstrap: str, topic: str) -> dict[int, int]:
    """End offsets of a topic."""
    client = clients.consumer(bootstrap, "test")
    try:
        return clients.end_offsets(client, topic)
    finally:
        client.close()


def test_no_input_is_skipped_and_none_stalls_while_workers_join_leave_and_die(
    kafka: str, producer: Producer, worker: Callable[..., Worker]
) -> None:
    """20 joins of two further workers, which leave, or die and are missed for a session."""
    chance = random.Random(20)
    steady, guests = worker("steady"), [worker("a"), worker("b")]
    with running(steady):
        until(steady.ready, START_S, steady.log)
        with producer.flowing(), running(*guests):
            for joined in range(10):
                for guest in guests:
                    until(guest.ready, START_S, guest.log)
                time.sleep(chance.uniform(0.0, 0.5))
                for guest in guests:
                    assert guest.process is not None
                    guest.process.send_signal(signal.SIGKILL if joined == 5 else signal.SIGTERM)
                for guest in guests:
                    assert guest.process is not None
                    guest.process.wait(15)
                    guest.start()
        until(lambda: producer.arrived(kafka), 30, lambda: (producer.expected, steady.log()))
        assert steady.process is not None and steady.process.poll() is None, steady.log()
        assert "progress" not in steady.log() + "".join(guest.log() for guest in guests)


LEAKY = """
from streams import app
whole, count = app.WholeLogConsumer.getmany, 0
async def leaky(self, timeout):
    global count
    async for tp, message in whole(self, timeout):
        ours = not self._is_changelog_tp(tp)
        count += ours
        if not (ours and {lost}):
            yield tp, message
app.WholeLogConsumer.getmany = leaky
"""
UNCHECKED = """
def admit(self, batch):
    return [record for record in batch.records if record.offset >= self.next]
app.Reading.admit = admit
"""
EVERY_THIRD = LEAKY.format(lost="count % 3 == 0 and count < 60")


def trickle(producer: Producer) -> None:
    """200 changes in many small batches."""
    for _ in range(40):
        producer.send(5)
        time.sleep(0.05)


def test_batches_lost_on_the_way_are_fetched_again(
    kafka: str, producer: Producer, worker: Callable[..., Worker]
) -> None:
    one = worker("one", before=EVERY_THIRD)
    with running(one):
        until(lambda: one.status() != {}, START_S, one.log)
        trickle(producer)
        until(lambda: producer.arrived(kafka), 20, lambda: (producer.expected, one.log()))
        assert one.log().count("rewound to") >= 3


LATE = """
import asyncio
from processors import agents
from streams import app
seek, at_hand = app.WholeLogConsumer.perform_seek, agents.Agents.at_hand
async def late(self):
    await seek(self)
    await asyncio.sleep(1.0)
async def slow(self, records):
    await asyncio.sleep(0.5)
    await at_hand(self, records)
app.WholeLogConsumer.perform_seek, agents.Agents.at_hand = late, slow
"""


def test_nothing_is_lost_between_the_seek_to_the_start_and_the_resumed_flow(
    kafka: str, producer: Producer, worker: Callable[..., Worker]
) -> None:
    """Faust empties the agents' queues there; where nothing follows, nothing would show the loss.

    Only a worker that has recovered tables fetches before the seek: hence the second start.
    """
    producer.send(4 * KEYS)
    one = worker("one", stall_s=5.0, before=LATE)
    with running(one):
        until(one.ready, START_S, one.log)
        until(lambda: producer.arrived(kafka), 10, lambda: (producer.expected, one.log()))
        assert one.end() == 0
        one.start()
        until(one.ready, START_S, one.log)
        assert "rewound" not in one.log()


def test_a_worker_that_makes_no_progress_ends_itself_with_one_line(
    producer: Producer, worker: Callable[..., Worker]
) -> None:
    one = worker("one", stall_s=2.0, before=LEAKY.format(lost="True"))
    with running(one):
        producer.send(KEYS)
        assert one.process is not None
        assert one.process.wait(START_S) == 70
        (line,) = (line for line in one.log().splitlines() if "ERROR" in line)
        assert "no progress for" in line


def test_without_the_check_of_contiguity_lost_batches_stay_lost(
    kafka: str, producer: Producer, worker: Callable[..., Worker]
) -> None:
    """What the law above guards against, so that it cannot pass for another reason."""
    one = worker("one", before=EVERY_THIRD + UNCHECKED)
    with running(one):
        until(lambda: one.status() != {}, START_S, one.log)
        trickle(producer)
        time.sleep(1)
        rows = producer.rows(kafka)
        assert sum(version for version, _ in rows.values()) < 200


def test_a_bad_change_is_passed_over_and_the_next_good_one_applied(
    kafka: str, producer: Producer, steady: Worker
) -> None:
    until(steady.ready, START_S, steady.log)
    updated = topics.MODEL_PROFILE_UPDATED.name
    producer.send(KEYS)
    for key in list(producer.expected):
        for value in (None, b"", b"\x01nonsense", b"\x00\x00\x00\xff\xff1", b"\x00\x00"):
            producer.out.send(updated, key, value)
    producer.out.send(updated, None, b"without a key")
    producer.send(KEYS)
    until(lambda: producer.arrived(kafka), 10, lambda: (producer.expected, steady.log()))


def test_a_refused_change_is_published_once_and_leaves_the_profile_alone(
    kafka: str, producer: Producer, steady: Worker
) -> None:
    topic = topics.MODEL_PROFILE_UPDATED
    until(steady.ready, START_S, steady.log)
    producer.send(1)
    key = producer.keys[0]
    refused = [
        change(1000, key, expected_version=7),
        change(1001, key, model="no-provider"),
        change(1002, key, action=ProfileAction.DELETE, expected_version=0),
    ]
    for event in refused:
        value = codec.encode(producer.catalogue, topic, event)
        producer.out.send(topic.name, event.profile_key().encode(), value)
    producer.send(KEYS - 1)
    until(lambda: producer.arrived(kafka), 10, lambda: (producer.expected, steady.log()))
    steady.end()
    steady.start()
    until(steady.ready, START_S, steady.log)
    found = [
        item.event.model_dump()["rejected_event_id"]
        for message in clients.read_to_end(kafka, topics.MODEL_PROFILE_REJECTED.name)
        if isinstance(item := codec.decode(producer.catalogue, message), Recorded)
    ]
    assert [found.count(event.event_id) for event in refused] == [1, 1, 1]


def test_a_publication_that_goes_wrong_is_put_right(
    kafka: str, producer: Producer, steady: Worker
) -> None:
    """Someone else writes an old profile, rubbish and a tombstone; a profile nobody set appears."""
    topic = topics.MODEL_PROFILE_ACTIVE
    producer.send(2 * KEYS)
    until(steady.ready, START_S, steady.log)
    until(lambda: producer.arrived(kafka), 10, steady.log)
    said = actives(kafka, producer.catalogue)
    first, second, third, *_ = sorted(producer.expected)
    old = said[first].model_copy(update={"version": 1})
    nobodys = said[first].model_copy(update={"scope": f"{said[first].scope}x"})
    producer.out.send(topic.name, first, codec.encode(producer.catalogue, topic, old))
    producer.out.send(topic.name, second, b"rubbish")
    producer.out.send(topic.name, third, None)
    name = nobodys.profile_key().encode()
    producer.out.send(topic.name, name, codec.encode(producer.catalogue, topic, nobodys))
    producer.out.flush()
    assert not producer.arrived(kafka)
    until(lambda: producer.arrived(kafka), 10, steady.log)
    until(lambda: name not in actives(kafka, producer.catalogue), 10, steady.log)


# --- metrics


def fact(role: str, pane: int, up_to: int) -> PaneFact:
    """A fact of partition 0 of llm.invocation: 100 answers of one model."""
    totals = ModelTotals(
        provider="openai",
        model="m",
        outcomes=(0, 100, 0, 0, 0, 0, 0, 0, 0),
        input_tokens=1000,
        cached_tokens=0,
        output_tokens=1000,
        priced_n=0,
        unit_sums=("0", "0", "0"),
        unit_products=("0",) * 6,
        reported_n=100,
        reported_sums=("100000000", "2000"),
        reported_products=("100000000000000", "2000000000", "40000"),
        latency_buckets=(600,),
        latency_counts=(100,),
    )
    return PaneFact(
        source_topic=topics.LLM_INVOCATION.name,
        source_partition=0,
        generation=GENERATION,
        role=role,
        mode="PRODUCTION",
        pane_start_ms=pane,
        up_to_offset=up_to,
        models=(totals,),
    )


def mark(
    partition: int, watermark_ms: int, up_to: int, topic: topics.Topic = topics.LLM_INVOCATION
) -> MeterMark:
    """A mark of one source partition."""
    return MeterMark(
        source_topic=topic.name,
        source_partition=partition,
        generation=GENERATION,
        up_to_offset=up_to,
        watermark_ms=watermark_ms,
        newest_event_ms=watermark_ms,
        newest_append_ms=watermark_ms,
        consumed=up_to + 1,
        applied=up_to + 1,
        duplicate=0,
        late=0,
        dead_lettered=0,
        conflict=0,
        control=0,
        replay_from=up_to + 1,
        kept_from_ms=None,
        owner="test",
    )


class Meter:
    """Sends facts and marks in transactions, as a meter does."""

    def __init__(self, bootstrap: str, catalogue: Catalogue) -> None:
        self.client = clients.producer(bootstrap, transactional_id=f"test-{uuid4()}")
        self.client.init_transactions(30)
        self.catalogue = catalogue

    def begin(self, *events: PaneFact | MeterMark) -> None:
        """Sends events in a transaction that stays open."""
        self.client.begin_transaction()
        for event in events:
            value = codec.encode(self.catalogue, topics.SLM_METRICS, event)
            role = event.role if isinstance(event, PaneFact) else None
            everywhere = range(topics.SLM_METRICS.partitions)
            for partition in [place(role, len(everywhere))] if role else everywhere:
                self.client.produce(
                    topics.SLM_METRICS.name, value, event.key(), partition=partition
                )
        self.client.flush()

    def commit(self) -> None:
        """Commits it."""
        self.client.commit_transaction(30)

    def abort(self) -> None:
        """Aborts it."""
        self.client.abort_transaction(30)


@pytest.fixture
def meter(kafka: str, catalogue: Catalogue) -> Meter:
    """A meter of its own."""
    return Meter(kafka, catalogue)


def test_only_committed_facts_reach_the_table_and_the_newest_of_a_pane_stays(
    kafka: str, meter: Meter, steady: Worker
) -> None:
    role = f"role-{uuid4()}"
    facts = {name: fact(role, PANE + n * 300_000, 10) for n, name in enumerate("abc")}
    newer, older = fact(role, PANE, 20), fact(role, PANE, 15)

    def rows() -> dict[bytes, bytes]:
        return {
            key: value
            for key, value in table(kafka, topics.METRICS_TABLE).items()
            if role.encode() in key
        }

    def framed(one: PaneFact) -> bytes:
        return codec.encode(meter.catalogue, topics.SLM_METRICS, one)

    meter.begin(facts["b"])
    meter.abort()
    meter.begin(facts["a"])
    meter.commit()
    until(steady.ready, START_S, steady.log)
    until(lambda: rows() != {}, 5, steady.log)
    meter.begin(facts["b"], fact(role, PANE, 99))
    time.sleep(0.5)  # open: nothing of it is seen
    assert rows() == {facts["a"].key(): framed(facts["a"])}
    meter.abort()
    meter.begin(facts["c"], newer)
    meter.commit()
    wanted = {facts["c"].key(): framed(facts["c"]), newer.key(): framed(newer)}
    until(lambda: rows() == wanted, 5, rows)
    meter.begin(older, fact(role, PANE + 900_000, 1))
    meter.commit()
    until(lambda: len(rows()) == 3, 5, rows)
    assert rows()[newer.key()] == framed(newer)
    steady.end()
    end = ends(kafka, topics.changelog(topics.METRICS_TABLE))
    steady.start()
    until(steady.ready, START_S, steady.log)
    assert ends(kafka, topics.changelog(topics.METRICS_TABLE)) == end
    meter.client.begin_transaction()
    meter.client.produce(
        topics.SLM_METRICS.name,
        None,
        newer.key(),
        partition=place(role, topics.SLM_METRICS.partitions),
    )
    meter.commit()
    until(lambda: newer.key() not in rows(), 5, rows)


def test_marks_close_a_pane_and_its_final_ranking_is_published_once(
    kafka: str, catalogue: Catalogue, meter: Meter, steady: Worker
) -> None:
    role, pane = f"role-{uuid4()}", PANE + 40 * 300_000
    policy = ScoringPolicyUpdated(
        event_id=f"policy-{role}",
        occurred_at_ms=PANE,
        source="test",
        role=role,
        deployment_mode="PRODUCTION",
        weight_quality=4000,
        weight_cost=2000,
        weight_latency=2000,
        weight_reliability=2000,
        cost_unit=CostUnit.PER_REQUEST,
        reference_cost_picousd=1_000_000,
        reference_latency_us=1_000_000,
        actor="tester",
    )
    out = clients.Outbound(clients.producer(kafka))
    topic = topics.SCORING_POLICY_UPDATED
    out.send(topic.name, f"{role}/PRODUCTION".encode(), codec.encode(catalogue, topic, policy))
    out.flush()

    def finals() -> list[tuple[bytes | None, int]]:
        return [
            (item.key, item.event.window_end_ms)
            for message in clients.read_to_end(kafka, topics.MODEL_PROFILE_SCORED.name)
            if isinstance(item := codec.decode(catalogue, message), Recorded)
            and isinstance(item.event, ModelProfileScored)
            and item.event.role == role
            and item.event.status is RankingStatus.FINAL
        ]

    until(steady.ready, START_S, steady.log)
    meter.begin(fact(role, pane, 5))
    meter.commit()
    closing = pane + 900_000
    sources = range(topics.LLM_INVOCATION.partitions)
    up_to = int(time.time() * 1000)  # above the marks of an earlier run on this broker
    meter.begin(*(mark(p, closing - (p == 3), up_to) for p in sources))
    meter.commit()
    observed = topics.MODEL_QUALITY_OBSERVED
    meter.begin(*(mark(p, closing, up_to, observed) for p in range(observed.partitions)))
    meter.commit()
    time.sleep(1)
    assert finals() == []  # one partition has not come so far
    meter.begin(mark(3, closing, up_to + 1))
    meter.commit()
    wanted = [(f"{role}/PRODUCTION".encode(), pane + 300_000)]
    until(lambda: finals() == wanted, 10, lambda: (finals(), steady.log()))
    steady.end()
    steady.start()
    until(steady.ready, START_S, steady.log)
    time.sleep(1)
    assert finals() == wanted


def test_a_bad_fact_is_buried_and_the_next_good_one_applied(
    kafka: str, catalogue: Catalogue, meter: Meter, steady: Worker
) -> None:
    role = f"role-{uuid4()}"
    good = fact(role, PANE, 1)
    until(steady.ready, START_S, steady.log)
    out = clients.Outbound(clients.producer(kafka))
    for value in (b"", b"\x01nonsense", b"\x00\x00\x00\xff\xff1", good.key()):
        out.send(topics.SLM_METRICS.name, role.encode(), value, [("h", b"1")])
    out.flush()
    meter.begin(good)
    meter.commit()
    until(lambda: good.key() in table(kafka, topics.METRICS_TABLE), 5, steady.log)
    letters = [
        item.event
        for message in clients.read_to_end(kafka, topics.DEAD_LETTERS.name)
        if isinstance(item := codec.decode(catalogue, message), Recorded)
        and isinstance(item.event, DeadLetter)
        and item.event.key == role.encode()
    ]
    assert sorted(letter.reason for letter in letters) == [
        *("bad_magic", "bad_magic", "empty_value", "schema_unknown")
    ]
    assert all(letter.headers == {"h": b"1"} for letter in letters)
