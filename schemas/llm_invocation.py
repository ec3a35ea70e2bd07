"""llm.invocation: one finished request to one model. Only this event is ever charged."""

from typing import Annotated, ClassVar

from pydantic import Field

from schemas.envelope import HeadedEvent
from schemas.values import Identifier, LatencyUs, Name, Natural, Outcome, PicoUsd, Text, Tokens


class LlmInvocation(HeadedEvent):
    NAME: ClassVar[str] = "llm.invocation"

    tenant: Identifier  # required here: every invocation is somebody's
    role: Name
    provider: Identifier
    model: Identifier
    outcome: Outcome
    input_tokens: Tokens
    cached_tokens: Tokens = 0
    output_tokens: Tokens
    latency_us: LatencyUs
    first_token_us: LatencyUs | None = None
    gpu_ms: Tokens | None = None
    reported_cost_picousd: PicoUsd | None = None
    error_code: Text | None = None
    attempt: Annotated[int, Field(ge=1, le=1000)] = 1
    request_id: Text | None = None
    profile_key: Text | None = None
    profile_version: Natural | None = None
