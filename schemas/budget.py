"""budget.updated and budget.threshold.crossed: what a tenant may spend, and that it nears it."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, Int32, Partition, PicoUsd, TimeMs


class BudgetPeriod(StrEnum):
    """Periods are aligned in UTC."""

    UNKNOWN = "UNKNOWN"
    HOUR = "HOUR"
    DAY = "DAY"
    MONTH = "MONTH"


class CapAction(StrEnum):
    UNKNOWN = "UNKNOWN"
    DENY = "DENY"
    DOWNGRADE = "DOWNGRADE"
    ALLOW_EMERGENCY = "ALLOW_EMERGENCY"


class BudgetUpdated(HeadedEvent):
    NAME: ClassVar[str] = "budget.updated"

    tenant: Identifier
    budget: Identifier
    cap_picousd: Annotated[PicoUsd, Field(gt=0)]
    period: Literal[BudgetPeriod.HOUR, BudgetPeriod.DAY, BudgetPeriod.MONTH]
    thresholds: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (80, 100)
    at_cap: Literal[CapAction.DENY, CapAction.DOWNGRADE, CapAction.ALLOW_EMERGENCY]
    actor: Identifier

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError("thresholds must ascend")
        return self


class SourceOffset(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    partition: Partition
    next_offset: int


class BudgetThresholdCrossed(HeadedEvent):
    NAME: ClassVar[str] = "budget.threshold.crossed"

    tenant: Identifier
    budget: Identifier
    budget_event_id: Identifier
    period_start_ms: TimeMs
    threshold_percent: Int32
    spent_picousd: PicoUsd
    cap_picousd: PicoUsd
    at_offsets: tuple[SourceOffset, ...]
