"""Panes of event time, watermarks, lateness (M5). Half-open, aligned to the epoch; no clock."""

from typing import Final

PANE_MS: Final = 300_000
WINDOW_PANES: Final = 288
WINDOW_MS: Final = WINDOW_PANES * PANE_MS
BOUND_MS: Final = 60_000
"""B: how far out of order events of a partition are expected to be."""
GRACE_MS: Final = 600_000
"""G: how long a pane stays open after the watermark has passed its end."""
SLACK_MS: Final = WINDOW_MS
"""How much longer than the window facts are kept: a scorer may be down that long."""


def pane_of(occurred_at_ms: int) -> int:
    """Start of the pane that an event time lies in."""
    return occurred_at_ms // PANE_MS * PANE_MS


def watermark_after(newest_ms: int) -> int:
    """W_p of a partition whose newest event or tick has this time."""
    return newest_ms - BOUND_MS - 1


def is_closed(pane_ms: int, watermark_ms: int | None) -> bool:
    """Whether a pane takes no more events; None: no event has been seen."""
    return watermark_ms is not None and pane_ms + PANE_MS + GRACE_MS <= watermark_ms


def last_closed(watermark_ms: int) -> int:
    """Start of the newest pane that is closed at a watermark."""
    return (watermark_ms - GRACE_MS) // PANE_MS * PANE_MS - PANE_MS
