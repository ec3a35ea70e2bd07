"""dead.letters and late.events: what could not be taken, and what came too late."""

from typing import ClassVar

from pydantic import Field

from schemas.envelope import HeadedEvent
from schemas.values import Int32, Offset, Partition, TimeMs

KEEP_BYTES = 64 * 1024  # above that a dead letter keeps hash and length


class DeadLetter(HeadedEvent):
    NAME: ClassVar[str] = "dead.letter"

    origin_topic: str
    origin_partition: Partition
    origin_offset: Offset
    origin_append_ms: int
    reason: str
    detail: str = Field(max_length=512)
    schema_id: Int32 | None = None
    key: bytes | None = None
    value: bytes | None = None
    value_sha256: str | None = None
    value_length: int | None = None
    headers: dict[str, bytes] = Field(default_factory=dict)


class LateEvent(HeadedEvent):
    NAME: ClassVar[str] = "late.event"

    late_event_id: str
    origin_topic: str
    origin_partition: Partition
    origin_offset: Offset
    pane_start_ms: TimeMs
    watermark_ms: int
    generation: Int32
