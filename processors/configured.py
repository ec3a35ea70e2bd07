"""What the settings say, as the folds take it."""

from processors.windows import Windowing
from streams.settings import Settings


def windowing(settings: Settings) -> Windowing:
    """How event time is cut."""
    return Windowing(settings.pane_ms, settings.bound_ms, settings.grace_ms, settings.longest_panes)
