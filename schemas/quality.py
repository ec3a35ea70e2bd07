"""model.quality.observed, slm.benchmark.results: what is known of a model's quality (M2, M19)."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, FiniteFloat, model_validator
from pydantic_core import PydanticCustomError

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, Long, Name, Natural, Text

POLICY_COMPLIANCE: Final = "policy_compliance"
REFUSAL_ACCURACY: Final = "refusal_accuracy"
MOST_OBSERVATIONS: Final = 10**6
LARGEST_RATIO: Final = 10.0
"""An error rate may exceed 1 (insertions count), but not by that much."""


class MetricScale(StrEnum):
    UNKNOWN = "UNKNOWN"
    UNIT = "UNIT"
    PERCENT = "PERCENT"
    RAW = "RAW"


class MetricDirection(StrEnum):
    UNKNOWN = "UNKNOWN"
    HIGHER = "HIGHER"
    LOWER = "LOWER"


DIRECTIONS: Final[dict[str, MetricDirection]] = {
    **dict.fromkeys(
        (
            "bleu",
            "rouge",
            "factual_accuracy",
            "diff_accuracy",
            "summarization_faithfulness",
            "mos_lqo",
        ),
        MetricDirection.HIGHER,
    ),
    **dict.fromkeys(
        (
            "hallucination_rate",
            "policy_violations",
            "wer",
            "cer",
            "latency_p50",
            "latency_p95",
            "cost_per_1k_tokens",
            "streaming_latency",
        ),
        MetricDirection.LOWER,
    ),
}
"""Named metrics with a direction of their own (R59); other names may have either."""


class ModelQualityObserved(HeadedEvent):
    NAME: ClassVar[str] = "model.quality.observed"

    tenant: Identifier  # required here, as in llm.invocation
    role: Name
    provider: Identifier
    model: Identifier
    metric: Identifier = "quality"
    n: Annotated[int, Field(ge=1, le=MOST_OBSERVATIONS)] = 1
    hits: Annotated[int, Field(ge=0, le=MOST_OBSERVATIONS)]
    invocation_id: Identifier | None = None
    judge: Text | None = None

    @model_validator(mode="after")
    def _hits_are_observations(self) -> Self:
        if self.hits > self.n:
            raise ValueError(f"hits must be at most n, {self.n}")
        return self


class SlmBenchmarkResults(HeadedEvent):
    NAME: ClassVar[str] = "slm.benchmark.results"

    role: Name | None = None
    provider: Identifier
    model: Identifier
    name: Identifier
    value: FiniteFloat
    scale: Literal[MetricScale.UNIT, MetricScale.PERCENT, MetricScale.RAW]
    direction: Literal[MetricDirection.HIGHER, MetricDirection.LOWER]
    n: Natural | None = None
    ci_low: FiniteFloat | None = None
    ci_high: FiniteFloat | None = None
    tool: Text | None = None
    tool_version: Text | None = None
    signature: Text | None = None
    dataset_id: Text | None = None
    dataset_hash: Text | None = None
    split: Text | None = None
    prompt_set_version: Text | None = None
    seed: Long | None = None
    judge_model: Text | None = None

    @model_validator(mode="after")
    def _within_scale(self) -> Self:
        wanted = DIRECTIONS.get(self.name)
        if wanted is not None and self.direction is not wanted:
            raise ValueError(f"direction of {self.name} must be {wanted.value}")
        whole = {MetricScale.UNIT: 1.0, MetricScale.PERCENT: 100.0}.get(MetricScale(self.scale))
        most = None
        if whole is not None:
            most = whole if self.direction is MetricDirection.HIGHER else whole * LARGEST_RATIO
        for field in ("value", "ci_low", "ci_high"):
            number = getattr(self, field)
            if number is None:
                continue
            if number < 0 or (most is not None and number > most):
                limit = "0 or above" if most is None else f"0 to {most:g}"
                raise PydanticCustomError(  # named so that it counts as out of range
                    "less_than_scale", f"{field} must be {limit} in scale {self.scale.value}"
                )
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError("ci_low and ci_high must be given together")
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError("ci_low must be at most ci_high")
        return self
