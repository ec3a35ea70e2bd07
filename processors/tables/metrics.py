"""metrics-v1: the newest fact of every pane, folded from slm.metrics.

Key: PaneFact.key(). Row: the framed bytes of the fact as they came. Facts are cumulative, so a
newer one replaces an older one and nothing is counted here; a tombstone deletes the row.
"""

from dataclasses import dataclass
from typing import Final

from schemas.slm_metrics import PaneFact

NAME: Final = "metrics-v1"


@dataclass(frozen=True, slots=True)
class Row:
    """up_to_offset: how far the source had been folded. value: None for a deleted row."""

    up_to_offset: int
    value: bytes | None


def evolve(row: Row | None, fact: PaneFact, value: bytes) -> Row | None:
    """The row after one fact, value being its record's bytes; None: the fact is not newer.

    A deleted row keeps the offset it had: only what is newer brings it back.
    """
    if row is not None and fact.up_to_offset <= row.up_to_offset:
        return None
    return Row(fact.up_to_offset, value)


def forget(row: Row | None) -> Row:
    """The row after a tombstone."""
    return Row(-1 if row is None else row.up_to_offset, None)
