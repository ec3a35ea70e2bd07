"""The Faust agents: profiles (model.profile.updated) and metrics (slm.metrics, with the scorers).

    model.profile.updated -> profiles-v1 -> model.profile.rejected, model.profile.active
    slm.metrics           -> metrics-v1, Scorer -> model.profile.scored, model.profile.recommended

Folds and scorer are pure; here is only what carries records to them and results away. Outputs have
deterministic ids and are acknowledged before the row that stands for them is written, so a death
in between repeats them and loses none. An agent never raises: faust would acknowledge the record.
"""

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import faust
import uvloop
from aiokafka import ConsumerRecord
from confluent_kafka import Message
from faust.types import TP, StreamT

from processors import recommending
from processors.configured import windowing
from processors.meter_protocol import place
from processors.scorer import Scorer
from processors.tables import metrics, profiles
from processors.windows import Windowing
from schemas import (
    Event,
    MeterMark,
    ModelProfileActive,
    ModelProfileRecommended,
    ModelProfileScored,
    ModelProfileUpdated,
    PaneFact,
    Position,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.model_profile import RankingStatus
from streams import codec, kafka
from streams.app import LOGGING, Batch, Reading, Watchdog, WholeLogApp, build, fatal
from streams.errors import Unreachable
from streams.follower import Follower
from streams.ranking_header import Summary, header, summary
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.status import StatusFile, this_process
from streams.topics import (
    DEAD_LETTERS,
    KEYED,
    LLM_INVOCATION,
    METRICS_TABLE,
    MODEL_PROFILE_ACTIVE,
    MODEL_PROFILE_RECOMMENDED,
    MODEL_PROFILE_REJECTED,
    MODEL_PROFILE_SCORED,
    MODEL_PROFILE_UPDATED,
    MODEL_QUALITY_OBSERVED,
    PROFILES_TABLE,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    SLM_BENCHMARK_RESULTS,
    SLM_METRICS,
    Topic,
    changelogs,
)

SOURCES: Final = {t.name: t.partitions for t in (LLM_INVOCATION, MODEL_QUALITY_OBSERVED)}
"""What the meter folds: all of their partitions must have spoken before a pane closes."""
SLICE: Final = 200  # records applied at a stretch, before the loop does anything else
SYNC_LIMIT_S: Final = 60.0
LOOK_EVERY_S: Final = 0.2
ASK_EVERY_S: Final = 0.5
RECONCILE_EVERY_S: Final = 1.0
STOP_WITHIN_S: Final = 6.0
VERDICTS: Final = {
    "seen": "duplicate",
    "repeated": "duplicate",
    "accepted": "applied",
    "rejected": "applied",  # the row takes it, and says why not
}
"""Verdicts of the profiles' fold as the conservation law counts them."""

log = logging.getLogger("roster.agents")


@dataclass(slots=True)
class ProfilesPart:
    """One partition of model.profile.updated. keys: all that were seen in it."""

    reading: Reading
    keys: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class MetricsPart:
    """One partition of slm.metrics. rows: the fold of it; written: the table holds it."""

    reading: Reading
    scorer: Scorer
    rows: dict[bytes, metrics.Row] = field(default_factory=dict)
    written: bool = False


@dataclass(slots=True)
class Known:
    """What the followed topics say. rankings: newest raw record by (key, status, generation), with
    its place in time; active: per key (offset, what it says; None: a tombstone or nothing
    readable); profiles: the same by scope, role and mode; recommended: ids."""

    policies: list[Recorded[ScoringPolicyUpdated]] = field(default_factory=list)
    cards: list[Recorded[RateCardUpdated]] = field(default_factory=list)
    benchmarks: list[Recorded[SlmBenchmarkResults]] = field(default_factory=list)
    positions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    rankings: dict[tuple[bytes, str, int], tuple[tuple[int, int], Message]] = field(
        default_factory=dict
    )
    profiles: dict[recommending.Key, ModelProfileActive] = field(default_factory=dict)
    recommended: set[str] = field(default_factory=set)
    active: dict[tuple[int, bytes], tuple[int, ModelProfileActive | None, bool]] = field(
        default_factory=dict
    )


class Agents:
    """Everything between the app and the folds. Runs in the worker's loop alone."""

    def __init__(
        self,
        app: WholeLogApp,
        catalogue: Catalogue,
        outbound: kafka.Outbound,
        follower: Follower,
        status: StatusFile,
        generation: int,
        windowing: Windowing,
    ) -> None:
        self.app = app
        self.catalogue = catalogue
        self.outbound = outbound
        self.follower = follower
        self.status = status
        self.generation = generation
        self.windowing = windowing
        self.profiles_table = _table(app, PROFILES_TABLE)
        self.metrics_table = _table(app, METRICS_TABLE)
        self.known = Known()
        self.profiles: dict[int, ProfilesPart] = {}
        self.metrics: dict[int, MetricsPart] = {}
        self.law: Counter[str] = Counter()
        self.sent = 0
        self.unflushed = False
        self.differing: dict[tuple[int, bytes], int] = {}
        self.synced: Mapping[TP, Reading] = {}
        app.agent(_topic(app, MODEL_PROFILE_UPDATED), name="profiles")(self.on_profiles)
        app.agent(_topic(app, SLM_METRICS), name="metrics")(self.on_metrics)
        app.task(self.look_around)

    # --- inputs

    async def on_profiles(self, stream: StreamT[Any]) -> None:
        """Agent of model.profile.updated."""
        async for batch in stream:
            await self.take(batch, self.profiles_part, self.apply_profiles)

    async def on_metrics(self, stream: StreamT[Any]) -> None:
        """Agent of slm.metrics."""
        async for batch in stream:
            await self.take(batch, self.metrics_part, self.apply_metrics)

    async def take(self, batch: Batch, part: Any, apply: Callable[..., None]) -> None:
        """Applies what a batch adds to its partition's reading. Never raises."""
        vitals = self.app.vitals
        tp = TP(batch.topic, batch.partition)
        try:
            reading = vitals.readings.get(tp)
            if reading is None:
                return  # revoked meanwhile
            state = await part(batch.partition, reading)
            records = reading.admit(batch)
            if records is None:
                vitals.rewinds += 1
                log.info("%s[%d]: rewound to %d", batch.topic, batch.partition, reading.next)
                await self.app.whole_log.rewind(tp, reading.next)
                return
            await self.at_hand(records)
            for start in range(0, max(1, len(records)), SLICE):
                if vitals.readings.get(tp) is not reading:
                    return  # revoked meanwhile: whoever owns it now reads it himself
                some = records[start : start + SLICE]
                whole = start + SLICE >= len(records)
                after = max(reading.next, batch.end) if whole else some[-1].offset + 1
                vitals.busy_since = time.monotonic()
                apply(batch.partition, state, some, after >= reading.end)
                vitals.busy_since = None
                reading.next = after
                vitals.moved += 1
                await asyncio.sleep(0)
        except Exception as error:
            log.exception("%s[%d]", batch.topic, batch.partition)
            fatal(f"{type(error).__name__}: {error}")

    async def at_hand(self, records: Sequence[ConsumerRecord]) -> None:
        """Waits, without holding up the loop, until the registry has said of every schema id
        whether it knows it."""
        for schema_id in {codec.schema_id_of(r.value) for r in records if _framed(r.value)}:
            while not self.app.should_stop:
                try:
                    self.catalogue.writer(schema_id, patience_s=0)
                    break
                except Unreachable:
                    self.app.vitals.moved += 1  # waiting is no stall
                    await asyncio.sleep(ASK_EVERY_S)

    async def profiles_part(self, partition: int, reading: Reading) -> ProfilesPart:
        """State of a partition in its present reading."""
        part = self.profiles.get(partition)
        if part is None or part.reading is not reading:
            part = self.profiles[partition] = ProfilesPart(reading)
        return part

    async def metrics_part(self, partition: int, reading: Reading) -> MetricsPart:
        """State of a partition in its present reading; a new scorer knows what was published of
        its roles and every policy and card before it sees its first record."""
        part = self.metrics.get(partition)
        if part is None or part.reading is not reading:
            if self.synced is not self.app.vitals.readings:
                wanted = self.app.vitals.readings
                await self.sync()
                self.synced = wanted  # a rebalance meanwhile wants its own
            scorer = Scorer(SOURCES, self.generation, self.windowing)
            for ranking in self.rankings():
                if place(ranking.role, SLM_METRICS.partitions) == partition:
                    scorer.published(ranking)
            known = self.known
            scorer.statements(known.policies, known.cards, known.benchmarks)
            scorer.inputs(self.known.positions)
            part = self.metrics[partition] = MetricsPart(reading, scorer)
        return part

    # --- profiles

    def apply_profiles(
        self, partition: int, part: ProfilesPart, records: Sequence[ConsumerRecord], _: bool
    ) -> None:
        """Folds records, publishes what follows, then writes the rows. _: the last that were there
        when the reading began."""
        rows: dict[bytes, profiles.Row] = {}
        for record in records:
            self.law["consumed"] += 1
            row = rows.get(record.key) or self.profile_row(record.key)
            if record.key is not None:
                part.keys.add(record.key)
            if row is not None and row.has_seen(partition, record.offset):
                self.law["duplicate"] += 1
                continue
            decoded = self.decoded(record)
            if not isinstance(decoded, Recorded):
                self.law["dead_lettered"] += 1  # by the projector, which files this topic
                continue
            outcome = profiles.evolve(row, cast(Recorded[ModelProfileUpdated], decoded))
            self.law[VERDICTS[outcome.verdict]] += 1
            rows[record.key] = outcome.row
            if outcome.rejected is not None:
                self.send(MODEL_PROFILE_REJECTED, record.key, outcome.rejected)
            if outcome.active is not None or outcome.tombstone:
                # Beside its source, wherever the producer's partitioner put that.
                self.send(MODEL_PROFILE_ACTIVE, record.key, outcome.active, partition=partition)
        self.flush()
        for key, row in rows.items():
            self.profiles_table[key] = profiles.encode(row)

    def profile_row(self, key: bytes | None) -> profiles.Row | None:
        """The row of a key as the table holds it."""
        data = None if key is None else self.profiles_table.get(key)
        return None if data is None else profiles.decode(data)

    def reconcile(self) -> None:
        """Publishes again what model.profile.active lacks, or says wrongly, of our partitions.

        What we have just sent comes back a moment later, so a difference counts when it is found
        twice with nothing newer in between.
        """
        found: dict[tuple[int, bytes], int] = {}
        for partition, part in self.profiles.items():
            if self.reading(MODEL_PROFILE_UPDATED, partition) is not part.reading:
                continue
            if not part.reading.caught_up:
                continue
            theirs = {key for p, key in self.known.active if p == partition}
            for key in sorted(part.keys | theirs):
                row = self.profile_row(key)
                wanted = None if row is None else profiles.active(row, MODEL_PROFILE_UPDATED.name)
                offset, said, readable = self.known.active.get((partition, key), (-1, None, True))
                if said == wanted and readable:
                    continue
                found[partition, key] = offset
                if self.differing.get((partition, key)) == offset:
                    log.info(
                        "model.profile.active is put right for %s", key.decode("utf-8", "replace")
                    )
                    self.send(MODEL_PROFILE_ACTIVE, key, wanted, partition=partition)
                    found.pop((partition, key))
        self.differing = found
        self.flush()

    # --- metrics

    def recommend(self) -> None:
        """Says of the newest finals of ours whose leader is not the model in force. Once: by the
        id of what was said before, also by another worker."""
        for part in self.current():
            if not part.reading.caught_up:
                continue
            for (role, mode), final in sorted(part.scorer.finals.items()):
                profile = recommending.in_force(self.known.profiles, role, mode)
                event = recommending.recommendation(final, profile)
                if event is not None and event.event_id not in self.known.recommended:
                    self.known.recommended.add(event.event_id)
                    self.send(MODEL_PROFILE_RECOMMENDED, f"{role}/{mode}".encode(), event)

    def apply_metrics(
        self, partition: int, part: MetricsPart, records: Sequence[ConsumerRecord], last: bool
    ) -> None:
        """Folds records, lets the scorer act at marks. last: they reach the end that was there
        when the reading began."""
        touched: set[bytes] = set()
        # Only the newest mark asks what is provisional: those before it are already history.
        newest = max((r.offset for r in records if (r.key or b"").startswith(b"mark")), default=0)
        for record in records:
            self.law["consumed"] += 1
            if record.key is not None and record.value is None:
                part.rows[record.key] = metrics.forget(part.rows.get(record.key))
                part.scorer.forget(record.key)
                touched.add(record.key)
                self.law["control"] += 1
                continue
            decoded = self.decoded(record)
            if not isinstance(decoded, Recorded):
                self.law["dead_lettered"] += 1
                self.bury(decoded)
                continue
            match decoded.event:
                case PaneFact() as fact:
                    row = metrics.evolve(part.rows.get(record.key), fact, record.value)
                    self.law["duplicate" if row is None else "applied"] += 1
                    if row is not None:
                        part.rows[record.key] = row
                        touched.add(record.key)
                    part.scorer.fact(fact)
                case MeterMark() as mark:
                    self.law["control"] += 1
                    self.look()
                    catching_up = record.offset < max(newest, part.reading.end - 1)
                    self.publish(part.scorer.mark(mark, catching_up))
                case other:
                    raise AssertionError(f"{other.NAME} on {SLM_METRICS.name}")
        self.flush()
        # While catching up only the fold moves: then the table is written once, where it differs.
        if part.written or last:
            for key in touched if part.written else part.rows:
                self.write_metrics(key, part.rows[key].value)
            part.written = True

    def write_metrics(self, key: bytes, value: bytes | None) -> None:
        """Makes the table hold a row, or none."""
        if self.metrics_table.get(key) == value:
            return
        if value is None:
            del self.metrics_table[key]
        else:
            self.metrics_table[key] = value

    def bury(self, bad: codec.Undecodable) -> None:
        """Sends a record that could not be taken to the dead letters; again at each reading, with
        the same id."""
        letter = bad.as_event("roster-agents")
        key = f"{bad.at.topic}/{bad.at.partition}/{bad.at.offset}".encode()
        self.send(DEAD_LETTERS, key, letter)

    # --- what is known beside the inputs

    async def sync(self) -> None:
        """Reads the followed topics to their present end."""
        waiting = asyncio.ensure_future(asyncio.to_thread(self.follower.sync, SYNC_LIMIT_S))
        while not waiting.done():
            await asyncio.wait([waiting], timeout=1.0)
            self.app.vitals.moved += 1  # waiting is no stall, it has a limit of its own
        if not waiting.result():
            fatal(f"policies, cards and rankings could not be read within {SYNC_LIMIT_S:.0f} s")
        self.look()

    def look(self) -> None:
        """Takes in what the followed topics have brought."""
        messages, positions = self.follower.take()
        policies: list[Recorded[ScoringPolicyUpdated]] = []
        cards: list[Recorded[RateCardUpdated]] = []
        results: list[Recorded[SlmBenchmarkResults]] = []
        for message in messages:
            match message.topic():
                case MODEL_PROFILE_SCORED.name:
                    self.on_ranking(message)
                case MODEL_PROFILE_ACTIVE.name:
                    self.on_active(message)
                case _:
                    match codec.decode(self.catalogue, message):
                        case Recorded(event=ScoringPolicyUpdated() as policy) as item:
                            policies.append(cast(Recorded[ScoringPolicyUpdated], item))
                            warn_of(policy, self.windowing.longest_panes)
                        case Recorded(event=RateCardUpdated()) as item:
                            cards.append(cast(Recorded[RateCardUpdated], item))
                        case Recorded(event=SlmBenchmarkResults()) as item:
                            results.append(cast(Recorded[SlmBenchmarkResults], item))
                        case Recorded(event=ModelProfileRecommended() as event):
                            self.known.recommended.add(event.event_id)
                        case _:
                            pass  # the projector files these topics and buries what is bad
        self.known.policies.extend(policies)
        self.known.cards.extend(cards)
        self.known.benchmarks.extend(results)
        self.known.positions = _controls(positions)
        if policies or cards or results:
            for part in self.current():
                self.publish(part.scorer.statements(policies, cards, results))
        for part in self.metrics.values():
            part.scorer.inputs(self.known.positions)

    def on_ranking(self, message: Message) -> None:
        """Keeps the newest ranking of each key and status; the first record of an id counts."""
        said = summary(message)
        if said is None:
            said = self.summary_of(message)
        version = (said.as_of_ms, said.revision)
        which = (message.key() or b"", said.status, said.generation)
        newest = self.known.rankings.get(which)
        if newest is None or version > newest[0]:
            self.known.rankings[which] = (version, message)

    def summary_of(self, message: Message) -> Summary:
        """The same from the record itself, where the header is missing."""
        item = codec.decode(self.catalogue, message)
        if isinstance(item, Recorded) and isinstance(item.event, ModelProfileScored):
            e = item.event
            return Summary(e.status.value, e.as_of_ms, e.revision, e.generation)
        return Summary(RankingStatus.UNKNOWN.value, 0, 0, 0)

    def rankings(self) -> list[ModelProfileScored]:
        """The newest rankings in the log, older ones first."""
        items = [
            codec.decode(self.catalogue, message) for _, message in self.known.rankings.values()
        ]
        events = [item.event for item in items if isinstance(item, Recorded)]
        rankings = [event for event in events if isinstance(event, ModelProfileScored)]
        return sorted(rankings, key=lambda r: (r.as_of_ms, r.revision))

    def on_active(self, message: Message) -> None:
        """What model.profile.active says now of a key."""
        item = codec.decode(self.catalogue, message)
        event = item.event if isinstance(item, Recorded) else None
        readable = isinstance(item, (Recorded, codec.Tombstone))
        where = (message.partition() or 0, message.key() or b"")
        said = event if isinstance(event, ModelProfileActive) else None
        _, before, _ = self.known.active.get(where, (0, None, True))
        if before is not None and readable:
            self.known.profiles.pop(recommending.profile_key(before), None)
        if said is not None:
            self.known.profiles[recommending.profile_key(said)] = said
        self.known.active[where] = (message.offset() or 0, said, readable)

    def current(self) -> list[MetricsPart]:
        """Partitions of slm.metrics that are ours now."""
        return [
            part
            for p, part in sorted(self.metrics.items())
            if self.reading(SLM_METRICS, p) is part.reading
        ]

    def reading(self, topic: Topic, partition: int) -> Reading | None:
        """The present reading of a partition; None: it is not ours."""
        return self.app.vitals.readings.get(TP(topic.name, partition))

    async def look_around(self) -> None:
        """Follows the other topics also while no input comes, reconciles, tells the status."""
        reconciled = 0.0
        while not self.app.should_stop:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                self.look()
                self.flush()
                if time.monotonic() - reconciled > RECONCILE_EVERY_S:
                    reconciled = time.monotonic()
                    self.recommend()
                    self.reconcile()
                self.tell()
            except Exception as error:
                log.exception("looking around")
                fatal(f"{type(error).__name__}: {error}")

    def tell(self) -> None:
        """Writes the status file."""
        readings = self.app.vitals.readings.values()
        if self.app.rebalancing or self.app.in_recovery:
            note = "joining the group"
        elif not readings:
            note = "standing by"
        else:
            note = "ready" if all(r.caught_up for r in readings) else "catching up"
        self.status.write(
            records_in=self.law["consumed"],
            records_out=self.sent,
            lag=self.app.vitals.lag,
            note=note,
            law=self.law,
        )

    # --- outputs

    def publish(self, rankings: Sequence[ModelProfileScored]) -> None:
        """Queues rankings; flush makes sure of them."""
        for ranking in rankings:
            key = f"{ranking.role}/{ranking.deployment_mode}".encode()
            self.send(MODEL_PROFILE_SCORED, key, ranking, [header(ranking)])

    def send(
        self,
        topic: Topic,
        key: bytes | None,
        event: Event | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
    ) -> None:
        """Queues an event, or a tombstone. partition: -1, by the key."""
        value = None if event is None else codec.encode(self.catalogue, topic, event)
        self.outbound.send(topic.name, key, value, headers, partition)
        self.sent += 1
        self.unflushed = True

    def flush(self) -> None:
        """Returns when all that was sent has been acknowledged."""
        if self.unflushed:
            self.outbound.flush()
            self.unflushed = False

    def decoded(self, record: ConsumerRecord) -> Recorded[Event] | codec.Undecodable:
        """A record of an input as an event, or what says why not."""
        at = Position(record.topic, record.partition, record.offset, _append_ms(record))
        item = codec.decode_value(self.catalogue, at, record.key, record.value)
        if isinstance(item, codec.Undecodable):
            return replace(item, headers=tuple(record.headers))
        return item


def run(
    settings: Settings,
    *,
    session_s: float = 10.0,
    stall_s: float = 15.0,
    instance: str | None = None,
    generation: int | None = None,
) -> int:
    """Runs a worker in the foreground until SIGINT or SIGTERM; returns its exit status.

    session_s, instance: as streams.app.build. stall_s: no progress for this long, and the worker
    ends itself with status 70, to be started again. generation: of the facts that are ranked;
    default: that of the settings.
    Raises BadConfiguration, Unreachable, LogDamaged when it cannot start.
    """
    begun = time.monotonic()
    bootstrap = settings.need_kafka()
    ending = threading.Event()
    catalogue = Catalogue(Registry(settings.need_registry()), stopped=ending.is_set)
    client = kafka.admin(bootstrap)
    for topic in (MODEL_PROFILE_UPDATED, SLM_METRICS, *changelogs()):
        kafka.partitions(client, topic.name)
    follower = Follower(
        bootstrap,
        (
            SCORING_POLICY_UPDATED,
            RATE_CARD_UPDATED,
            SLM_BENCHMARK_RESULTS,
            MODEL_PROFILE_SCORED,
            MODEL_PROFILE_RECOMMENDED,
            MODEL_PROFILE_ACTIVE,
        ),
        lambda message: _ask(catalogue, message),
    )
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    app = build(settings, session_s=session_s, instance=instance)
    outbound = kafka.Outbound(kafka.producer(bootstrap))
    status = StatusFile(settings.data, f"agents-{instance or this_process()}")
    ranked = settings.generation if generation is None else generation
    Agents(app, catalogue, outbound, follower, status, ranked, windowing(settings))
    watchdog = Watchdog(app, bootstrap, stall_s)
    watchdog.start()
    worker = Worker(app, loop=loop, loglevel="WARN", logging_config=LOGGING)
    worker.spinner = None  # it would have every debug line of the process formatted
    logging.disable(logging.DEBUG)
    log.info("agents started after %.1f s", time.monotonic() - begun)
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        if ended.code:
            fatal("faust ended by itself")
    finally:
        watchdog.stop()
        ending.set()
        follower.close()
    return 0


def warn_of(policy: ScoringPolicyUpdated, longest_panes: int) -> None:
    """Says of a policy that looks back further than facts are kept that its finals may stop."""
    if policy.window_panes > longest_panes:
        log.warning(
            "policy %s of %s/%s: window_panes is %d, above ROSTER_WINDOW_PANES, %d: facts are"
            " not kept for so long, and its final rankings may stop",
            policy.event_id,
            policy.role,
            policy.deployment_mode,
            policy.window_panes,
            longest_panes,
        )


class Worker(faust.Worker):
    """Faust's, but quiet at SIGINT, and ended in any case soon after SIGINT or SIGTERM: a sudden
    end is safe at any moment, and faust is known to hang at times."""

    def _on_sigint(self) -> None:
        self._on_sigterm()

    def _on_sigterm(self) -> None:
        backstop = threading.Timer(STOP_WITHIN_S, os._exit, (0,))
        backstop.daemon = True
        backstop.start()
        super()._on_sigterm()


def _topic(app: WholeLogApp, topic: Topic) -> Any:
    """An input: its values are Batches, which pass through faust as they are."""
    return app.topic(
        topic.name,
        key_serializer="raw",
        value_serializer="raw",
        partitions=topic.partitions,
    )


def _table(app: WholeLogApp, name: str) -> Any:
    """A table of raw bytes."""
    return app.Table(name, key_type=bytes, value_type=bytes, partitions=KEYED)


def _ask(catalogue: Catalogue, message: Message) -> None:
    """Waits until the registry has said whether it knows the schema of a record."""
    value = message.value()
    if isinstance(value, bytes) and _framed(value):
        catalogue.writer(codec.schema_id_of(value))


def _framed(value: bytes | None) -> bool:
    """Whether there is a schema id to ask for."""
    return value is not None and len(value) >= 5 and value[:1] == codec.MAGIC


def _append_ms(record: ConsumerRecord) -> int:
    """As streams.kafka.append_ms, for a record of aiokafka."""
    for name, value in record.headers:
        if name == kafka.COPIED_HEADER and value is not None:
            return kafka.copied_ms(value, int(record.timestamp))
    return int(record.timestamp)


def _controls(positions: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    names = {SCORING_POLICY_UPDATED.name, RATE_CARD_UPDATED.name, SLM_BENCHMARK_RESULTS.name}
    return {tp: offset for tp, offset in positions.items() if tp[0] in names}
