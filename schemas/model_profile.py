"""Profiles (set, refused, in force) and rankings of models."""

import json
from enum import StrEnum
from math import copysign
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, Int32, Name, Natural, Offset, Partition, Text

MAX_JSON_DEPTH = 32


class ProfileAction(StrEnum):
    UNKNOWN = "UNKNOWN"
    SET = "SET"
    DELETE = "DELETE"


class RejectionKind(StrEnum):
    UNKNOWN = "UNKNOWN"
    CONFLICT = "CONFLICT"
    INVALID = "INVALID"


class RankingStatus(StrEnum):
    UNKNOWN = "UNKNOWN"
    PROVISIONAL = "PROVISIONAL"
    FINAL = "FINAL"
    HEARTBEAT = "HEARTBEAT"


def _depth(value: object) -> int:
    deepest, level = 0, [value]
    while level:  # level by level: a recursion would fall to the input it guards against
        deepest += 1
        if deepest > MAX_JSON_DEPTH:
            return deepest
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return deepest


def _json_object(text: str) -> str:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    if _depth(value) > MAX_JSON_DEPTH:
        raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH}")
    return text


def _no_minus_zero(value: float) -> float:
    if copysign(1.0, value) < 0:  # equal to 0, but not in its bytes: states would differ
        raise ValueError("must not be -0.0")
    return value


Scope = Annotated[
    str,
    StringConstraints(
        pattern=r"^(staged:)?(system|mode|tenant:[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
        r"|user:[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._-]{0,63})$"
    ),
]
ModelId = Annotated[Identifier, StringConstraints(pattern=r"^[^/]+/.+$")]
CredentialRef = Annotated[Text, StringConstraints(pattern=r"^(env|vault)://.+$")]


class ProfileFields(BaseModel):
    """What a profile says, apart from its key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: ModelId
    fallbacks: tuple[ModelId, ...] = ()
    base_url: Annotated[Text, StringConstraints(pattern=r"^(https?://[^\s]+)?$")] = ""
    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_no_minus_zero)] = 0.2
    max_tokens: Annotated[int, Field(ge=1, le=10**9)] | None = None
    extra: Annotated[Text, AfterValidator(_json_object)] = "{}"
    credential_ref: CredentialRef | None = None


class ModelProfileUpdated(HeadedEvent):
    """A wish to change a profile; the fold decides. Its profile fields are checked there, with
    ProfileFields, so that an ill-formed one becomes a visible model.profile.rejected."""

    NAME: ClassVar[str] = "model.profile.updated"

    scope: str
    role: Name
    deployment_mode: Name
    action: Literal[ProfileAction.SET, ProfileAction.DELETE]
    model: str = ""
    fallbacks: tuple[str, ...] = ()
    base_url: str = ""
    temperature: float = 0.2
    max_tokens: int | None = None
    extra: str = "{}"
    credential_ref: str | None = None
    actor: Identifier
    reason: Text | None = None
    expected_version: Natural | None = None

    def profile_key(self) -> str:
        """Key of the topic and of the table: scope/role/mode."""
        return f"{self.scope}/{self.role}/{self.deployment_mode}"


class ModelProfileRejected(HeadedEvent):
    NAME: ClassVar[str] = "model.profile.rejected"

    scope: str
    role: str
    deployment_mode: str
    rejected_event_id: str
    kind: Literal[RejectionKind.CONFLICT, RejectionKind.INVALID]
    field: str | None = None
    value: str | None = None
    allowed: str | None = None
    expected_version: int | None = None
    actual_version: int
    actor: str
    cause_topic: str
    cause_partition: Partition
    cause_offset: Offset


class ModelProfileActive(HeadedEvent):
    NAME: ClassVar[str] = "model.profile.active"

    scope: str
    role: str
    deployment_mode: str
    version: int
    model: str
    fallbacks: tuple[str, ...] = ()
    base_url: str = ""
    temperature: float = 0.2
    max_tokens: int | None = None
    extra: str = "{}"
    credential_ref: str | None = None
    actor: str
    cause_event_id: str
    cause_partition: Partition
    cause_offset: Offset

    def profile_key(self) -> str:
        """Key of the topic and of the table: scope/role/mode."""
        return f"{self.scope}/{self.role}/{self.deployment_mode}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MarkPosition(_Part):
    source_topic: str
    source_partition: Partition
    up_to_offset: int
    watermark_ms: int | None


class InputPosition(_Part):
    topic: str
    partition: Partition
    next_offset: int


class ScoreTerm(_Part):
    name: str
    value: float
    reference: float | None
    floored: bool
    weight: Int32
    contribution: float
    standard_error: float
    n: int


class BenchmarkPart(_Part):
    name: str
    event_id: str
    value: float
    part: float
    weight: Int32


class ReliabilityPart(_Part):
    name: str
    n: int
    hits: int
    weight: Int32
    value: float
    standard_error: float


class RankingEntry(_Part):
    """One model in a ranking; fields as in avsc/model_profile_scored.v2.avsc."""

    provider: str
    model: str
    status: str
    reason: str | None
    rank: Int32 | None
    score: float | None
    score_se: float | None
    score_raw: float | None
    invocations: int
    complete: int
    trials: int
    hits: int
    rate_limited: int
    latency_us: float | None
    latency_low_us: float | None
    latency_high_us: float | None
    cost_picousd_per_request: float | None
    cost_picousd_per_1k_tokens: float | None
    reliability: float | None
    quality: float | None
    prior_only: bool
    flags: tuple[str, ...] = ()
    terms: tuple[ScoreTerm, ...] = ()
    quality_n: int = 0
    quality_hits: int = 0
    quality_prior: float | None = None
    benchmarks: tuple[BenchmarkPart, ...] = ()
    parts: tuple[ReliabilityPart, ...] = ()
    success_low: float | None = None
    success_high: float | None = None


class LeaderState(_Part):
    """Who leads a ranking key, and who is about to (M3)."""

    provider: str | None = None
    model: str | None = None
    since_ms: int | None = None
    challenger_provider: str | None = None
    challenger_model: str | None = None
    closes: Int32 = 0


class ModelProfileScored(HeadedEvent):
    """A ranking, self-contained: what it saw, by which rules, and what follows (M6)."""

    NAME: ClassVar[str] = "model.profile.scored"
    VERSION: ClassVar[int] = 2

    role: str
    deployment_mode: str
    status: Literal[RankingStatus.PROVISIONAL, RankingStatus.FINAL, RankingStatus.HEARTBEAT]
    as_of_ms: int
    window_start_ms: int
    window_end_ms: int
    revision: int
    generation: Int32
    policy_event_id: str
    policy_version: int
    marks: tuple[MarkPosition, ...]
    inputs: tuple[InputPosition, ...]
    entries: tuple[RankingEntry, ...]
    state_hash: str = ""
    omitted: int = 0
    leader: LeaderState | None = None
    leader_before: LeaderState | None = None

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.window_end_ms <= self.window_start_ms:
            raise ValueError("window_end_ms must be above window_start_ms")
        return self


class ModelProfileRecommended(HeadedEvent):
    """The leader of a ranking is not the model of the profile in force."""

    NAME: ClassVar[str] = "model.profile.recommended"

    role: str
    deployment_mode: str
    provider: str
    model: str
    score: float
    score_se: float
    samples: int
    leads_since_ms: int
    current_model: str | None = None
    current_status: str | None = None
    current_score: float | None = None
    current_score_se: float | None = None
    profile_key: str | None = None
    profile_version: int | None = None
    ranking_event_id: str
    ranking_as_of_ms: int
    policy_event_id: str
    policy_version: int
