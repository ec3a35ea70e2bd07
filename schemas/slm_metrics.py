"""slm.metrics: cumulative facts of panes, and the marks that prove them complete (design, 2)."""

from typing import Annotated, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from schemas.envelope import Event
from schemas.values import OUTCOMES, Int32, Natural, Partition

LATENCY_BUCKETS: Final = 1103  # M4, the overflow among them

Digits = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,79})$")]
Bucket = Annotated[int, Field(ge=0, lt=LATENCY_BUCKETS)]


class MetricCount(BaseModel):
    """Observations of one quality metric and the good ones among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    n: Natural
    hits: Natural


class ModelTotals(BaseModel):
    """Totals of one model in one pane; fields as in avsc/pane_fact.v2.avsc."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    model: str
    outcomes: Annotated[tuple[Natural, ...], Field(min_length=len(OUTCOMES))]
    input_tokens: Natural
    cached_tokens: Natural
    output_tokens: Natural
    priced_n: Natural
    unit_sums: Annotated[tuple[Digits, ...], Field(min_length=3, max_length=3)]
    unit_products: Annotated[tuple[Digits, ...], Field(min_length=6, max_length=6)]
    reported_n: Natural
    reported_sums: Annotated[tuple[Digits, ...], Field(min_length=2, max_length=2)]
    reported_products: Annotated[tuple[Digits, ...], Field(min_length=3, max_length=3)]
    latency_buckets: tuple[Bucket, ...]
    latency_counts: tuple[Natural, ...]
    quality: tuple[MetricCount, ...] = ()

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.latency_buckets) != len(self.latency_counts):
            raise ValueError("latency_buckets and latency_counts must have one length")
        return self


class PaneFact(Event):
    """Up to up_to_offset of one source partition, the totals of one role and mode in one pane."""

    NAME: ClassVar[str] = "pane.fact"
    VERSION: ClassVar[int] = 2

    source_topic: str
    source_partition: Partition
    generation: Int32
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
    source_partition: Partition
    generation: Int32
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
