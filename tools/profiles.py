"""Profiles: what was decided about a change, and how a profile came to be what it is."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from confluent_kafka import Consumer, Message, TopicPartition

from processors.tables import profiles
from schemas import ModelProfileActive, ModelProfileRejected, ModelProfileUpdated, Recorded
from schemas.model_profile import ProfileAction
from streams import kafka
from streams.codec import Tombstone, decode
from streams.errors import Unreachable
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.topics import (
    MODEL_PROFILE_ACTIVE,
    MODEL_PROFILE_REJECTED,
    MODEL_PROFILE_UPDATED,
)
from tools import publish
from tools.log_reader import events

VERDICT_WITHIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the fold made of a change; partition and offset are those of the change itself.

    unknown: nobody decided in time; the change stands in the log and will be decided."""

    verdict: Literal["active", "deleted", "rejected", "unknown"]
    event_id: str
    partition: int
    offset: int
    version: int | None = None
    verdict_event_id: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a profile as the fold judged it. version: after it."""

    recorded: Recorded[ModelProfileUpdated]
    verdict: str
    version: int
    why: str | None


def change(settings: Settings, fields: dict[str, object], within_s: float | None = None) -> Verdict:
    """Publishes a model.profile.updated of those fields and waits for what the fold says.

    within_s: default VERDICT_WITHIN_S.
    Raises BadEvent, Unreachable.
    """
    event = publish.checked_event(MODEL_PROFILE_UPDATED, fields, publish.now_ms())
    assert isinstance(event, ModelProfileUpdated)
    key = publish.record_key(event)
    bootstrap = settings.need_kafka()
    watched = (MODEL_PROFILE_ACTIVE.name, MODEL_PROFILE_REJECTED.name)
    client = kafka.consumer(bootstrap, "roster-reader")
    with Registry(settings.need_registry()) as registry:
        try:
            ends = [(t, p, o) for t in watched for p, o in kafka.end_offsets(client, t).items()]
            catalogue = Catalogue(registry, [MODEL_PROFILE_UPDATED])
            ready = publish.Ready(1, event, key)
            partition, offset = publish.send(bootstrap, catalogue, MODEL_PROFILE_UPDATED, [ready])[
                0
            ]
            unknown = Verdict("unknown", event.event_id, partition, offset)
            client.assign([TopicPartition(*end) for end in ends])
            deleting = event.action is ProfileAction.DELETE

            def judge(message: Message) -> Verdict | None:
                return _judge(catalogue, message, unknown, key if deleting else None)

            return _first(client, judge, VERDICT_WITHIN_S if within_s is None else within_s) or (
                unknown
            )
        finally:
            client.close()


def _judge(
    catalogue: Catalogue, message: Message, sent: Verdict, deleted: bytes | None
) -> Verdict | None:
    """deleted: key of the tombstone that would answer, None where none would."""
    found = decode(catalogue, message)
    if isinstance(found, Tombstone):
        if found.key != deleted:
            return None
        return Verdict("deleted", sent.event_id, sent.partition, sent.offset)
    if not isinstance(found, Recorded):
        return None
    event = found.event
    cause = (sent.partition, sent.offset)
    if isinstance(event, ModelProfileActive):
        if (event.cause_partition, event.cause_offset) != cause:
            return None
        return Verdict("active", sent.event_id, *cause, event.version, event.event_id)
    if isinstance(event, ModelProfileRejected):
        if (event.cause_partition, event.cause_offset) != cause:
            return None
        return Verdict(
            "rejected",
            sent.event_id,
            *cause,
            event.actual_version,
            event.event_id,
            f"{event.kind}: {event.field}={event.value}; allowed: {event.allowed}",
        )
    return None


def _first(
    client: Consumer, judge: Callable[[Message], Verdict | None], within_s: float
) -> Verdict | None:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for message in kafka.drain(client, 0.1):
            if message.error() is not None:
                raise Unreachable(f"the verdict cannot be read: {message.error()}")
            verdict = judge(message)
            if verdict is not None:
                return verdict
    return None


def history(settings: Settings, scope: str, role: str, mode: str) -> list[Change]:
    """All changes of one profile, judged by the fold itself, oldest first.

    Raises Unreachable, LogDamaged.
    """
    key = f"{scope}/{role}/{mode}".encode()
    row: profiles.Row | None = None
    found = []
    for recorded in events(settings, MODEL_PROFILE_UPDATED, ModelProfileUpdated):
        if recorded.key != key:
            continue
        outcome = profiles.evolve(row, recorded)
        row = outcome.row
        refused = outcome.rejected
        why = f"{refused.field}={refused.value}; allowed: {refused.allowed}" if refused else None
        found.append(Change(recorded, outcome.verdict, row.version, why))
    return found
