"""The recorded data that ships with Roster, read once. README.md says where it comes from."""

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
HOUR_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One hour of requests of a code service. offset_us: since the first one, ascending; all of
    shape (n,)."""

    offset_us: Ints
    input_tokens: Ints
    output_tokens: Ints


@dataclass(frozen=True, slots=True)
class Calls:
    """Recorded calls, those of a pair (provider, model) side by side.

    pairs: ascending. first, count, succeeded: shape (pairs,), where the calls of a pair begin, how
    many there are, and how many of them without an error. error_code: "" for none. latency_us and
    first_token_us: shape (n,); 0 where the call was refused at once.
    """

    pairs: tuple[tuple[str, str], ...]
    first: Ints
    count: Ints
    succeeded: Ints
    error_code: tuple[str, ...]
    first_token_us: Ints
    latency_us: Ints


@cache
def arrivals() -> Arrivals:
    """The trace of the code service."""
    rows = list(_rows("arrivals.csv.gz"))
    return Arrivals(
        *(_ints(rows, name) for name in ("offset_us", "context_tokens", "generated_tokens"))
    )


@cache
def calls() -> Calls:
    """The recorded calls of eight providers."""
    rows = sorted(_rows("calls.csv.gz"), key=lambda row: (row["provider"], row["model"]))
    of_pair: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        of_pair.setdefault((row["provider"], row["model"]), []).append(number)
    return Calls(
        pairs=tuple(of_pair),
        first=np.array([numbers[0] for numbers in of_pair.values()], np.int64),
        count=np.array([len(numbers) for numbers in of_pair.values()], np.int64),
        succeeded=np.array(
            [sum(not rows[n]["error_code"] for n in numbers) for numbers in of_pair.values()],
            np.int64,
        ),
        error_code=tuple(row["error_code"] for row in rows),
        first_token_us=_ints(rows, "first_token_us"),
        latency_us=_ints(rows, "latency_us"),
    )


@cache
def answers() -> Ints:
    """Whether a smaller (column 0) and a larger model (column 1) answered each prompt right: 0 or
    1, shape (prompts, 2)."""
    rows = list(_rows("answers.csv.gz"))
    return np.stack([_ints(rows, "smaller"), _ints(rows, "larger")], axis=1)


@cache
def prices() -> dict[str, tuple[dict[str, str], ...]]:
    """Changes of published prices by key of the price list, in order of time; the columns are
    those of the file, prices decimal strings in USD."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in _rows("prices.csv.gz"):
        found.setdefault(row["model"], []).append(row)
    return {key: tuple(rows) for key, rows in found.items()}


def _rows(name: str) -> Iterator[dict[str, str]]:
    data = (files("tools.sample") / name).read_bytes()
    return csv.DictReader(io.StringIO(gzip.decompress(data).decode()))


def _ints(rows: list[dict[str, str]], name: str) -> Ints:
    return np.array([int(row[name]) for row in rows], np.int64)
