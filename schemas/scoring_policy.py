"""scoring.policy.updated: weights, references and gates of one role and mode (M1, M2, M6)."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, Int32, LatencyUs, Name, Natural, PicoUsd, TenThousandths


class CostUnit(StrEnum):
    UNKNOWN = "UNKNOWN"
    PER_REQUEST = "PER_REQUEST"
    PER_1K_TOKENS = "PER_1K_TOKENS"


class ScoringPolicyUpdated(HeadedEvent):
    NAME: ClassVar[str] = "scoring.policy.updated"

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

    @model_validator(mode="after")
    def _weights_sum(self) -> Self:
        total = (
            self.weight_quality + self.weight_cost + self.weight_latency + self.weight_reliability
        )
        if total != 10_000:
            raise ValueError(f"weights must sum to 10,000 ten-thousandths, they sum to {total}")
        return self
