"""Quantities as people write them on the command line. Each raises BadConfiguration naming the
option, its value and what is allowed."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Final

from schemas.values import MAX_LATENCY_US
from streams.errors import BadConfiguration

UNITS_US: Final = {
    "us": 1,
    "ms": 10**3,
    "s": 10**6,
    "min": 60 * 10**6,
    "h": 3_600 * 10**6,
    "d": 86_400 * 10**6,
}
WHOLE: Final = 10_000
DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(us|ms|s|min|h|d)")


def duration_us(text: str, option: str, most_us: int = MAX_LATENCY_US) -> int:
    """A duration such as 850ms, 2s, 1.5s, 6h in microseconds."""
    match = DURATION.fullmatch(text.strip())
    found = Decimal(match[1]) * UNITS_US[match[2]] if match else Decimal(0)
    if match is None or not 1 <= found <= most_us or found != int(found):
        raise BadConfiguration(
            f"{option} is {text!r}; allowed: a duration such as 850ms, 2s or 6h, 1us to"
            f" {most_us // UNITS_US['d']}d"
        )
    return int(found)


def share(text: str, option: str) -> int:
    """A share such as .95 or 95% in ten-thousandths."""
    try:
        value = Decimal(text.removesuffix("%")) * (100 if text.endswith("%") else WHOLE)
        if 0 <= value <= WHOLE and value == int(value):
            return int(value)
    except (InvalidOperation, ValueError, OverflowError):
        pass
    raise BadConfiguration(
        f"{option} is {text!r}; allowed: a share from 0 to 1 of at most four decimals, or in %"
    )


def model(text: str, option: str) -> str:
    """provider/model."""
    if not re.fullmatch(r"[^/\s]+/\S+", text):
        raise BadConfiguration(f"{option} is {text!r}; allowed: provider/model")
    return text


def of_model(text: str, option: str, what: str) -> tuple[str, str]:
    """(provider/model, value) of MODEL=VALUE."""
    name, equals, value = text.rpartition("=")
    if not equals or not value:
        raise BadConfiguration(f"{option} is {text!r}; allowed: provider/model={what}")
    return model(name, option), value


def factor(text: str, option: str) -> int:
    """A factor such as .5 or 1.25 in ten-thousandths, at most a million."""
    try:
        value = Decimal(text) * WHOLE
        if 0 <= value <= 10**6 * WHOLE and value == int(value):
            return int(value)
    except (InvalidOperation, ValueError, OverflowError):
        pass
    raise BadConfiguration(
        f"{option} is {text!r}; allowed: a factor from 0 to 1,000,000 of at most four decimals"
    )


def weights(text: str, option: str) -> tuple[int, int, int, int]:
    """quality,cost,latency,reliability in ten-thousandths (whole, together 10,000) or as shares
    that sum to 1 (or 100%)."""
    parts = [part.strip() for part in text.split(",")]
    allowed = (
        "allowed: quality,cost,latency,reliability, as 4000,1500,1500,3000 (ten-thousandths) or"
        " .4,.15,.15,.3, together the whole"
    )
    if len(parts) != 4:
        raise BadConfiguration(f"{option} is {text!r}; {allowed}")
    found = _ten_thousandths(parts)
    if found is None or sum(found) != WHOLE:
        total = "" if found is None else f" (they sum to {sum(found)} ten-thousandths)"
        raise BadConfiguration(f"{option} is {text!r}{total}; {allowed}")
    return found[0], found[1], found[2], found[3]


def _ten_thousandths(parts: Sequence[str]) -> list[int] | None:
    if all(part.isascii() and part.isdigit() for part in parts) and sum(map(int, parts)) > 1:
        return [int(part) for part in parts] if max(map(len, parts)) < 6 else None
    try:
        return [share(part, "") for part in parts]
    except BadConfiguration:
        return None
