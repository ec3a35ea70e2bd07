"""Panes of event time, watermarks, lateness (M5). Half-open, aligned to the epoch; no clock."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Windowing:
    """How event time is cut. Another pane, bound or grace is another fold, and so another
    generation.

    bound_ms: B, how far out of order events of a partition are expected to be. grace_ms: G, how
    long a pane stays open after the watermark has passed its end. longest_panes: of the longest
    window that is kept whole.
    """

    pane_ms: int = 300_000
    bound_ms: int = 60_000
    grace_ms: int = 600_000
    longest_panes: int = 288

    @property
    def longest_ms(self) -> int:
        """The longest window."""
        return self.longest_panes * self.pane_ms

    @property
    def slack_ms(self) -> int:
        """How much longer than the longest window facts are kept: a scorer may be down so long."""
        return self.longest_ms

    def pane_of(self, occurred_at_ms: int) -> int:
        """Start of the pane that an event time lies in."""
        return occurred_at_ms // self.pane_ms * self.pane_ms

    def watermark_after(self, newest_ms: int) -> int:
        """W_p of a partition whose newest event or tick has this time."""
        return newest_ms - self.bound_ms - 1

    def is_closed(self, pane_ms: int, watermark_ms: int | None) -> bool:
        """Whether a pane takes no more events; None: no event has been seen."""
        return watermark_ms is not None and pane_ms + self.pane_ms + self.grace_ms <= watermark_ms

    def last_closed(self, watermark_ms: int) -> int:
        """Start of the newest pane that is closed at a watermark."""
        return self.pane_of(watermark_ms - self.grace_ms) - self.pane_ms

    def kept_from(self, watermark_ms: int) -> int:
        """Start of the oldest pane that anyone may still need when the smallest W_p is this: the
        one that the longest window leaves behind with its newest close, and the slack."""
        return max(0, self.last_closed(watermark_ms) - self.longest_ms - self.slack_ms)


STANDARD: Final = Windowing()
PANE_MS: Final = STANDARD.pane_ms
BOUND_MS: Final = STANDARD.bound_ms
GRACE_MS: Final = STANDARD.grace_ms
WINDOW_PANES: Final = STANDARD.longest_panes
WINDOW_MS: Final = STANDARD.longest_ms
SLACK_MS: Final = STANDARD.slack_ms
pane_of: Final = STANDARD.pane_of
watermark_after: Final = STANDARD.watermark_after
is_closed: Final = STANDARD.is_closed
last_closed: Final = STANDARD.last_closed
