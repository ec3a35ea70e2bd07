"""profiles-v1: the profiles in force, folded from model.profile.updated.

A change is accepted, refused visibly (model.profile.rejected) or ignored as a repetition, by the
history of its own key and by form alone: never by what another topic says, since topics are not
ordered among each other.
"""

import io
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, Literal

import fastavro
from pydantic import TypeAdapter, ValidationError

from schemas.envelope import Recorded
from schemas.model_profile import (
    ModelProfileActive,
    ModelProfileRejected,
    ModelProfileUpdated,
    ProfileAction,
    ProfileFields,
    RejectionKind,
    Scope,
)
from schemas.values import Name, derived_id

NAME: Final = "profiles-v1"
SOURCE: Final = "roster-agents"
REMEMBERED_IDS: Final = 64
SHOWN: Final = 512  # characters of a refused value that the rejection repeats

_FORMS: Final = {
    "scope": TypeAdapter[str](Scope),
    "role": TypeAdapter[str](Name),
    "deployment_mode": TypeAdapter[str](Name),
}
_FIELDS: Final = tuple(ProfileFields.model_fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile as it is in force; fields as in profiles.avsc."""

    scope: str
    role: str
    deployment_mode: str
    model: str
    fallbacks: tuple[str, ...]
    base_url: str
    temperature: float
    max_tokens: int | None
    extra: str
    credential_ref: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The last change that was accepted."""

    event_id: str
    occurred_at_ms: int
    tenant: str | None
    trace_id: str | None
    actor: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One key of the table. src: (partition, last offset seen), ascending by partition."""

    src: tuple[tuple[int, int], ...] = ()
    version: int = 0
    deleted: bool = False
    event_ids: tuple[str, ...] = ()
    profile: Profile | None = None
    cause: Cause | None = None

    def has_seen(self, partition: int, offset: int) -> bool:
        """Whether the record at that position is already part of this row."""
        return any(p == partition and offset <= last for p, last in self.src)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from one record. verdict: seen (by the offset guard), repeated (by its id),
    accepted or rejected. active: to be published, tombstone: a deletion to be published."""

    row: Row
    verdict: Literal["seen", "repeated", "accepted", "rejected"]
    active: ModelProfileActive | None = None
    tombstone: bool = False
    rejected: ModelProfileRejected | None = None


def evolve(row: Row | None, recorded: Recorded[ModelProfileUpdated]) -> Outcome:
    """The row after one record, and what is to be published."""
    before = row or Row()
    event, at = recorded.event, recorded.at
    if before.has_seen(at.partition, at.offset):
        return Outcome(before, "seen")
    src = tuple(sorted({**dict(before.src), at.partition: at.offset}.items()))
    if event.event_id in before.event_ids:
        return Outcome(replace(before, src=src), "repeated")
    ids = (*before.event_ids, event.event_id)[-REMEMBERED_IDS:]
    judged = replace(before, src=src, event_ids=ids)
    rejected = _refusal(before, recorded)
    if rejected is not None:
        return Outcome(judged, "rejected", rejected=rejected)
    deleted = event.action is ProfileAction.DELETE
    after = replace(
        judged,
        version=before.version + 1,
        deleted=deleted,
        profile=None if deleted else _profile(event),
        cause=Cause(
            event_id=event.event_id,
            occurred_at_ms=event.occurred_at_ms,
            tenant=event.tenant,
            trace_id=event.trace_id,
            actor=event.actor,
            partition=at.partition,
            offset=at.offset,
        ),
    )
    return Outcome(after, "accepted", active=active(after, at.topic), tombstone=deleted)


def active(row: Row, topic: str) -> ModelProfileActive | None:
    """What model.profile.active must say of a row; None: nothing (deleted, or never set).

    topic: where the row's cause stands. The same row gives the same event, bit for bit.
    """
    if row.profile is None or row.cause is None:
        return None
    return ModelProfileActive(
        event_id=derived_id(ModelProfileActive.NAME, topic, row.cause.partition, row.cause.offset),
        occurred_at_ms=row.cause.occurred_at_ms,
        source=SOURCE,
        tenant=row.cause.tenant,
        trace_id=row.cause.trace_id,
        version=row.version,
        actor=row.cause.actor,
        cause_event_id=row.cause.event_id,
        cause_partition=row.cause.partition,
        cause_offset=row.cause.offset,
        **asdict(row.profile),
    )


def encode(row: Row) -> bytes:
    """A row as Avro; equal rows give equal bytes."""
    fields = asdict(row)
    fields["src"] = [{"partition": p, "offset": offset} for p, offset in row.src]
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _schema(), fields)
    return out.getvalue()


@lru_cache(maxsize=4096)  # rows are immutable, and the same one is looked at again and again
def decode(data: bytes) -> Row:
    """A row from its bytes. Only encode writes them; anything else raises what fastavro raises."""
    fields: Any = fastavro.schemaless_reader(io.BytesIO(data), _schema(), None)
    profile, cause = fields["profile"], fields["cause"]
    return Row(
        src=tuple((source["partition"], source["offset"]) for source in fields["src"]),
        version=fields["version"],
        deleted=fields["deleted"],
        event_ids=tuple(fields["event_ids"]),
        profile=profile and Profile(**{**profile, "fallbacks": tuple(profile["fallbacks"])}),
        cause=cause and Cause(**cause),
    )


def _refusal(row: Row, recorded: Recorded[ModelProfileUpdated]) -> ModelProfileRejected | None:
    event, at = recorded.event, recorded.at
    kind: Literal[RejectionKind.CONFLICT, RejectionKind.INVALID] = RejectionKind.INVALID
    fault = _key_fault(recorded)
    if fault is None and event.expected_version not in {None, row.version}:
        kind = RejectionKind.CONFLICT
        fault = ("expected_version", str(event.expected_version), str(row.version))
    fault = fault or _form_fault(event)
    if fault is None:
        return None
    field, value, allowed = fault
    return ModelProfileRejected(
        event_id=derived_id(ModelProfileRejected.NAME, at.topic, at.partition, at.offset),
        occurred_at_ms=event.occurred_at_ms,
        source=SOURCE,
        tenant=event.tenant,
        trace_id=event.trace_id,
        scope=event.scope,
        role=event.role,
        deployment_mode=event.deployment_mode,
        rejected_event_id=event.event_id,
        kind=kind,
        field=field,
        value=value[:SHOWN],
        allowed=allowed[:SHOWN],
        expected_version=event.expected_version,
        actual_version=row.version,
        actor=event.actor,
        cause_topic=at.topic,
        cause_partition=at.partition,
        cause_offset=at.offset,
    )


def _key_fault(recorded: Recorded[ModelProfileUpdated]) -> tuple[str, str, str] | None:
    wanted = recorded.event.profile_key()
    key = recorded.key or b""
    if key == wanted.encode():
        return None
    return "key", key.decode("utf-8", "replace"), wanted


def _form_fault(event: ModelProfileUpdated) -> tuple[str, str, str] | None:
    """(field, value, what is allowed) of the first field that is ill-formed."""
    for field, form in _FORMS.items():
        try:
            form.validate_python(getattr(event, field))
        except ValidationError as error:
            return field, str(getattr(event, field)), _allowed(error)
    if event.action is ProfileAction.DELETE:
        return None
    try:
        ProfileFields.model_validate(event.model_dump(include=set(_FIELDS)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        return field, str(first["input"]), _allowed(error)
    return None


def _allowed(error: ValidationError) -> str:
    return error.errors(include_url=False)[0]["msg"]


def _profile(event: ModelProfileUpdated) -> Profile:
    return Profile(
        scope=event.scope,
        role=event.role,
        deployment_mode=event.deployment_mode,
        model=event.model,
        fallbacks=event.fallbacks,
        base_url=event.base_url,
        temperature=event.temperature,
        max_tokens=event.max_tokens,
        extra=event.extra,
        credential_ref=event.credential_ref,
    )


@lru_cache(maxsize=1)
def _schema() -> Any:
    text = (files("processors.tables") / "profiles.avsc").read_text(encoding="utf-8")
    return fastavro.parse_schema(json.loads(text), named_schemas={})
