"""Laws of the fold of facts: pure, no broker."""

from itertools import permutations

from processors.tables.metrics import Row, evolve, forget
from schemas import PaneFact


def fact(up_to: int) -> PaneFact:
    return PaneFact(
        source_topic="llm.invocation",
        source_partition=0,
        generation=1,
        role="code",
        mode="",
        pane_start_ms=0,
        up_to_offset=up_to,
        models=(),
    )


def test_the_newest_fact_stays_in_whatever_order_they_come_and_however_often() -> None:
    for order in permutations([3, 5, 5, 9]):
        row: Row | None = None
        for up_to in order:
            row = evolve(row, fact(up_to), b"%d" % up_to) or row
        assert row == Row(9, b"9")


def test_a_fact_that_is_not_newer_is_told_apart() -> None:
    assert evolve(Row(5, b"5"), fact(5), b"other") is None
    assert evolve(Row(5, b"5"), fact(4), b"other") is None


def test_a_tombstone_deletes_and_only_a_newer_fact_comes_back() -> None:
    gone = forget(Row(5, b"5"))
    assert gone == Row(5, None)
    assert evolve(gone, fact(5), b"5") is None
    assert evolve(gone, fact(6), b"6") == Row(6, b"6")
    assert forget(None).value is None
