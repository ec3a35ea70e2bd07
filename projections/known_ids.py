"""Ids of invocations as UUIDs, and which of them may have been filed before.

Ids that follow time (UUIDv7) need no memory: zone maps prune a look-up within the range of a batch
to almost nothing. Any others are scattered over the whole table; for them a fingerprint of 8 bytes
each is kept in memory, and only hits are looked up.
"""

import uuid
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.values import NAMESPACE

UUID_LENGTH: Final = 36
HYPHENS: Final = (8, 13, 18, 23)
DIGITS: Final = np.array([i for i in range(UUID_LENGTH) if i not in HYPHENS])
HEX: Final = np.full(256, 255, np.uint8)
for _digit, _value in zip("0123456789abcdefABCDEF", [*range(16), *range(10, 16)], strict=True):
    HEX[ord(_digit)] = _value
MIX: Final = np.uint64(0x9E3779B97F4A7C15)  # odd: a multiplication by it loses nothing


def uuids(event_ids: "pa.StringArray") -> NDArray[np.uint8]:
    """Ids as UUIDs: shape (n, 16). A text that is no UUID becomes the uuid5 of itself."""
    n = len(event_ids)
    out = np.empty((n, 16), np.uint8)
    offsets: Any
    data: Any
    _, offsets, data = event_ids.buffers()
    if n == 0 or offsets is None or data is None:
        return out
    ends = np.frombuffer(offsets, np.int32)[event_ids.offset : event_ids.offset + n + 1]
    text = np.frombuffer(data, np.uint8)
    rows = np.flatnonzero(np.diff(ends) == UUID_LENGTH)
    chars = text[ends[:-1][rows][:, None] + np.arange(UUID_LENGTH)]
    nibbles = HEX[chars[:, DIGITS]]
    formed = (chars[:, HYPHENS] == ord("-")).all(axis=1) & (nibbles != 255).all(axis=1)
    out[rows[formed]] = nibbles[formed, 0::2] << 4 | nibbles[formed, 1::2]
    foreign = np.ones(n, bool)
    foreign[rows[formed]] = False
    for row in np.flatnonzero(foreign).tolist():
        made = uuid.uuid5(NAMESPACE, event_ids[row].as_py())
        out[row] = np.frombuffer(made.bytes, np.uint8)
    return out


def follow_time(ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which ids are of a version that grows with time."""
    return np.asarray(ids[:, 6] >> 4 == 7)


def as_arrow(ids: NDArray[np.uint8]) -> Any:
    """Ids of shape (n, 16) as an Arrow column that DuckDB takes as UUID."""
    raw = pa.py_buffer(np.ascontiguousarray(ids).tobytes())
    storage: Any = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, raw])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def bounds(ids: NDArray[np.uint8]) -> tuple[str, str]:
    """Texts of the smallest and the greatest id, up to their last 8 bytes; at least one id."""
    high = np.ascontiguousarray(ids[:, :8]).view(">u8")
    low, top = int(high.min()), int(high.max())
    return str(uuid.UUID(int=low << 64)), str(uuid.UUID(int=top << 64 | (1 << 64) - 1))


class Fingerprints:
    """A set of ids that may say yes to one it never saw (once in 2**64 / size), never no to one it
    holds. Sorted runs, merged so that they stay few: 8 bytes per id."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, ids: NDArray[np.uint8]) -> None:
        """Takes ids of shape (n, 16)."""
        if len(ids) == 0:
            return
        run = np.sort(_fingerprint(ids))
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # two sorted runs: a merge
        self._runs.append(run)

    def maybe(self, ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which ids may have been added: shape (n,)."""
        wanted = _fingerprint(ids)
        found = np.zeros(len(ids), bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, wanted), len(run) - 1)
            found |= run[places] == wanted
        return found


def _fingerprint(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    halves = np.ascontiguousarray(ids).view(np.uint64)
    mixed: NDArray[np.uint64] = halves[:, 0] * MIX ^ halves[:, 1]
    return mixed
