"""Every topic, once: name, partitions, what it carries, how long it is kept.

Partition counts are fixed for the life of a topic. Topics of one key share a count, because the
agents' tables need it. Event topics carry the broker's append time (LogAppendTime).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource
from confluent_kafka.cimpl import NewTopic

from schemas import (
    BudgetThresholdCrossed,
    BudgetUpdated,
    ClockTick,
    DeadLetter,
    Event,
    LateEvent,
    LlmInvocation,
    MeterMark,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileActive,
    ModelProfileRecommended,
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
    ModelQualityObserved,
    ModelRegistered,
    PaneFact,
    RateCardUpdated,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.avro import full_name
from schemas.values import MAX_RECORD_BYTES, OWN_RECORD_BYTES
from streams.errors import Unreachable

HOT: Final = 8
KEYED: Final = 4


@dataclass(frozen=True, slots=True)
class Topic:
    """events: the closed union of what it carries; empty: declared, not yet written by anyone.
    compacted: published state, only the newest record of a key is kept for sure."""

    name: str
    events: tuple[type[Event], ...] = ()
    partitions: int = 1
    compacted: bool = False
    internal: bool = False  # made by Roster for itself: the projector does not file it
    max_bytes: int = MAX_RECORD_BYTES  # of a record's value; more is refused as too large

    def subject(self, event: type[Event]) -> str:
        """Registry subject by Confluent's TopicRecordNameStrategy."""
        return f"{self.name}-{full_name(event)}"

    def config(self) -> dict[str, str]:
        """Settings of the topic on the broker."""
        if self.compacted:
            # The active segment is never compacted, and by default it lasts a week or 1 GiB.
            kept = {
                "cleanup.policy": "compact",
                "min.cleanable.dirty.ratio": "0.2",
                "segment.bytes": str(32 * 1024 * 1024),
                "segment.ms": str(10 * 60_000),
            }
        else:
            kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        if self.max_bytes > MAX_RECORD_BYTES:
            room = MAX_RECORD_BYTES  # for key, headers and frame
            kept["max.message.bytes"] = str(self.max_bytes + room)
        return {**kept, "message.timestamp.type": "LogAppendTime"}


LLM_INVOCATION: Final = Topic("llm.invocation", (LlmInvocation, ClockTick), HOT)
MODEL_FALLBACK_USED: Final = Topic("model.fallback.used", (ModelFallbackUsed,), KEYED)
MODEL_PROFILE_UPDATED: Final = Topic("model.profile.updated", (ModelProfileUpdated,), KEYED)
MODEL_PROFILE_REJECTED: Final = Topic("model.profile.rejected", (ModelProfileRejected,), KEYED)
MODEL_PROFILE_ACTIVE: Final = Topic(
    "model.profile.active", (ModelProfileActive,), KEYED, compacted=True, internal=True
)
MODE_CHANGED: Final = Topic("mode.changed", (ModeChanged,))
MODEL_REGISTERED: Final = Topic("model.registered", (ModelRegistered,))
SCORING_POLICY_UPDATED: Final = Topic("scoring.policy.updated", (ScoringPolicyUpdated,))
RATE_CARD_UPDATED: Final = Topic("rate.card.updated", (RateCardUpdated,))
BUDGET_UPDATED: Final = Topic("budget.updated", (BudgetUpdated,))
BUDGET_THRESHOLD_CROSSED: Final = Topic("budget.threshold.crossed", (BudgetThresholdCrossed,))
SLM_METRICS: Final = Topic(
    "slm.metrics",
    (PaneFact, MeterMark),
    KEYED,
    compacted=True,
    internal=True,
    max_bytes=OWN_RECORD_BYTES,
)
MODEL_PROFILE_SCORED: Final = Topic(
    "model.profile.scored", (ModelProfileScored,), KEYED, max_bytes=OWN_RECORD_BYTES
)
MODEL_PROFILE_RECOMMENDED: Final = Topic(
    "model.profile.recommended", (ModelProfileRecommended,), KEYED
)
MODEL_QUALITY_OBSERVED: Final = Topic(
    "model.quality.observed", (ModelQualityObserved, ClockTick), KEYED
)
SLM_BENCHMARK_RESULTS: Final = Topic("slm.benchmark.results", (SlmBenchmarkResults,), KEYED)
FOLDED: Final = (LLM_INVOCATION, MODEL_QUALITY_OBSERVED)
"""What the meter folds into slm.metrics: panes close when all their partitions say so."""
LATE_EVENTS: Final = Topic("late.events", (LateEvent,))
DEAD_LETTERS: Final = Topic("dead.letters", (DeadLetter,))

TOPICS: Final[tuple[Topic, ...]] = (
    LLM_INVOCATION,
    MODEL_FALLBACK_USED,
    MODEL_PROFILE_UPDATED,
    MODEL_PROFILE_REJECTED,
    MODEL_PROFILE_ACTIVE,
    MODE_CHANGED,
    MODEL_REGISTERED,
    SCORING_POLICY_UPDATED,
    RATE_CARD_UPDATED,
    BUDGET_UPDATED,
    BUDGET_THRESHOLD_CROSSED,
    SLM_METRICS,
    MODEL_PROFILE_SCORED,
    MODEL_PROFILE_RECOMMENDED,
    MODEL_QUALITY_OBSERVED,
    SLM_BENCHMARK_RESULTS,
    LATE_EVENTS,
    DEAD_LETTERS,
    # Declared by the design, not yet written by anyone.
    Topic("assignment.updated"),
    Topic("role.registered"),
    Topic("flag.updated"),
    Topic("suite.telemetry.llm.escalation.raw", partitions=KEYED),
    Topic("conversation.events", partitions=KEYED),
    Topic("budget.state", compacted=True, internal=True),
    Topic("promotion.proposed"),
    Topic("promotion.approved"),
    Topic("provider.health.changed"),
    Topic("drift.detected"),
    Topic("regression.detected"),
    Topic("cost.restated"),
    Topic("token.estimate.updated"),
)
BY_NAME: Final = {topic.name: topic for topic in TOPICS}

AGENTS_APP: Final = "roster-agents-v1"
"""Faust app id; a changed table row means the next number."""
PROFILES_TABLE: Final = "profiles-v1"
METRICS_TABLE: Final = "metrics-v1"


def changelog(table: str) -> str:
    """Name of the changelog topic of a Faust table."""
    return f"{AGENTS_APP}-{table}-changelog"


def changelogs() -> tuple[Topic, ...]:
    """Changelog topics of the agents' tables: compacted only, never deleted by time."""
    return tuple(
        Topic(changelog(table), (), KEYED, compacted=True, internal=True, max_bytes=largest)
        for table, largest in (
            (PROFILES_TABLE, MAX_RECORD_BYTES),
            (METRICS_TABLE, OWN_RECORD_BYTES),
        )
    )


def create(admin: AdminClient, replication: int, timeout_s: float = 30.0) -> list[str]:
    """Makes every topic that is missing and returns their names.

    Raises Unreachable if the broker does not answer or refuses.
    """
    existing = _on_broker(admin, timeout_s)
    missing = [t for t in (*TOPICS, *changelogs()) if t.name not in existing]
    if not missing:
        return []
    wanted = [
        NewTopic(
            t.name,
            num_partitions=t.partitions,
            replication_factor=replication,
            config={**t.config(), "min.insync.replicas": "2" if replication >= 3 else "1"},
        )
        for t in missing
    ]
    for name, future in admin.create_topics(wanted, operation_timeout=timeout_s).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise Unreachable(
                    f"topic {name} could not be made: {error.args[0].str()}"
                ) from None
    return [t.name for t in missing]


def drift(admin: AdminClient, timeout_s: float = 10.0) -> list[str]:
    """What differs between the declaration and the broker, one line each.

    Raises Unreachable if the broker does not answer.
    """
    found = _on_broker(admin, timeout_s)
    declared = (*TOPICS, *changelogs())
    lines = [f"{topic.name}: missing" for topic in declared if topic.name not in found]
    there = [topic for topic in declared if topic.name in found]
    lines += [
        f"{topic.name}: {found[topic.name]} partitions, declared are {topic.partitions}"
        for topic in there
        if found[topic.name] != topic.partitions
    ]
    for topic, config in _configs(admin, there, timeout_s):
        lines += [
            f"{topic.name}: {name} is {config.get(name)}, declared is {value}"
            for name, value in topic.config().items()
            if config.get(name) != value
        ]
    return lines


def _on_broker(admin: AdminClient, timeout_s: float) -> dict[str, int]:
    """Partitions of every topic that is there."""
    try:
        found = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise Unreachable(f"the broker does not answer: {error.args[0].str()}") from None
    return {name: len(topic.partitions) for name, topic in found.items()}


def _configs(
    admin: AdminClient, wanted: list[Topic], timeout_s: float
) -> Iterator[tuple[Topic, dict[str, str | None]]]:
    """Settings of topics as the broker has them; a topic that was removed meanwhile is left out."""
    by_name = {topic.name: topic for topic in wanted}
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in by_name]
    answers = admin.describe_configs(resources, request_timeout=timeout_s) if resources else {}
    for resource, future in answers.items():
        try:
            entries = future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                continue
            raise Unreachable(f"the broker does not answer: {error.args[0].str()}") from None
        yield by_name[resource.name], {name: entry.value for name, entry in entries.items()}
