"""What every event carries (R40), and where a record stands in the log."""

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from schemas.values import EventId, Identifier, Name, Text, TimeMs


class Event(BaseModel):
    """A fact in the past tense. NAME is its wire name; its schema is avsc/<name>.v<N>.avsc."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1


class HeadedEvent(Event):
    """An event with the common header (R40)."""

    event_id: EventId
    occurred_at_ms: TimeMs
    source: Identifier
    tenant: Identifier | None = None
    persona: Identifier | None = None
    mode: Name | None = None
    trace_id: Text | None = None
    budget_trace_id: Text | None = None


E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record stands. append_ms is when the broker appended it (never a producer's clock);
    a copied record keeps its original append time."""

    topic: str
    partition: int
    offset: int
    append_ms: int


@dataclass(frozen=True, slots=True)
class Recorded(Generic[E]):
    """An event as it stands in the log."""

    event: E
    at: Position
    key: bytes | None
