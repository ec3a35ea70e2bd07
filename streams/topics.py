"""Every topic, once: name, partitions, what it carries, how long it is kept.

Partition counts are fixed for the life of a topic. Topics of one key share a count, because the
agents' tables need it. Event topics carry the broker's append time (LogAppendTime).
"""

from dataclasses import dataclass
from typing import Final

from confluent_kafka.admin import AdminClient
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
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
    PaneFact,
    RateCardUpdated,
    ScoringPolicyUpdated,
)
from schemas.avro import full_name
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

    def subject(self, event: type[Event]) -> str:
        """Registry subject by Confluent's TopicRecordNameStrategy."""
        return f"{self.name}-{full_name(event)}"

    def config(self) -> dict[str, str]:
        """Settings of the topic on the broker."""
        if self.compacted:
            kept = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.2"}
        else:
            kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        return {**kept, "message.timestamp.type": "LogAppendTime"}


LLM_INVOCATION: Final = Topic("llm.invocation", (LlmInvocation, ClockTick), HOT)
MODEL_FALLBACK_USED: Final = Topic("model.fallback.used", (ModelFallbackUsed,), KEYED)
MODEL_PROFILE_UPDATED: Final = Topic("model.profile.updated", (ModelProfileUpdated,), KEYED)
MODEL_PROFILE_REJECTED: Final = Topic("model.profile.rejected", (ModelProfileRejected,), KEYED)
MODEL_PROFILE_ACTIVE: Final = Topic(
    "model.profile.active", (ModelProfileActive,), KEYED, compacted=True, internal=True
)
MODE_CHANGED: Final = Topic("mode.changed", (ModeChanged,))
SCORING_POLICY_UPDATED: Final = Topic("scoring.policy.updated", (ScoringPolicyUpdated,))
RATE_CARD_UPDATED: Final = Topic("rate.card.updated", (RateCardUpdated,))
BUDGET_UPDATED: Final = Topic("budget.updated", (BudgetUpdated,))
BUDGET_THRESHOLD_CROSSED: Final = Topic("budget.threshold.crossed", (BudgetThresholdCrossed,))
SLM_METRICS: Final = Topic(
    "slm.metrics", (PaneFact, MeterMark), KEYED, compacted=True, internal=True
)
MODEL_PROFILE_SCORED: Final = Topic("model.profile.scored", (ModelProfileScored,), KEYED)
LATE_EVENTS: Final = Topic("late.events", (LateEvent,))
DEAD_LETTERS: Final = Topic("dead.letters", (DeadLetter,))

TOPICS: Final[tuple[Topic, ...]] = (
    LLM_INVOCATION,
    MODEL_FALLBACK_USED,
    MODEL_PROFILE_UPDATED,
    MODEL_PROFILE_REJECTED,
    MODEL_PROFILE_ACTIVE,
    MODE_CHANGED,
    SCORING_POLICY_UPDATED,
    RATE_CARD_UPDATED,
    BUDGET_UPDATED,
    BUDGET_THRESHOLD_CROSSED,
    SLM_METRICS,
    MODEL_PROFILE_SCORED,
    LATE_EVENTS,
    DEAD_LETTERS,
    # Declared by the design, not yet written by anyone.
    Topic("assignment.updated"),
    Topic("model.registered"),
    Topic("role.registered"),
    Topic("flag.updated"),
    Topic("suite.telemetry.llm.escalation.raw", partitions=KEYED),
    Topic("model.quality.observed", partitions=KEYED),
    Topic("slm.benchmark.results", partitions=KEYED),
    Topic("conversation.events", partitions=KEYED),
    Topic("budget.state", compacted=True, internal=True),
    Topic("model.profile.recommended", partitions=KEYED),
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
        Topic(changelog(table), (), KEYED, compacted=True, internal=True)
        for table in (PROFILES_TABLE, METRICS_TABLE)
    )


def create(admin: AdminClient, replication: int, timeout_s: float = 30.0) -> list[str]:
    """Makes every topic that is missing and returns their names.

    Raises Unreachable if the broker does not answer or refuses.
    """
    try:
        existing = set(admin.list_topics(timeout=timeout_s).topics)
    except Exception as error:
        raise Unreachable(f"the broker does not answer: {error}") from None
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
        except Exception as error:
            if "TOPIC_ALREADY_EXISTS" not in str(error):
                raise Unreachable(f"topic {name} could not be made: {error}") from None
    return [t.name for t in missing]


def drift(admin: AdminClient, timeout_s: float = 10.0) -> list[str]:
    """What differs between the declaration and the broker, one line each."""
    found = admin.list_topics(timeout=timeout_s).topics
    lines = []
    for topic in (*TOPICS, *changelogs()):
        if topic.name not in found:
            lines.append(f"{topic.name}: missing")
        elif len(found[topic.name].partitions) != topic.partitions:
            lines.append(
                f"{topic.name}: {len(found[topic.name].partitions)} partitions,"
                f" declared are {topic.partitions}"
            )
    return lines
