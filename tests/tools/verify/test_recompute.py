"""Plain folds on small logs computed by hand: M5, M8, M10, verdicts, facts, profiles, budgets."""

import random
from collections import Counter
from typing import Any

import pytest

from processors.pane_fold import PartitionFold
from processors.tables import profiles
from schemas import ModelProfileUpdated, Position, Recorded
from tools.verify import recompute
from tools.verify.log import Record
from tools.verify.recompute import (
    PANE_MS,
    Cards,
    Ledger,
    Meter,
    Profile,
    Rules,
    Seen,
    Totals,
    bucket,
    canonical_mode,
    canonical_role,
    card_cost,
    fact_models,
    first_of_id,
    period_start,
    profile_step,
    seen,
)
from tools.verify.records import Fields

HOUR = 3_600_000
Decoded = tuple[str, Fields] | str


def invocation(at_ms: int, event_id: str = "e", **changed: Any) -> Fields:
    return {
        "event_id": event_id,
        "occurred_at_ms": at_ms,
        "source": "s",
        "tenant": "t",
        "mode": "prod",
        "role": "chat",
        "provider": "p",
        "model": "m",
        "outcome": "SUCCESS",
        "input_tokens": 3,
        "cached_tokens": 2,
        "output_tokens": 5,
        "latency_us": 100,
        "reported_cost_picousd": None,
        **changed,
    }


def known(record: Record, decoded: Decoded) -> Seen | None:
    """What an event is known by; None for a tick or a dead letter."""
    is_one = not isinstance(decoded, str) and decoded[0] != "ClockTick"
    return seen(record, decoded[1]) if is_one else None  # type: ignore[arg-type]  # not a text


def metered(meter: Meter, record: Record, decoded: Decoded) -> str:
    return meter.step(record, decoded, known(record, decoded))


def charged(ledger: Ledger, record: Record, decoded: Decoded) -> str:
    return ledger.step(decoded, known(record, decoded))


def at(offset: int, value: bytes = b"v", append_ms: int = 0) -> Record:
    return Record("llm.invocation", 0, offset, append_ms, b"k", value)


def folded(*steps: tuple[Fields, bytes]) -> tuple[Meter, list[str]]:
    meter = Meter()
    return meter, [
        metered(meter, at(i, value), ("LlmInvocation", f)) for i, (f, value) in enumerate(steps)
    ]


def test_example_of_m5_watermarks_of_one_partition() -> None:
    """B = 60 s; the event at 139 s is behind the watermark, but its pane is open, so it counts."""
    meter = Meter()
    watermarks = []
    for i, seconds in enumerate((100, 130, 90, 200, 141, 139)):
        f = invocation(seconds * 1000, f"e{i}")
        assert metered(meter, at(i), ("LlmInvocation", f)) == "applied"
        watermarks.append(meter.watermark_ms)
    assert watermarks == [39_999, 69_999, 69_999, 139_999, 139_999, 139_999]
    assert sum(meter.panes["dialogue", "PRODUCTION", 0]["p", "m"].outcomes) == 6


def test_example_of_m5_pane_closes_at_960_001_ms() -> None:
    for newest, verdict in ((960_000, "applied"), (960_001, "late")):
        _, verdicts = folded((invocation(newest, "a"), b"1"), (invocation(299_999, "b"), b"2"))
        assert verdicts == ["applied", verdict]


def test_late_events_do_not_move_the_watermark_but_conflicts_do() -> None:
    meter, verdicts = folded(
        (invocation(1_000_000, "a"), b"1"),
        (invocation(1_199_999, "a"), b"2"),  # same id, same pane, other body
        (invocation(900_000, "a"), b"1"),
        (invocation(1_000_000, "a"), b"1"),
        (invocation(10, "late"), b"3"),
    )
    assert verdicts == ["applied", "conflict", "duplicate", "duplicate", "late"]
    assert meter.watermark_ms == 1_199_999 - 60_001


def test_the_same_id_in_another_pane_is_no_duplicate_for_the_meter() -> None:
    _, verdicts = folded((invocation(0), b"1"), (invocation(PANE_MS), b"1"))
    assert verdicts == ["applied", "applied"]


def test_ticks_move_time_and_dead_letters_do_not() -> None:
    """A tick's time is its base's plus the append time passed since."""
    meter = Meter()
    tick = {"base_occurred_at_ms": 500_000, "base_append_ms": 7}
    assert metered(meter, at(0, append_ms=10_007), ("ClockTick", tick)) == "control"
    assert meter.watermark_ms == 510_000 - 60_001
    assert metered(meter, at(1), "decode_error") == "dead_lettered"
    assert meter.newest_event_ms is None


def test_a_mark_tells_the_conservation_law_and_the_first_event_of_the_oldest_open_pane() -> None:
    """Offsets 2 and 6 hold no record: they are control, as the tick is."""
    meter = Meter()
    good: list[tuple[int, Decoded]] = [
        (0, ("LlmInvocation", invocation(0, "a"))),
        (1, "trailing_bytes"),
        (3, ("LlmInvocation", invocation(PANE_MS, "b"))),
        (4, ("LlmInvocation", invocation(PANE_MS, "b"))),
        (5, ("ClockTick", {"base_occurred_at_ms": 960_001, "base_append_ms": 0})),
    ]
    for offset, decoded in good:
        metered(meter, at(offset), decoded)
    assert meter.mark(7) == {
        "up_to_offset": 6,
        "watermark_ms": 900_000,
        "newest_event_ms": PANE_MS,
        "newest_append_ms": 0,
        "consumed": 7,
        "applied": 2,
        "duplicate": 1,
        "late": 0,
        "dead_lettered": 1,
        "conflict": 0,
        "control": 3,
        "replay_from": 3,  # the pane at 0 is closed by the tick
    }
    metered(meter, at(7), ("ClockTick", {"base_occurred_at_ms": 1_260_001, "base_append_ms": 0}))
    assert meter.mark(8)["replay_from"] == 8


def test_a_fact_holds_exact_sums_and_products() -> None:
    meter, _ = folded(
        (invocation(0, "a"), b"1"),
        (invocation(1, "b", outcome="REFUSAL", reported_cost_picousd=7, latency_us=1), b"2"),
        (invocation(2, "c", outcome="TIMEOUT", latency_us=9), b"3"),
        (invocation(3, "d", input_tokens=10**9, output_tokens=10**9, latency_us=10**12), b"4"),
    )
    (fact,) = fact_models(meter.panes["dialogue", "PRODUCTION", 0])
    assert fact == {
        "provider": "p",
        "model": "m",
        "outcomes": [0, 2, 1, 0, 1, 0, 0, 0, 0],
        "input_tokens": 10**9 + 9,
        "cached_tokens": 8,
        "output_tokens": 10**9 + 15,
        "priced_n": 2,
        "unit_sums": [str(10**9 + 3), "4", str(10**9 + 5)],
        "unit_products": [
            str(10**18 + 9),
            str(2 * 10**9 + 6),
            str(10**18 + 15),
            "8",
            str(2 * 10**9 + 10),
            str(10**18 + 25),
        ],
        "reported_n": 1,
        "reported_sums": ["7", "10"],
        "reported_products": ["49", "70", "100"],
        "latency_buckets": [0, 231, 1102],
        "latency_counts": [1, 1, 1],
        "quality": [],
    }


def observation(at_ms: int, event_id: str = "e", **changed: Any) -> Fields:
    return {
        "event_id": event_id,
        "occurred_at_ms": at_ms,
        "source": "s",
        "tenant": "t",
        "mode": "prod",
        "role": "chat",
        "provider": "p",
        "model": "m",
        "metric": "quality",
        "n": 1,
        "hits": 1,
        **changed,
    }


def observed(*steps: tuple[Fields, bytes]) -> tuple[Meter, list[str]]:
    meter = Meter()
    return meter, [
        metered(meter, at(i, value), ("ModelQualityObserved", f))
        for i, (f, value) in enumerate(steps)
    ]


def test_observations_are_summed_per_metric_and_judged_as_invocations_are() -> None:
    meter, verdicts = observed(
        (observation(0, "a", n=5, hits=3), b"1"),
        (observation(1, "b", hits=0), b"2"),
        (observation(2, "c", metric="é", n=2, hits=2), b"3"),
        (observation(2, "d", metric="policy_compliance"), b"4"),
        (observation(0, "a", n=5, hits=3), b"1"),
        (observation(0, "a", n=5, hits=4), b"5"),
        (observation(960_001, "e"), b"6"),
        (observation(299_999, "f"), b"7"),
    )
    assert verdicts == ["applied"] * 4 + ["duplicate", "conflict", "applied", "late"]
    (fact,) = fact_models(meter.panes["dialogue", "PRODUCTION", 0])
    assert fact["quality"] == [
        {"metric": "policy_compliance", "n": 1, "hits": 1},
        {"metric": "quality", "n": 6, "hits": 3},
        {"metric": "é", "n": 2, "hits": 2},
    ]
    assert fact["outcomes"] == [0] * 9
    assert (fact["unit_sums"], fact["latency_buckets"]) == (["0"] * 3, [])


def test_models_beyond_the_bound_are_counted_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each role, mode and pane by itself, and those that came first keep their names."""
    monkeypatch.setattr(recompute, "MODELS_PER_PANE", 2)
    models = ["b", "a", "c", "b", "d", "a"]
    steps = [(invocation(i, f"e{i}", model=m), b"%d" % i) for i, m in enumerate(models)]
    elsewhere = (invocation(9, "x", model="c", mode="qa"), b"x")
    meter, _ = folded(*steps, elsewhere)
    found = fact_models(meter.panes["dialogue", "PRODUCTION", 0])
    assert [(f["provider"], f["model"], sum(f["outcomes"])) for f in found] == [
        ("p", "a", 2),
        ("p", "b", 2),
        ("~", "~", 2),
    ]
    assert list(meter.panes["dialogue", "TEST", 0]) == [("p", "c")]


def test_metrics_beyond_the_bound_are_counted_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each model by itself, and those that came first keep their names."""
    monkeypatch.setattr(recompute, "METRICS_PER_MODEL", 2)
    told = ["mz", "na", "my", "mx", "mw", "mz", "mx"]
    meter, _ = observed(
        *((observation(i, f"e{i}", model=one[0], metric=one[1]), b"%d" % i)
          for i, one in enumerate(told))
    )  # fmt: skip
    found = fact_models(meter.panes["dialogue", "PRODUCTION", 0])
    assert [[(q["metric"], q["n"]) for q in f["quality"]] for f in found] == [
        [("y", 1), ("z", 2), ("~", 3)],
        [("a", 1)],
    ]


def test_the_meter_and_verify_bound_facts_alike() -> None:
    assert PartitionFold.most_models == recompute.MODELS_PER_PANE
    assert PartitionFold.most_metrics == recompute.METRICS_PER_MODEL


def test_another_generation_may_cut_time_otherwise() -> None:
    meter = Meter(Rules(generation=3, pane_ms=60_000, bound_ms=0, grace_ms=1_000))
    events = [(invocation(0, "a"), "applied"), (invocation(61_000, "b"), "applied"),
              (invocation(59_999, "c"), "applied"), (invocation(61_001, "d"), "applied"),
              (invocation(59_999, "e"), "late")]  # fmt: skip
    for i, (f, verdict) in enumerate(events):
        assert metered(meter, at(i, b"%d" % i), ("LlmInvocation", f)) == verdict, f["event_id"]
    assert meter.watermark_ms == 61_000


def test_what_was_added_can_be_taken_away_without_a_trace() -> None:
    """A pane that leaves the window (M5)."""
    first, second, both = Totals(), Totals(), Totals()
    first.count(invocation(0, latency_us=7, reported_cost_picousd=9))
    second.count(invocation(0, outcome="TIMEOUT"))
    second.count(invocation(0, latency_us=7))
    first.observe(observation(0, n=3, hits=2))
    second.observe(observation(0, metric="other"))
    both.add(first)
    both.add(second)
    both.subtract(first)
    assert both == second


def test_models_of_a_fact_stand_in_the_order_of_their_bytes() -> None:
    pairs = [("p", "z"), ("é", "a"), ("p", "B"), ("P", "q")]
    steps = [
        (invocation(0, f"e{i}", provider=p, model=m), b"%d" % i) for i, (p, m) in enumerate(pairs)
    ]
    meter, _ = folded(*steps)
    models = fact_models(meter.panes["dialogue", "PRODUCTION", 0])
    assert [(f["provider"], f["model"]) for f in models] == [
        ("P", "q"),
        ("p", "B"),
        ("p", "z"),
        ("é", "a"),
    ]


def test_buckets_begin_at_their_lower_limit_and_end_with_the_overflow() -> None:
    assert [bucket(x) for x in (1, 2, 100, 3_600_000_000, 10**12)] == [0, 35, 231, 1101, 1102]


def card(offset: int, unit: str, price: int, **changed: Any) -> tuple[Record, Fields]:
    fields = {
        "provider": "p",
        "model": "m",
        "unit": unit,
        "price_picousd_per_million": price,
        "valid_from_ms": 0,
        "valid_to_ms": None,
        "version": 1,
    }
    record = Record("rate.card.updated", 0, offset, changed.pop("append_ms", 0), b"k", b"")
    return record, {**fields, **changed}


def cards(*made: tuple[Record, Fields]) -> Cards:
    found = Cards()
    for record, fields in made:
        found.add(record, fields)
    return found


def test_example_of_m8_costs_525_300_000_picousd() -> None:
    """1,234 input tokens at 0.15 USD and 567 output tokens at 0.60 USD per million."""
    prices = cards(card(0, "INPUT_TOKEN", 150 * 10**9), card(1, "OUTPUT_TOKEN", 600 * 10**9))
    f = invocation(0, input_tokens=1234, cached_tokens=0, output_tokens=567)
    assert card_cost(prices, f, append_ms=1) == 525_300_000


def test_a_cost_is_rounded_once_half_to_even() -> None:
    prices = cards(card(0, "INPUT_TOKEN", 250_000), card(1, "OUTPUT_TOKEN", 250_000))
    halves = [(1, 1, 0), (3, 3, 2), (5, 5, 2), (1, 0, 0), (3, 0, 1)]
    for input_tokens, output_tokens, cost in halves:
        f = invocation(0, input_tokens=input_tokens, cached_tokens=0, output_tokens=output_tokens)
        assert card_cost(prices, f, append_ms=1) == cost, (input_tokens, output_tokens)


def test_the_card_in_force_is_the_highest_version_known_before_the_invocation() -> None:
    prices = cards(
        card(0, "INPUT_TOKEN", 1, version=2),
        card(1, "INPUT_TOKEN", 2, version=2),
        card(2, "INPUT_TOKEN", 3, version=1),
        card(3, "INPUT_TOKEN", 4, version=9, valid_from_ms=100, valid_to_ms=200),
        card(4, "INPUT_TOKEN", 5, version=99, append_ms=50),
    )

    def price(at_ms: int, append_ms: int) -> int | None:
        return prices.price("p", "m", "INPUT_TOKEN", at_ms, before_append_ms=append_ms)

    assert price(99, 50) == 2  # appended strictly before; of equal versions the later offset
    assert price(100, 50) == 4
    assert price(200, 50) == 2
    assert price(0, 51) == 5
    assert price(0, 0) is None
    assert prices.price("p", "m", "INPUT_TOKEN", 0, before_offset=1) == 1
    assert prices.price("p", "other", "INPUT_TOKEN", 0) is None


def test_the_first_record_of_an_id_counts_and_repeats_do_not() -> None:
    """Same body or other; a version of a policy, say, is a number among the first ones."""
    taken: list[int] = []
    take = first_of_id(lambda record, _: taken.append(record.offset))
    head = {"tenant": None, "source": "s", "event_id": "e"}
    for offset, other in enumerate(({}, {}, {"source": "t"}, {"tenant": "x"}, {"event_id": "f"})):
        take(Record("rate.card.updated", 0, offset, 0, b"k", b""), {**head, **other})
    take(Record("rate.card.updated", 1, 9, 0, b"k", b""), head)  # each partition by itself
    assert taken == [0, 2, 3, 4, 9]


def test_a_unit_without_a_card_leaves_the_cost_open_unless_it_is_not_used() -> None:
    prices = cards(card(0, "INPUT_TOKEN", 10**6))
    f = invocation(0, input_tokens=4, cached_tokens=0, output_tokens=0)
    assert card_cost(prices, f, append_ms=1) == 4
    assert card_cost(prices, {**f, "output_tokens": 1}, append_ms=1) is None


def test_example_of_m10_hour_ten() -> None:
    """e1 twice, e2, e3 late, e4 without a card, e5 of the next hour: 528,300,000 pUSD, n 4."""
    log: list[tuple[Fields, bytes]] = [
        (invocation(10 * HOUR + 900_000, "e1", reported_cost_picousd=525_300_000), b"1"),
        (invocation(11 * HOUR - 1, "e2", reported_cost_picousd=1_000_000), b"2"),
        (invocation(10 * HOUR + 900_000, "e1", reported_cost_picousd=525_300_000), b"1"),
        (invocation(11 * HOUR + 1_200_000, "far", reported_cost_picousd=5), b"f"),
        (invocation(10 * HOUR + 1_200_000, "e3", reported_cost_picousd=2_000_000), b"3"),
        (invocation(10 * HOUR + 1_800_000, "e4"), b"4"),
        (invocation(11 * HOUR, "e5", reported_cost_picousd=9), b"5"),
    ]
    meter, ledger, n, unpriced, cost = Meter(), Ledger(), 0, 0, 0
    verdicts: Counter[str] = Counter()
    for i, (f, value) in enumerate(log):
        mine: Decoded = ("LlmInvocation", f)
        in_hour = period_start("HOUR", f["occurred_at_ms"]) == 10 * HOUR
        verdicts[metered(meter, at(i, value), mine)] += in_hour
        if charged(ledger, at(i, value), mine) != "applied" or not in_hour:
            continue
        reported = f["reported_cost_picousd"]
        bill = card_cost(Cards(), f, 0) if reported is None else reported
        n, unpriced, cost = n + 1, unpriced + (bill is None), cost + (bill or 0)
    assert (cost, n, unpriced) == (528_300_000, 4, 1)
    assert verdicts["late"] >= 1


def test_the_ledger_knows_ids_for_ever_and_per_source() -> None:
    ledger = Ledger()
    far = invocation(100 * HOUR, "a")

    def step(value: bytes, f: Fields) -> str:
        return charged(ledger, at(0, value), ("LlmInvocation", f))

    assert step(b"1", invocation(0, "a")) == "applied"
    assert step(b"1", far) == "duplicate"
    assert step(b"2", far) == "conflict"
    assert step(b"1", {**far, "source": "other"}) == "applied"
    assert step(b"1", {**far, "tenant": "other"}) == "applied"
    assert charged(ledger, at(0), "null_key") == "dead_lettered"
    assert charged(ledger, at(0), ("ClockTick", {})) == "control"


def test_periods_are_aligned_in_utc() -> None:
    at_ms = 1_709_210_096_789  # 2024-02-29 12:34:56.789
    assert period_start("HOUR", at_ms) == 1_709_208_000_000
    assert period_start("DAY", at_ms) == 1_709_164_800_000
    assert period_start("MONTH", at_ms) == 1_706_745_600_000
    assert period_start("MONTH", 1_709_251_200_000) == 1_709_251_200_000


def test_names_are_made_canonical_and_unknown_ones_stay() -> None:
    assert [canonical_mode(m) for m in ("Prod", "QA", "mars", None)] == [
        "PRODUCTION",
        "TEST",
        "mars",
        "",
    ]
    assert [canonical_role(r) for r in ("CHAT", "Code", "juggling")] == [
        "dialogue",
        "code",
        "juggling",
    ]


# Profiles


def change(event_id: str = "e", **changed: Any) -> Fields:
    return {
        "event_id": event_id,
        "scope": "system",
        "role": "code",
        "deployment_mode": "TEST",
        "action": "SET",
        "model": "p/m",
        "fallbacks": [],
        "base_url": "",
        "temperature": 0.2,
        "max_tokens": None,
        "extra": "{}",
        "credential_ref": None,
        "expected_version": None,
        **changed,
    }


KEY = Record("model.profile.updated", 0, 0, 0, b"system/code/TEST", b"")


def test_the_first_with_the_expected_version_wins() -> None:
    row = Profile()
    assert profile_step(row, KEY, change("a", expected_version=0)) == ("applied", None)
    assert profile_step(row, KEY, change("b", expected_version=0)) == ("CONFLICT", None)
    assert profile_step(row, KEY, change("a", model="q/m")) == ("ignored", None)
    assert profile_step(row, KEY, change("c", action="DELETE")) == ("applied", None)
    assert (row.version, row.fields) == (2, None)
    assert profile_step(row, KEY, change("d", expected_version=2)) == ("applied", None)
    assert row.version == 3


def test_a_row_remembers_the_last_64_ids() -> None:
    row = Profile()
    for i in range(65):
        profile_step(row, KEY, change(f"e{i}"))
    assert profile_step(row, KEY, change("e1"))[0] == "ignored"
    assert profile_step(row, KEY, change("e0"))[0] == "applied"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scope", "tenant:"),
        ("scope", "system\n"),
        ("model", "no-slash"),
        ("model", "p/" + "x" * 127),
        ("model", "p/../m"),
        ("base_url", "ftp://host"),
        ("base_url", "http://a b"),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("max_tokens", 0),
        ("extra", "[]"),
        ("extra", "{"),
        ("extra", '{"a":' * 1000 + "1" + "}" * 1000),
        ("extra", '{"a":' * 32 + "1" + "}" * 32),
        ("credential_ref", "plain"),
    ],
)
def test_an_ill_formed_profile_is_invalid_at_its_field(field: str, value: Any) -> None:
    row = Profile()
    f = change(**{field: value})
    key = f"{f['scope']}/{f['role']}/{f['deployment_mode']}".encode()
    assert profile_step(row, KEY._replace(key=key), f) == ("INVALID", field)
    assert row.version == 0


def test_the_key_must_be_that_of_the_profile() -> None:
    assert profile_step(Profile(), KEY._replace(key=b"other"), change()) == ("INVALID", "key")


def test_json_of_depth_31_with_a_leaf_is_taken() -> None:
    f = change(extra='{"a":' * 31 + "1" + "}" * 31)
    assert profile_step(Profile(), KEY, f) == ("applied", None)


VALUES: dict[str, tuple[object, ...]] = {
    "scope": ("system", "staged:mode", "tenant:t", "user:t/u", "user:t", "tenant:a/b", "x"),
    "action": ("SET", "DELETE"),
    "model": ("p/m", "", "p/", "/m", "p//m", "p/m n", "p/é"),
    "fallbacks": ([], ["p/a", "p/b"], ["p/a", "p"]),
    "base_url": ("", "https://h/x", "http://", "http://a\x1cb", "http://a\u2003b", "x", "h" * 5000),
    "temperature": (0.0, 2.0, 2.0000001, -0.0, -1e-9),
    "max_tokens": (None, 1, 0, 10**9, 10**9 + 1),
    "extra": (
        "{}",
        "",
        "[]",
        "null",
        '{"a": NaN}',
        "{" * 40,
        '{"a":' * 33 + "1" + "}" * 33,
        " {} ",
    ),
    "credential_ref": (None, "env://X", "vault://a\nb", "env://", "file://x"),
    "expected_version": (None, 0, 1, 2),
    "key_suffix": ("", "", "", "x"),
}


@pytest.mark.parametrize("seed", range(30))
def test_the_agents_fold_and_verify_take_every_change_alike(seed: int) -> None:
    """Random changes of one key, mostly good: verdict, field, version and ids of both sides."""
    chance = random.Random(seed)
    mine, theirs = Profile(), None
    for i in range(150):
        f = change(f"e{chance.randrange(120)}")
        for name in chance.sample(sorted(VALUES), chance.choice([0, 1, 1, 2])):
            f[name] = chance.choice(VALUES[name])
        suffix = str(f.pop("key_suffix", ""))
        key = f"{f['scope']}/{f['role']}/{f['deployment_mode']}{suffix}".encode()
        record = Record("model.profile.updated", 0, i, 0, key, b"")
        head = {"occurred_at_ms": i, "source": "s", "actor": "a", "tenant": None, "trace_id": None}
        event = ModelProfileUpdated.model_validate({**f, **head})
        outcome = profiles.evolve(
            theirs, Recorded(event, Position(record.topic, 0, i, 0), record.key)
        )
        theirs = outcome.row
        verdict, field = profile_step(mine, record, {**f, **head})
        wanted: tuple[str, str | None] = ("applied", None)
        if outcome.verdict == "repeated":
            wanted = ("ignored", None)
        elif outcome.rejected is not None:
            kind = outcome.rejected.kind.value
            wanted = (kind, outcome.rejected.field if kind == "INVALID" else None)
        assert (verdict, field) == wanted, f
        assert (mine.version, tuple(mine.ids)) == (theirs.version, theirs.event_ids)
        assert (mine.fields is None) == (theirs.profile is None)
