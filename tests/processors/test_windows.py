"""M5: panes are half-open, aligned to the epoch; a pane is closed by the watermark plus grace."""

import pytest

from processors.windows import (
    Windowing,
    is_closed,
    last_closed,
    pane_of,
    watermark_after,
)


def test_the_example_of_m5() -> None:
    newest, seen = 0, []
    for second in (100, 130, 90, 200, 141, 139):
        newest = max(newest, second * 1000)
        seen.append(watermark_after(newest))
    assert seen == [39_999, 69_999, 69_999, 139_999, 139_999, 139_999]
    assert not is_closed(0, watermark_after(960_000))
    assert is_closed(0, watermark_after(960_001))


def test_a_pane_begins_with_its_first_millisecond_and_ends_before_the_next() -> None:
    assert [pane_of(t) for t in (0, 299_999, 300_000)] == [0, 0, 300_000]


def test_nothing_is_closed_before_the_first_event() -> None:
    assert not is_closed(0, None)


def test_the_last_closed_pane_is_closed_and_the_next_is_not() -> None:
    for watermark in (900_000, 900_001, 1_199_999, 1_200_000, 1_763_000_000_123):
        last = last_closed(watermark)
        assert is_closed(last, watermark)
        assert not is_closed(last + 300_000, watermark)


@pytest.mark.parametrize("panes", [1, 288, 8640])
def test_facts_are_kept_for_the_longest_window_and_as_long_again(panes: int) -> None:
    """The pane that leaves the longest window belongs to what must still be there."""
    cut = Windowing(longest_panes=panes)
    watermark = 1_760_000_000_123
    leaves = cut.last_closed(watermark) - panes * cut.pane_ms
    assert cut.kept_from(watermark) == leaves - panes * cut.pane_ms
    assert cut.kept_from(watermark) % cut.pane_ms == 0
    assert cut.kept_from(5) == 0


def test_another_windowing_cuts_by_its_own_lengths() -> None:
    cut = Windowing(pane_ms=1_000, bound_ms=0, grace_ms=2_000, longest_panes=3)
    assert cut.pane_of(1_999) == 1_000
    assert cut.watermark_after(5_000) == 4_999
    assert not cut.is_closed(2_000, 4_999)
    assert cut.is_closed(2_000, 5_000)
    assert cut.last_closed(5_000) == 2_000
    assert cut.kept_from(100_000) == 97_000 - 6_000
