"""Verdicts, sums and watermark of one partition; the simulation tests them under faults."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from processors.pane_fold import PartitionFold, Stretch, columns_of
from schemas.slm_metrics import MeterMark
from schemas.values import Outcome

T0 = 1_700_000_100_000


def event(offset: int, second: int, **changes: Any) -> dict[str, Any]:
    row = {
        "offset": offset,
        "occurred_at_ms": T0 + second * 1000,
        "append_ms": T0,
        "tenant": "t",
        "source": "s",
        "event_id": f"e{offset}",
        "body": b"%d" % offset,
        "role": "code",
        "mode": "PRODUCTION",
        "provider": "p",
        "model": "m",
        "outcome": Outcome.SUCCESS,
        "input_tokens": 10,
        "cached_tokens": 2,
        "output_tokens": 3,
        "latency_us": 1000,
        "reported": None,
    }
    return {**row, **changes}


def folded(*rows: dict[str, Any], ticks: list[tuple[int, int]] | None = None) -> PartitionFold:
    fold = PartitionFold("src", 0, 1, None)
    fold.fold(stretch(list(rows), ticks or []))
    return fold


def stretch(rows: list[dict[str, Any]], ticks: list[tuple[int, int]]) -> Stretch:
    last = max([r["offset"] for r in rows] + [o for o, _ in ticks], default=-1)
    return Stretch(columns_of(rows), ticks, [], last)


def law(fold: PartitionFold) -> dict[str, int]:
    mark = fold.mark(None, "test")
    assert mark.consumed == mark.up_to_offset + 1
    names = ("applied", "duplicate", "late", "conflict", "control")
    return {name: getattr(mark, name) for name in names if getattr(mark, name)}


def test_the_same_event_twice_is_applied_once() -> None:
    again = event(1, 0, event_id="e0", body=b"0")
    assert law(folded(event(0, 0), again)) == {"applied": 1, "duplicate": 1}


def test_the_same_id_with_another_body_is_a_conflict_and_moves_the_watermark() -> None:
    fold = folded(event(0, 0), event(1, 50, event_id="e0"))
    assert law(fold) == {"applied": 1, "conflict": 1}
    assert fold.watermark_ms == T0 + 50_000 - 60_001


def test_another_tenant_may_use_the_same_id() -> None:
    assert law(folded(event(0, 0), event(1, 0, event_id="e0", tenant="u"))) == {"applied": 2}


def test_lateness_is_judged_by_the_watermark_just_before_the_event() -> None:
    far = 300 + 600 + 61
    # The pane of second 0 ends no later than second 300: after `far` it is closed.
    assert law(folded(event(0, 0), event(1, far), event(2, 0))) == {"applied": 2, "late": 1}
    assert law(folded(event(0, 0), event(1, 0), event(2, far))) == {"applied": 3}


def test_a_tick_closes_panes_like_an_event_but_is_control() -> None:
    fold = folded(event(0, 0), event(2, 0), ticks=[(1, T0 + 961_000 + 300_000)])
    assert law(fold) == {"applied": 1, "late": 1, "control": 1}


def test_holes_in_the_offsets_are_control() -> None:
    assert law(folded(event(0, 0), event(5, 0))) == {"applied": 2, "control": 4}


def test_sums_of_products_exceed_64_bits_without_loss() -> None:
    rows = [event(i, 0, input_tokens=10**9, output_tokens=10**9) for i in range(40)]
    (fact,) = folded(*rows).facts()
    assert fact.models[0].unit_products[0] == str(40 * 10**18)
    assert fact.models[0].unit_products[2] == str(40 * 10**18)


def test_reported_costs_are_kept_apart_and_exact() -> None:
    rows = [event(0, 0, reported=2**63 - 1), event(1, 0, reported=2**63 - 1), event(2, 0)]
    (model,) = folded(*rows).facts()[0].models
    assert (model.priced_n, model.reported_n) == (1, 2)
    assert model.reported_sums == (str(2 * (2**63 - 1)), "30")
    assert model.reported_products[0] == str(2 * (2**63 - 1) ** 2)


def test_a_failure_counts_but_has_no_latency_and_no_cost() -> None:
    (model,) = folded(event(0, 0, outcome=Outcome.TIMEOUT)).facts()[0].models
    assert (model.latency_buckets, model.priced_n, sum(model.outcomes)) == ((), 0, 1)


rows_strategy = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 6), st.sampled_from(["code", "summary"])),
    min_size=1,
    max_size=40,
)


@given(rows_strategy, st.data())
def test_cutting_the_log_anywhere_changes_nothing(
    drawn: list[tuple[int, int, str]], data: st.DataObject
) -> None:
    rows = [
        event(i, second, event_id=f"x{who}", role=role)
        for i, (second, who, role) in enumerate(drawn)
    ]
    whole = folded(*rows)
    cut = data.draw(st.integers(0, len(rows)))
    parts = PartitionFold("src", 0, 1, None)
    for part in (rows[:cut], rows[cut:]):
        if part:
            parts.fold(stretch(part, []))
    assert parts.facts() == whole.facts()
    assert parts.mark(None, "x") == whole.mark(None, "x")


@given(rows_strategy, st.data())
def test_a_restart_from_any_mark_ends_in_the_same_state(
    drawn: list[tuple[int, int, str]], data: st.DataObject
) -> None:
    rows = [
        event(i, second, event_id=f"x{who}", role=role)
        for i, (second, who, role) in enumerate(drawn)
    ]
    whole = folded(*rows)
    cut = data.draw(st.integers(1, len(rows)))
    before = folded(*rows[:cut])
    mark: MeterMark = before.mark(None, "x")
    known = {fact.key(): fact for fact in before.facts()}
    again = PartitionFold("src", 0, 1, mark)
    again.fold(
        stretch(rows[again.position :], []) if again.position < len(rows) else stretch([], [])
    )
    known.update({fact.key(): fact for fact in again.facts()})
    blank = {"up_to_offset": 0}
    assert {k: f.model_copy(update=blank) for k, f in known.items()} == {
        f.key(): f.model_copy(update=blank) for f in whole.facts()
    }
    assert again.mark(None, "x") == whole.mark(None, "x")
