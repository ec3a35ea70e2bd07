"""Rankings on request: of one tenant or of all together, at any past moment, from the panes in the
projector's tables, by the code that makes the published ones.

Only closed panes count, as in a final: nothing is added to them any more, so the same question
always has the same answer, and without a tenant it is that of the published final.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from processors.benchmarks import Benchmarks
from processors.digest import state_hash
from processors.evidence import Cards, Panel, panel_of
from processors.scorer import Policies
from processors.scoring import MOST_ENTRIES, measure, rank
from processors.windows import Windowing
from schemas import (
    ModelProfileScored,
    Position,
    RateCardUpdated,
    Recorded,
    SlmBenchmarkResults,
)
from schemas.envelope import Event
from schemas.model_profile import InputPosition, RankingStatus
from schemas.slm_metrics import MetricCount, ModelTotals
from schemas.values import OUTCOMES, canonical_mode, canonical_role, derived_id
from streams.topics import (
    LLM_INVOCATION,
    MODEL_QUALITY_OBSERVED,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    SLM_BENCHMARK_RESULTS,
    Topic,
)
from tools.published import Ask, Row, policy_of, quoted

MOST: Final = 100_000
UNITS: Final = ("input", "cached", "output")
UNIT_SUMS: Final = tuple(f"priced_{unit}" for unit in UNITS)
UNIT_PRODUCTS: Final = tuple(f"priced_{a}_{b}" for i, a in enumerate(UNITS) for b in UNITS[i:])
REPORTED_SUMS: Final = ("reported_cost", "reported_tokens")
REPORTED_PRODUCTS: Final = ("reported_cost_cost", "reported_cost_tokens", "reported_tokens_tokens")
COUNTS: Final = tuple(outcome.value.lower() for outcome in OUTCOMES)
TOKENS: Final = ("input_tokens", "cached_tokens", "output_tokens")
SUMMED: Final = (
    *(*COUNTS, *TOKENS, "priced_n", *UNIT_SUMS, *UNIT_PRODUCTS),
    *("reported_n", *REPORTED_SUMS, *REPORTED_PRODUCTS),
)


@dataclass(frozen=True, slots=True)
class Basis:
    """What all rankings of a moment share: how panes are cut, how far they are closed, and the
    statements as far as they have been filed."""

    windowing: Windowing
    closed_ms: int  # the newest closed pane
    cards: Cards = field(default_factory=Cards)
    policies: Policies = field(default_factory=Policies)
    benchmarks: Benchmarks = field(default_factory=Benchmarks)
    keys: set[tuple[str, str]] = field(default_factory=set)
    inputs: tuple[InputPosition, ...] = ()


def basis(ask: Ask, at_ms: int | None = None) -> Basis | None:
    """What rankings of a moment rest on; None: no pane is closed by then. at_ms: None: now."""
    rules = ask("SELECT pane_ms, bound_ms, grace_ms FROM pane_rule", 1)
    sources = ", ".join(quoted(t.name) for t in (LLM_INVOCATION, MODEL_QUALITY_OBSERVED))
    newest = ask(
        f"SELECT min(newest_ms) AS newest_ms FROM projection_offsets WHERE topic IN ({sources})", 1
    )[0]["newest_ms"]
    if not rules or newest is None:
        return None
    windowing = Windowing(**rules[0])
    watermark = windowing.watermark_after(newest)
    if at_ms is not None:
        watermark = min(watermark, at_ms)
    statements = (RATE_CARD_UPDATED, SCORING_POLICY_UPDATED, SLM_BENCHMARK_RESULTS)
    names = ", ".join(quoted(topic.name) for topic in statements)
    positions = ask(
        "SELECT topic, partition, next_offset FROM projection_offsets"
        f" WHERE topic IN ({names}) ORDER BY topic, partition",
        MOST,
    )
    found = Basis(
        windowing,
        windowing.last_closed(watermark),
        inputs=tuple(InputPosition.model_validate(row) for row in positions),
    )
    for row in ask("SELECT * FROM counted_policies ORDER BY src_partition, src_offset", MOST):
        found.keys.add(found.policies.add(row["src_offset"], policy_of(row).event))
    for row in ask("SELECT * FROM counted_rate_cards ORDER BY src_partition, src_offset", MOST):
        found.cards.add(_recorded(RateCardUpdated, RATE_CARD_UPDATED, row))
    for row in ask("SELECT * FROM counted_benchmarks ORDER BY src_partition, src_offset", MOST):
        found.benchmarks.add(_recorded(SlmBenchmarkResults, SLM_BENCHMARK_RESULTS, row))
    return found


def _recorded(event: Any, topic: Topic, row: Row) -> Recorded[Any]:
    fields = {name: value for name, value in row.items() if name in event.model_fields}
    at = Position(topic.name, row["src_partition"], row["src_offset"], row["append_ms"])
    made: Event = event.model_validate(fields)
    return Recorded(made, at, None)


def ranking(
    ask: Ask, on: Basis, role: str, mode: str, tenant: str | None
) -> ModelProfileScored | None:
    """The ranking of a role and mode, names or aliases; None: no policy was in force, or there
    was no invocation in its window. tenant: None: all of them together."""
    role, mode = canonical_role(role), canonical_mode(mode)
    end = on.closed_ms + on.windowing.pane_ms
    found = on.policies.in_force((role, mode), end)
    if found is None:
        return None
    version, policy = found
    start = end - policy.window_panes * on.windowing.pane_ms
    panel = evidence(ask, on.cards, role, policy.evidence_modes, (start, end), tenant)
    if not panel:
        return None
    entries = rank(
        panel,
        policy,
        lambda who: measure(panel[who], policy.latency_percentile, policy.cost_unit),
        lambda who: on.benchmarks.prior(who, role, policy, end),
    )
    as_of = end + on.windowing.grace_ms
    return ModelProfileScored(
        event_id=derived_id("ranking.asked", role, mode, tenant or "", as_of, policy.event_id),
        occurred_at_ms=as_of,
        source="roster-rankings",
        tenant=tenant,
        mode=mode,
        role=role,
        deployment_mode=mode,
        status=RankingStatus.FINAL,
        as_of_ms=as_of,
        window_start_ms=start,
        window_end_ms=end,
        revision=0,
        generation=0,
        policy_event_id=policy.event_id,
        policy_version=version,
        marks=(),
        inputs=on.inputs,
        entries=entries[:MOST_ENTRIES],
        state_hash=state_hash(panel),
        omitted=max(0, len(entries) - MOST_ENTRIES),
    )


def rankings(
    ask: Ask, tenant: str | None, role: str | None, mode: str | None, at_ms: int | None = None
) -> list[ModelProfileScored]:
    """Those of every role and mode that has a policy, or of the given ones."""
    on = basis(ask, at_ms)
    if on is None:
        return []
    wanted_role = None if role is None else canonical_role(role)
    wanted_mode = None if mode is None else canonical_mode(mode)
    made = (
        ranking(ask, on, *key, tenant)
        for key in sorted(on.keys)
        if wanted_role in (None, key[0]) and wanted_mode in (None, key[1])
    )
    return [one for one in made if one is not None]


def evidence(
    ask: Ask,
    cards: Cards,
    role: str,
    modes: Sequence[str],
    window: tuple[int, int],
    tenant: str | None,
) -> Panel:
    """Evidence of all models in a window [start, end) of panes. modes: none: all of them."""
    tests = [
        f"m.role = {quoted(role)}",
        f"m.pane_start_ms >= {window[0]}",
        f"m.pane_start_ms < {window[1]}",
    ]
    if modes:
        names = ", ".join(quoted(name) for name in sorted({canonical_mode(m) for m in modes}))
        tests.append(f"m.mode IN ({names})")
    if tenant is not None:
        tests.append(f"m.tenant = {quoted(tenant)}")
    where = " AND ".join(tests)
    prices = "input_price, cached_price, output_price"
    # Panes of equal prices add up before they are priced: few rows, whatever the window.
    sums = ask(
        f"SELECT provider, model, min(m.pane_start_ms) AS pane_start_ms,"
        f" {', '.join(f'sum({name}) AS {name}' for name in SUMMED)}"
        f" FROM metrics_panes m JOIN pane_prices USING (provider, model, pane_start_ms)"
        f" WHERE {where} GROUP BY provider, model, {prices} ORDER BY ALL",
        MOST,
    )
    latency = {
        (row["provider"], row["model"]): (row["buckets"], row["counts"])
        for row in ask(
            "SELECT provider, model, list(bucket ORDER BY bucket) AS buckets,"
            " list(n ORDER BY bucket) AS counts FROM"
            " (SELECT provider, model, bucket, sum(n)::BIGINT AS n FROM latency_panes m"
            f" WHERE {where} GROUP BY ALL) GROUP BY ALL",
            MOST,
        )
    }
    quality: dict[tuple[str, str], list[MetricCount]] = {}
    for row in ask(
        "SELECT provider, model, metric, sum(n)::BIGINT AS n, sum(hits)::BIGINT AS hits"
        f" FROM quality_panes m WHERE {where} GROUP BY ALL ORDER BY ALL",
        MOST,
    ):
        counts = quality.setdefault((row["provider"], row["model"]), [])
        counts.append(MetricCount(metric=row["metric"], n=row["n"], hits=row["hits"]))
    facts = []
    for row in sums:  # what has no price goes with the first row of its model
        who = (row["provider"], row["model"])
        buckets, counted = latency.pop(who, ((), ()))
        facts.append((row["pane_start_ms"], totals(row, buckets, counted, quality.pop(who, ()))))
    return panel_of(facts, cards)


def totals(
    row: Row, buckets: Sequence[int], counts: Sequence[int], quality: Sequence[MetricCount]
) -> ModelTotals:
    """The sums of a model, from a row of its columns SUMMED and what has rows of its own."""

    def texts(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in names)

    return ModelTotals(
        provider=row["provider"],
        model=row["model"],
        outcomes=tuple(row[name] for name in COUNTS),
        **{name: row[name] for name in (*TOKENS, "priced_n", "reported_n")},
        unit_sums=texts(UNIT_SUMS),
        unit_products=texts(UNIT_PRODUCTS),
        reported_sums=texts(REPORTED_SUMS),
        reported_products=texts(REPORTED_PRODUCTS),
        latency_buckets=tuple(buckets),
        latency_counts=tuple(counts),
        quality=tuple(quality),
    )
