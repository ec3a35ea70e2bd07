"""M5: panes are half-open, aligned to the epoch; a pane is closed by the watermark plus grace."""

from processors.windows import is_closed, last_closed, pane_of, watermark_after


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
