"""scoring.policy.updated: weights, references and gates of one role and mode (M1, M2, M6)."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.envelope import HeadedEvent
from schemas.values import (
    Identifier,
    Int32,
    LatencyUs,
    Long,
    Name,
    Natural,
    PicoUsd,
    TenThousandths,
    Text,
)


class CostUnit(StrEnum):
    UNKNOWN = "UNKNOWN"
    PER_REQUEST = "PER_REQUEST"
    PER_1K_TOKENS = "PER_1K_TOKENS"


class Severity(StrEnum):
    UNKNOWN = "UNKNOWN"
    INFO = "INFO"
    WARN = "WARN"
    PAGE = "PAGE"


class PolicyBenchmark(BaseModel):
    """A reported benchmark that counts as quality (M19); fields as in avsc."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Identifier
    weight: Annotated[int, Field(ge=1, le=10**6)]
    floor_e9: Long
    target_e9: Long
    dataset_hash: Text | None = None
    signature: Text | None = None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.floor_e9 == self.target_e9:
            raise ValueError("floor_e9 and target_e9 must differ")
        return self


class ScoringPolicyUpdated(HeadedEvent):
    NAME: ClassVar[str] = "scoring.policy.updated"
    VERSION: ClassVar[int] = 2

    role: Name
    deployment_mode: Name
    weight_quality: TenThousandths
    weight_cost: TenThousandths
    weight_latency: TenThousandths
    weight_reliability: TenThousandths
    cost_unit: Literal[CostUnit.PER_REQUEST, CostUnit.PER_1K_TOKENS]
    reference_cost_picousd: Annotated[PicoUsd, Field(gt=0)]
    reference_latency_us: LatencyUs
    latency_percentile: Literal[50, 95, 99] = 95
    max_ratio_percent: Annotated[int, Field(ge=100, le=10_000)] = 200
    prior_quality: TenThousandths = 5000
    prior_reliability: TenThousandths = 5000
    prior_strength: Annotated[int, Field(ge=1, le=10**6)] = 20
    min_quality: TenThousandths = 0
    min_reliability: TenThousandths = 0
    min_samples: Annotated[Int32, Field(ge=1)] = 59
    min_trials: Annotated[Int32, Field(ge=1)] = 30
    emit_epsilon_e9: Natural = 5_000_000
    emit_min_interval_ms: Natural = 10_000
    heartbeat_ms: Annotated[Natural, Field(ge=1)] = 900_000
    evidence_modes: tuple[Name, ...] = ()
    actor: Identifier
    window_panes: Annotated[int, Field(ge=1, le=10_000)] = 288
    part_availability: TenThousandths = 5000
    part_policy_compliance: TenThousandths = 2500
    part_refusal_accuracy: TenThousandths = 2500
    quality_metrics: Annotated[tuple[Identifier, ...], Field(max_length=32)] = ("quality",)
    benchmarks: Annotated[tuple[PolicyBenchmark, ...], Field(max_length=32)] = ()
    hysteresis_margin_e9: Natural = 20_000_000
    hysteresis_closes: Annotated[int, Field(ge=1, le=1000)] = 3
    hysteresis_min_ms: Natural = 1_800_000
    sla_success: TenThousandths | None = None
    sla_latency_us: LatencyUs | None = None
    sla_cost_picousd_per_1k: PicoUsd | None = None
    severity: Literal[Severity.INFO, Severity.WARN, Severity.PAGE] = Severity.WARN

    @model_validator(mode="after")
    def _weights_sum(self) -> Self:
        total = (
            self.weight_quality + self.weight_cost + self.weight_latency + self.weight_reliability
        )
        if total != 10_000:
            raise ValueError(f"weights must sum to 10,000 ten-thousandths, they sum to {total}")
        parts = self.part_availability + self.part_policy_compliance + self.part_refusal_accuracy
        if parts != 10_000:
            raise ValueError(f"parts must sum to 10,000 ten-thousandths, they sum to {parts}")
        if len(set(self.quality_metrics)) < len(self.quality_metrics):
            raise ValueError("quality_metrics must name each metric once")
        return self
