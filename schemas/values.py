"""Units, names and bounds that every layer shares.

Units are in field names: `_ms` milliseconds, `_us` microseconds, `_picousd` 1e-12 USD,
`_tokens` tokens, `_e9` integers of 1e-9. Times are milliseconds since 1970-01-01 UTC.
"""

from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID, uuid5

from pydantic import AfterValidator, Field, StringConstraints

NAMESPACE: Final = UUID("7a5a1c3e-6f0b-5d4e-9d0e-52074f7374e2")
"""Namespace of all ids that are derived from what they were made of."""

IDENTIFIER_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"  # reliability.md section 4
MAX_TOKENS: Final = 10**9
MAX_LATENCY_US: Final = 10**12
BILLION: Final = 10**9
MAX_INT: Final = 2**31 - 1
MAX_LONG: Final = 2**63 - 1
MAX_PICOUSD: Final = MAX_LONG
MAX_TIME_MS: Final = 253_402_300_799_999  # end of the year 9999
MAX_RECORD_BYTES: Final = 256 * 1024
OWN_RECORD_BYTES: Final = 8 * 1024 * 1024
"""Of facts and rankings: they grow with the number of models that have been used."""
PAST_LIMIT_MS: Final = 35 * 86_400_000  # M5
FUTURE_LIMIT_MS: Final = 5 * 60_000  # M5
NIL_UUID: Final = "00000000-0000-0000-0000-000000000000"


def _no_dots(value: str) -> str:
    if ".." in value:
        raise ValueError("must not contain '..'")
    return value


def _not_nil(value: str) -> str:
    if value == NIL_UUID:
        raise ValueError("must not be the nil UUID")
    return value


Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER_PATTERN), AfterValidator(_no_dots)]
EventId = Annotated[Identifier, AfterValidator(_not_nil)]
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
"""A role or mode: unknown ones are kept as sent, only control characters are refused."""
Text = Annotated[str, StringConstraints(max_length=4096)]
TimeMs = Annotated[int, Field(ge=0, le=MAX_TIME_MS)]
Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
LatencyUs = Annotated[int, Field(ge=1, le=MAX_LATENCY_US)]
PicoUsd = Annotated[int, Field(ge=0, le=MAX_PICOUSD)]
TenThousandths = Annotated[int, Field(ge=0, le=10_000)]
Offset = Annotated[int, Field(ge=-1, le=MAX_LONG)]
Natural = Annotated[int, Field(ge=0, le=MAX_LONG)]
Long = Annotated[int, Field(ge=-MAX_LONG - 1, le=MAX_LONG)]
Int32 = Annotated[int, Field(ge=-(2**31), le=MAX_INT)]
"""An Avro int: decoders take longer numbers there, tables do not."""
Partition = Annotated[int, Field(ge=0, le=MAX_INT)]


class Outcome(StrEnum):
    """How an invocation ended; the order is that of ModelTotals.outcomes on the wire."""

    UNKNOWN = "UNKNOWN"
    SUCCESS = "SUCCESS"
    REFUSAL = "REFUSAL"
    FAILURE = "FAILURE"
    TIMEOUT = "TIMEOUT"
    RATE_LIMITED = "RATE_LIMITED"
    CALLER_ERROR = "CALLER_ERROR"
    CONFIG_ERROR = "CONFIG_ERROR"
    CANCELLED = "CANCELLED"


OUTCOMES: Final = tuple(Outcome)
COMPLETE: Final = frozenset({Outcome.SUCCESS, Outcome.REFUSAL})
FAILED: Final = frozenset({Outcome.FAILURE, Outcome.TIMEOUT, Outcome.CONFIG_ERROR})

MODES: Final = ("LOCAL", "DEVELOPMENT", "TEST", "TRAINING", "PRODUCTION")
MODE_ALIASES: Final = {
    "local": "LOCAL",
    "development": "DEVELOPMENT",
    "developer": "DEVELOPMENT",
    "developer-light": "DEVELOPMENT",
    "dev": "DEVELOPMENT",
    "test": "TEST",
    "qa": "TEST",
    "training": "TRAINING",
    "production": "PRODUCTION",
    "prod": "PRODUCTION",
    "enterprise": "PRODUCTION",
}
ROLES: Final = (
    "dialogue",
    "planning",
    "code",
    "embedding",
    "summary",
    "speech_recognition",
    "speech_synthesis",
    "image_generation",
)
ROLE_ALIASES: Final = {
    "chat": "dialogue",
    "dialogue & reasoning": "dialogue",
    "tool call planning": "planning",
    "structured output": "code",
    "knowledge ops": "embedding",
    "summaries & reports": "summary",
    "summarization": "summary",
    "asr": "speech_recognition",
    "tts": "speech_synthesis",
}


def canonical_mode(name: str) -> str:
    """Canonical mode of a name or alias, any case; an unknown name stays as it was sent."""
    return MODE_ALIASES.get(name.lower(), name)


def canonical_role(name: str) -> str:
    """Canonical role of a name or alias, any case; an unknown name stays as it was sent."""
    low = name.lower()
    return low if low in ROLES else ROLE_ALIASES.get(low, name)


def derived_id(kind: str, *parts: object) -> str:
    """Id that follows from what an event was made of, so that making it again repeats it (I6)."""
    return str(uuid5(NAMESPACE, "|".join([kind, *map(str, parts)])))
