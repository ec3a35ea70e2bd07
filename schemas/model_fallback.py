"""model.fallback.used: a request went to another model than first chosen (R70)."""

from typing import Annotated, ClassVar

from pydantic import Field

from schemas.envelope import HeadedEvent
from schemas.values import MAX_LATENCY_US, Identifier, Name, PicoUsd, Text


class ModelFallbackUsed(HeadedEvent):
    NAME: ClassVar[str] = "model.fallback.used"

    tenant: Identifier
    role: Name
    from_model: Identifier
    to_model: Identifier
    reason: Identifier
    chain: tuple[Identifier, ...] = ()
    attempt: Annotated[int, Field(ge=2, le=1000)]
    added_latency_us: Annotated[int, Field(ge=0, le=MAX_LATENCY_US)]
    added_cost_picousd: PicoUsd | None = None
    request_id: Text | None = None
    invocation_id: Identifier | None = None
