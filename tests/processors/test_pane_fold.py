"""Verdicts, sums and watermark of one partition; the simulation tests them under faults."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from processors.columns import columns_of, observed_columns
from processors.pane_fold import OTHERS, PartitionFold, Stretch
from processors.totals import OTHER
from processors.windows import Windowing
from schemas import avro
from schemas.slm_metrics import LATENCY_BUCKETS, MeterMark, MetricCount, ModelTotals, PaneFact
from schemas.values import Outcome
from streams.topics import SLM_METRICS

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


def observation(offset: int, second: int, **changes: Any) -> dict[str, Any]:
    row = {name: event(offset, second)[name] for name in list(event(0, 0))[:11]}
    return {**row, "metric": "quality", "n": 1, "hits": 1, **changes}


def observed(*rows: dict[str, Any]) -> PartitionFold:
    fold = PartitionFold("quality", 0, 1, None)
    fold.fold(Stretch(observed_columns(rows), [], [], rows[-1]["offset"]))
    return fold


def test_observations_are_summed_per_metric_in_the_order_of_bytes() -> None:
    fold = observed(
        observation(0, 0, n=10, hits=7),
        observation(1, 0, metric="policy_compliance", n=4, hits=4),
        observation(2, 5, n=5, hits=0),
        observation(3, 5, metric="Z", n=1, hits=0),
        observation(4, 5, model="other", n=1, hits=0),
    )
    (fact,) = fold.facts()
    assert [(m.model, [(q.metric, q.n, q.hits) for q in m.quality]) for m in fact.models] == [
        ("m", [("Z", 1, 0), ("policy_compliance", 4, 4), ("quality", 15, 7)]),
        ("other", [("quality", 1, 0)]),
    ]


def test_a_fact_of_observations_counts_no_invocation() -> None:
    (fact,) = observed(observation(0, 0)).facts()
    nothing = {"outcome": Outcome.TIMEOUT, "input_tokens": 0, "cached_tokens": 0}
    failure = folded(event(0, 0, **nothing, output_tokens=0)).facts()[0].models[0]
    blank = {"outcomes": (0,) * 9, "quality": ()}
    assert fact.models[0].model_copy(update=blank) == failure.model_copy(update=blank)
    assert set(fact.models[0].outcomes) == {0}


def test_observations_have_the_verdicts_of_invocations() -> None:
    again = observation(1, 0, event_id="e0", body=b"0")
    other = observation(2, 50, event_id="e0")
    fold = observed(observation(0, 0), again, other, observation(4, 2000), observation(5, 0))
    assert law(fold) == {"applied": 2, "duplicate": 1, "conflict": 1, "late": 1, "control": 1}
    assert fold.newest == (T0 + 2_000_000, T0)


class RoomForTwo(PartitionFold):
    most_models = 2
    most_metrics = 2


def few(
    rows: list[dict[str, Any]], cuts: list[int]
) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """(role, mode) -> applied per model, of a fold with room for two, cut into batches there."""
    fold = RoomForTwo("src", 0, 1, None)
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if stop > start:
            fold.fold(stretch(rows[start:stop], []))
    return {
        (fact.role, fact.mode): [(m.model, sum(m.outcomes)) for m in fact.models]
        for fact in fold.facts()
    }


def test_of_too_many_models_the_first_in_the_log_keep_their_names() -> None:
    names = ["z", "y", "a", "z", "b", "y", "a"]
    rows = [event(i, 0, model=name) for i, name in enumerate(names)]
    found = few(rows, [])
    assert found == {("code", "PRODUCTION"): [("y", 2), ("z", 2), (OTHERS[1], 3)]}
    assert all(few(rows, [cut]) == found for cut in range(1, len(rows)))


def test_every_role_mode_and_pane_has_room_of_its_own() -> None:
    rows = [
        event(i, 300 * (i % 2), model=f"m{i}", role=("code", "dialogue")[i // 2 % 2])
        for i in range(8)
    ]
    fold = RoomForTwo("src", 0, 1, None)
    fold.fold(stretch(rows, []))
    assert [len(fact.models) for fact in fold.facts()] == [2] * 4


def test_an_event_that_is_not_applied_takes_no_room() -> None:
    rows = [
        event(0, 0, model="z"),
        event(1, 0, model="conflict", event_id="e0"),
        event(2, 0, model="y"),
        event(3, 0, model="x"),
    ]
    assert few(rows, []) == {("code", "PRODUCTION"): [("y", 1), ("z", 1), (OTHERS[1], 1)]}


Bits = dict[str, list[tuple[str, int]]]


def bits(rows: list[dict[str, Any]], cuts: list[int]) -> Bits:
    """Observations per metric of each model, of a fold with room for two of both, cut there."""
    fold = RoomForTwo("quality", 0, 1, None)
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if stop > start:
            last = rows[stop - 1]["offset"]
            fold.fold(Stretch(observed_columns(rows[start:stop]), [], [], last))
    (fact,) = fold.facts()
    return {m.model: [(q.metric, q.n) for q in m.quality] for m in fact.models}


def test_of_too_many_metrics_of_a_model_the_first_in_the_log_keep_their_names() -> None:
    told = ["mz", "na", "my", "mx", "nz", "mz", "nb", "mx", "ny", "my"]
    rows = [observation(i, 0, model=one[0], metric=one[1]) for i, one in enumerate(told)]
    found = {"m": [("y", 2), ("z", 2), (OTHER, 2)], "n": [("a", 1), ("z", 1), (OTHER, 2)]}
    assert bits(rows, []) == found
    assert all(bits(rows, [cut]) == found for cut in range(1, len(rows)))
    assert bits(rows, list(range(1, len(rows)))) == found


def test_metrics_of_further_models_share_the_room_of_one_in_the_order_of_the_log() -> None:
    told = ["am", "bm", "cx", "dy", "cz", "dx", "ey"]
    rows = [observation(i, 0, model=one[0], metric=one[1]) for i, one in enumerate(told)]
    found = {"a": [("m", 1)], "b": [("m", 1)], OTHERS[1]: [("x", 2), ("y", 2), (OTHER, 1)]}
    assert bits(rows, []) == found
    assert all(bits(rows, [cut]) == found for cut in range(1, len(rows)))


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz")), min_size=1),
    st.data(),
)
def test_names_do_not_depend_on_how_the_log_is_cut(
    told: list[tuple[str, str]], data: st.DataObject
) -> None:
    rows = [observation(i, 0, model=who, metric=name) for i, (who, name) in enumerate(told)]
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=5).map(sorted))
    models: dict[str, dict[str, int]] = {}  # event by event
    for who, metric in told:
        known = models.setdefault(who if who in models or len(models) < 2 else "~", {})
        name = metric if metric in known or len(known) < 2 else "~"
        known[name] = known.get(name, 0) + 1
    assert bits(rows, cuts) == {who: sorted(known.items()) for who, known in models.items()}


def test_the_widest_fact_fits_into_its_record() -> None:
    """Every name as long and every number as large as its schema lets it be."""
    wide, most = "x" * 128, 2**63 - 1
    numbers = ("input_tokens", "cached_tokens", "output_tokens", "priced_n", "reported_n")
    lists = {"unit_sums": 3, "unit_products": 6, "reported_sums": 2, "reported_products": 3}
    shared: dict[str, Any] = {
        "provider": wide,
        "model": wide,
        "outcomes": (most,) * len(Outcome),
        **dict.fromkeys(numbers, most),
        **{name: ("9" * 80,) * n for name, n in lists.items()},
    }
    buckets = range(LATENCY_BUCKETS)
    called = ModelTotals(
        **shared, latency_buckets=(*buckets,), latency_counts=(most,) * len(buckets)
    )
    metrics = (MetricCount(metric=wide, n=most, hits=most),) * (PartitionFold.most_metrics + 1)
    judged = ModelTotals(**shared, latency_buckets=(), latency_counts=(), quality=metrics)
    for totals in (called, judged):
        fact = PaneFact(
            source_topic="model.quality.observed",
            source_partition=2**31 - 1,
            generation=2**31 - 1,
            role="\U00010000" * 128,
            mode="\U00010000" * 128,
            pane_start_ms=most,
            up_to_offset=most,
            models=(totals,) * (PartitionFold.most_models + 1),
        )
        assert len(avro.encode(fact)) <= 7 * 2**20 < SLM_METRICS.max_bytes


def test_names_are_the_same_after_a_restart_from_any_mark() -> None:
    rows = [event(i, 200 * i, model=f"m{i * 7 % 5}", event_id=f"x{i % 9}") for i in range(24)]
    whole = RoomForTwo("src", 0, 1, None)
    whole.fold(stretch(rows, []))
    for cut in range(1, len(rows)):
        before = RoomForTwo("src", 0, 1, None)
        before.fold(stretch(rows[:cut], []))
        known = {fact.key(): fact.models for fact in before.facts()}
        again = RoomForTwo("src", 0, 1, before.mark(None, "x"))
        again.fold(stretch(rows[again.position :], []))
        known.update({fact.key(): fact.models for fact in again.facts()})
        assert known == {fact.key(): fact.models for fact in whole.facts()}


def test_panes_bound_and_grace_are_as_they_were_given() -> None:
    cut = Windowing(pane_ms=1_000, bound_ms=0, grace_ms=2_000)
    fold = PartitionFold("src", 0, 1, None, cut)
    base = T0 // 1000
    rows = [event(i, s) for i, s in enumerate((0, 1, 3, 0, 4, 0, 1))]
    fold.fold(stretch(rows, []))
    # Second 0 is closed from W = second 3 on: not yet after event 3, but after event 4.
    assert law(fold) == {"applied": 6, "late": 1}
    assert [fact.pane_start_ms // 1000 - base for fact in fold.facts()] == [0, 1, 3, 4]
    assert fold.watermark_ms == T0 + 4_000 - 1


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
