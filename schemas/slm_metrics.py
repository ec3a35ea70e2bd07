"""slm.metrics: cumulative facts of panes, and the marks that prove them complete (design, 2)."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from schemas.envelope import Event


class ModelTotals(BaseModel):
    """Totals of one model in one pane; fields as in avsc/pane_fact.v1.avsc."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    model: str
    outcomes: tuple[int, ...]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    priced_n: int
    unit_sums: tuple[str, ...]
    unit_products: tuple[str, ...]
    reported_n: int
    reported_sums: tuple[str, ...]
    reported_products: tuple[str, ...]
    latency_buckets: tuple[int, ...]
    latency_counts: tuple[int, ...]


class PaneFact(Event):
    """Up to up_to_offset of one source partition, the totals of one role and mode in one pane."""

    NAME: ClassVar[str] = "pane.fact"

    source_topic: str
    source_partition: int
    generation: int
    role: str
    mode: str
    pane_start_ms: int
    up_to_offset: int
    models: tuple[ModelTotals, ...]

    def key(self) -> bytes:
        """Kafka key: one line of the compacted topic per fact."""
        parts = (
            "fact",
            self.source_topic,
            self.source_partition,
            self.generation,
            self.role,
            self.mode,
            self.pane_start_ms,
        )
        return "\x1f".join(map(str, parts)).encode()


class MeterMark(Event):
    """All facts of a source partition up to up_to_offset precede this record in its log."""

    NAME: ClassVar[str] = "meter.mark"

    source_topic: str
    source_partition: int
    generation: int
    up_to_offset: int
    watermark_ms: int | None
    newest_event_ms: int | None
    newest_append_ms: int | None
    consumed: int
    applied: int
    duplicate: int
    late: int
    dead_lettered: int
    conflict: int
    control: int
    replay_from: int
    kept_from_ms: int | None
    owner: str

    def key(self) -> bytes:
        """Kafka key: one line of the compacted topic per source partition and generation."""
        parts = ("mark", self.source_topic, self.source_partition, self.generation)
        return "\x1f".join(map(str, parts)).encode()
