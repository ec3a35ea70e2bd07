"""Figures as people read them: money, times, counts, bars. Pure."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from schemas.values import MAX_PICOUSD
from streams.errors import BadConfiguration

PICO: Final = 10**12
FULL, PART, EMPTY = "█", "▌", "░"


def usd(picousd: int | float | None, digits: int = 2) -> str:
    """Pico-USD as dollars, as many decimals as asked for; more where it would show as zero."""
    if picousd is None:
        return "-"
    value = Decimal(str(picousd)) / PICO
    while value and abs(value) < Decimal(1).scaleb(-digits) and digits < 12:
        digits += 1
    return f"${value:,.{digits}f}"


def picousd(text: str, field: str) -> int:
    """A decimal amount in USD as pico-USD, exactly. Raises BadConfiguration naming the field."""
    try:
        value = Decimal(text.lstrip("$")) * PICO
        fits = 0 <= value <= MAX_PICOUSD
    except ArithmeticError:
        fits = False
    if not fits:
        raise BadConfiguration(
            f"{field} is {text!r}; allowed: USD as a decimal number from 0 to 9,223,372"
        )
    whole = int(value)
    if value != whole:
        raise BadConfiguration(f"{field} is {text!r}; allowed: at most 12 decimals")
    return whole


def count(n: int | float | None) -> str:
    """A count in at most five characters: 999, 12.3k, 4.5M."""
    if n is None:
        return "-"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= limit:
            scaled = n / limit
            return f"{scaled:.1f}{unit}" if abs(scaled) < 100 else f"{scaled:.0f}{unit}"
    return f"{n:.0f}"


def seconds(us: float | None) -> str:
    """Microseconds as a duration: 850 ms, 3.21 s."""
    if us is None:
        return "-"
    return f"{us / 1e3:.0f} ms" if us < 1e6 else f"{us / 1e6:.2f} s"


def lasting(ms: float | None) -> str:
    """Milliseconds as a duration of one unit: 4 s, 12 min, 3 h, 2 d."""
    if ms is None:
        return "-"
    for limit, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if abs(ms) >= 2 * limit:
            return f"{ms / limit:.0f} {unit}"
    return f"{ms / 1000:.0f} s"


def clock(ms: int | None, day: bool = False) -> str:
    """A moment in UTC: 12:03:20, with its day if asked for."""
    if ms is None:
        return "-"
    return f"{datetime.fromtimestamp(ms / 1000, UTC):{'%Y-%m-%d ' if day else ''}%H:%M:%S}"


def moment(ms: int | None) -> str:
    """A moment in UTC as ISO 8601 with milliseconds."""
    if ms is None:
        return "-"
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def percent(share: float | None) -> str:
    """A share as percent, one decimal."""
    return "-" if share is None else f"{share * 100:.1f}%"


def mebibytes(n: int) -> str:
    """Bytes as whole MiB."""
    return f"{n / 2**20:,.0f} MiB"


def bar(share: float, width: int) -> str:
    """A bar of that many characters, full at 1 and above."""
    halves = round(max(0.0, min(1.0, share)) * width * 2)
    return (FULL * (halves // 2) + PART * (halves % 2)).ljust(width, EMPTY)
