"""clock.tick: time passes in a partition while nobody speaks (M5)."""

from typing import ClassVar

from schemas.envelope import HeadedEvent
from schemas.values import TimeMs


class ClockTick(HeadedEvent):
    """Its time is base_occurred_at_ms + (own append time - base_append_ms): all stamped by the
    broker or taken from a real event, so a back-fill into an idle system is never late."""

    NAME: ClassVar[str] = "clock.tick"

    base_occurred_at_ms: TimeMs
    base_append_ms: TimeMs
