import pytest

from streams.errors import BadConfiguration
from tools.units import bar, clock, count, lasting, moment, picousd, seconds, usd


def test_money_is_shown_with_the_decimals_it_needs() -> None:
    assert usd(1_234_567_890_000_000) == "$1,234.57"
    assert usd(0) == "$0.00"
    assert usd(4_000_000) == "$0.000004"
    assert usd(200_000_000, 6) == "$0.000200"
    assert usd(None) == "-"


def test_usd_are_read_exactly_or_refused() -> None:
    assert picousd("0.1", "x") == 100_000_000_000
    assert picousd("$12", "x") == 12 * 10**12
    assert picousd("0.000000000001", "x") == 1
    for wrong in ("ten", "", "0.0000000000001", "NaN", "1e400000", "Infinity", "-1"):
        with pytest.raises(BadConfiguration, match="price"):
            picousd(wrong, "price")


def test_counts_fit_into_five_characters() -> None:
    for n in (0, 1, 999, 1_000, 99_949, 123_456, 9_999_999, 123_456_789, 5 * 10**10):
        assert len(count(n)) <= 5, n
    assert (count(12_345), count(None)) == ("12.3k", "-")


def test_durations_and_moments() -> None:
    assert (seconds(850_000), seconds(3_214_000)) == ("850 ms", "3.21 s")
    assert (lasting(4_000), lasting(720_000), lasting(3 * 3_600_000)) == ("4 s", "12 min", "3 h")
    assert moment(0) == "1970-01-01T00:00:00.000Z"
    assert clock(3_723_000) == "01:02:03"


def test_a_bar_is_as_wide_as_asked_and_full_at_the_cap() -> None:
    assert bar(0, 4) == "░░░░"
    assert bar(0.5, 4) == "██░░"
    assert bar(1, 4) == bar(7, 4) == "████"
    assert {len(bar(share / 97, 9)) for share in range(200)} == {9}
