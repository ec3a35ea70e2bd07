"""Quantities on the command line."""

from collections.abc import Callable
from typing import Any

import pytest

from streams.errors import BadConfiguration
from tools.cli import arguments


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("850ms", 850_000),
        ("2s", 2_000_000),
        ("1.5 s", 1_500_000),
        ("1us", 1),
        ("6h", 21_600_000_000),
        ("1min", 60_000_000),
        ("11d", 11 * 86_400 * 10**6),
    ],
)
def test_a_duration_is_exact(text: str, us: int) -> None:
    assert arguments.duration_us(text, "--latency") == us


def test_a_window_may_be_longer_than_a_call() -> None:
    month = 30 * 86_400 * 10**6
    assert arguments.duration_us("30d", "--window", month) == month
    with pytest.raises(BadConfiguration, match="1us to 30d"):
        arguments.duration_us("31d", "--window", month)


@pytest.mark.parametrize(
    ("text", "ten_thousandths"),
    [(".95", 9500), ("95%", 9500), ("0", 0), ("1", 10_000), (".1234", 1234)],
)
def test_a_share_is_exact(text: str, ten_thousandths: int) -> None:
    assert arguments.share(text, "--success") == ten_thousandths


def test_weights_may_be_ten_thousandths_or_shares() -> None:
    assert arguments.weights("4000,1500,1500,3000", "--weights") == (4000, 1500, 1500, 3000)
    assert arguments.weights(".4, .15,.15,30%", "--weights") == (4000, 1500, 1500, 3000)
    assert arguments.weights("0,0,0,1", "--weights") == (0, 0, 0, 10_000)


def test_a_model_and_its_value() -> None:
    assert arguments.of_model("p/m:1=.5", "--price", "FACTOR") == ("p/m:1", ".5")
    assert arguments.factor("1.25", "--price") == 12_500
    assert arguments.factor("0", "--price") == 0


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (arguments.duration_us, text)
        for text in ("2", "0s", "-1s", "1.5us", "12d", "s", "1e3s", "", "٣s", "nan s")
    ]
    + [(arguments.share, text) for text in ("", "1.1", "-.1", "101%", ".12345", "nan", "inf", "x")]
    + [(arguments.factor, text) for text in ("", "-1", "nan", "1e99", "inf", ".00001", "1000001")]
    + [
        (arguments.weights, text)
        for text in ("", "1,2,3", "4000,1500,1500,2999", ".5,.5,.5,.5", "a,b,c,d", "1,1,1,9997,0")
    ]
    + [(arguments.model, text) for text in ("", "model", "/m", "p/", "p/a b")],
)
def test_what_is_no_quantity_is_told_with_option_value_and_what_is_allowed(
    read: Callable[[str, str], Any], text: str
) -> None:
    with pytest.raises(BadConfiguration) as caught:
        read(text, "--option")
    said = str(caught.value)
    assert said.startswith(f"--option is {text!r}")
    assert "allowed:" in said


@pytest.mark.parametrize("text", ["p/m", "=1", "p/m=", "m=1"])
def test_a_value_needs_a_model(text: str) -> None:
    with pytest.raises(BadConfiguration, match="allowed: provider/model"):
        arguments.of_model(text, "--price", "FACTOR")
