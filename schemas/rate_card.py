"""rate.card.updated: the price of one unit of one model from a time on (M8)."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, Natural, PicoUsd, Text, TimeMs


class PriceUnit(StrEnum):
    UNKNOWN = "UNKNOWN"
    INPUT_TOKEN = "INPUT_TOKEN"
    CACHED_TOKEN = "CACHED_TOKEN"
    OUTPUT_TOKEN = "OUTPUT_TOKEN"


class RateCardUpdated(HeadedEvent):
    NAME: ClassVar[str] = "rate.card.updated"

    provider: Identifier
    model: Identifier
    unit: Literal[PriceUnit.INPUT_TOKEN, PriceUnit.CACHED_TOKEN, PriceUnit.OUTPUT_TOKEN]
    price_picousd_per_million: PicoUsd
    currency: Literal["USD"] = "USD"
    valid_from_ms: TimeMs
    valid_to_ms: TimeMs | None = None
    version: Annotated[Natural, Field(ge=1)] = 1
    origin: Text | None = None

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.valid_to_ms is not None and self.valid_to_ms <= self.valid_from_ms:
            raise ValueError("valid_to_ms must be above valid_from_ms")
        return self
