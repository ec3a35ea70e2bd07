"""Why a ranking is as it is: from the published record and its policy alone. Pure.

Everything in it stands in the record, or follows from it by the rules of processors/scoring.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import hypot
from typing import Any, Final

from processors.flips import Flip, flips
from processors.rational import double, e9
from processors.scoring import Z95, apart, units
from schemas.envelope import Recorded
from schemas.model_profile import LeaderState, ModelProfileScored, RankingEntry, ScoreTerm
from schemas.scoring_policy import CostUnit, ScoringPolicyUpdated
from schemas.values import BILLION

PLACED: Final = frozenset({"ranked", "provisional"})
WHOLE: Final = 10_000
SHARES: Final = frozenset({"quality", "reliability"})
Z: Final = float(Z95)


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a score. unit: of value and reference. ratio: reference / value, uncapped; None:
    the term has no reference, or the value is 0. credited: what is multiplied by the weight."""

    name: str
    value: float
    unit: str
    reference: float | None
    ratio: float | None
    floored: bool
    credited: float
    weight: int
    contribution: float
    standard_error: float
    n: int


@dataclass(frozen=True, slots=True)
class Margin:
    """Lead over the next model with its 95 % interval. certain: the lead exceeds its error."""

    next: str
    lead: float
    low: float
    high: float
    certain: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """A test that a model did not pass. short_by: how much of value there lacks to limit; None:
    value and limit are not numbers that could be compared."""

    test: str
    value: float | None
    limit: float | None
    short_by: float | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a ranking. low, high: the 95 % interval of its score."""

    model: str
    status: str
    reason: str | None
    rank: int | None
    score: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    score_raw: float | None
    terms: tuple[Term, ...]
    margin: Margin | None
    failed: tuple[Failed, ...]
    flags: tuple[str, ...]
    quality: Mapping[str, Any]
    reliability: Mapping[str, Any]
    measured: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A ranking, explained. ties: models that share a rank. flips: see between."""

    event_id: str
    role: str
    mode: str
    tenant: str | None
    status: str
    as_of_ms: int
    revision: int
    generation: int
    state_hash: str
    omitted: int
    window: Mapping[str, int]
    marks: tuple[Mapping[str, Any], ...]
    inputs: tuple[Mapping[str, Any], ...]
    policy: Mapping[str, Any]
    leader: Mapping[str, Any] | None
    models: tuple[Model, ...]
    ties: tuple[tuple[str, ...], ...]
    between: tuple[str, str] | None
    flips: tuple[Flip, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def explain(record: ModelProfileScored, policy: Recorded[ScoringPolicyUpdated]) -> Explanation:
    """Everything that a ranking follows from, and what would change its first place. policy: the
    one that the record names. Raises ValueError if it is another."""
    rules = policy.event
    if rules.event_id != record.policy_event_id:
        raise ValueError(
            f"the policy is {rules.event_id}; the ranking was made by {record.policy_event_id}"
        )
    placed = [e for e in record.entries if e.status in PLACED]
    follows = dict(zip(map(_name, placed), placed[1:], strict=False))
    first = placed[:2] if len(placed) > 1 else None
    return Explanation(
        event_id=record.event_id,
        role=record.role,
        mode=record.deployment_mode,
        tenant=record.tenant,
        status=record.status.value,
        as_of_ms=record.as_of_ms,
        revision=record.revision,
        generation=record.generation,
        state_hash=record.state_hash,
        omitted=record.omitted,
        window={
            "start_ms": record.window_start_ms,
            "end_ms": record.window_end_ms,
            "panes": rules.window_panes,
        },
        marks=tuple(mark.model_dump() for mark in record.marks),
        inputs=tuple(position.model_dump() for position in record.inputs),
        policy=_policy(record, policy),
        leader=_leader(record, rules),
        models=tuple(_model(e, follows.get(_name(e)), rules) for e in record.entries),
        ties=_ties(placed),
        between=None if first is None else (_name(first[0]), _name(first[1])),
        flips=() if first is None else flips(first[0], first[1], rules),
    )


def _name(entry: RankingEntry) -> str:
    return f"{entry.provider}/{entry.model}"


def _policy(record: ModelProfileScored, policy: Recorded[ScoringPolicyUpdated]) -> dict[str, Any]:
    rules, at = policy.event, policy.at
    header = {"mode", "tenant", "persona", "trace_id", "budget_trace_id"}
    return {
        **rules.model_dump(mode="json", exclude=header),
        "version": record.policy_version,
        "topic": at.topic,
        "partition": at.partition,
        "offset": at.offset,
        "append_ms": at.append_ms,
    }


def _leader(record: ModelProfileScored, rules: ScoringPolicyUpdated) -> dict[str, Any] | None:
    """Who leads after hysteresis, who is about to, and what the latter still needs."""
    after = record.leader
    if after is None:
        return None
    challenger = _pair(after.challenger_provider, after.challenger_model)
    wait = (
        None
        if after.since_ms is None
        else max(0, after.since_ms + rules.hysteresis_min_ms - record.as_of_ms)
    )
    return {
        "model": _pair(after.provider, after.model),
        "since_ms": after.since_ms,
        "challenger": challenger,
        "closes": after.closes,
        "closes_needed": rules.hysteresis_closes,
        "wait_ms": wait,
        "least_margin": double(rules.hysteresis_margin_e9),
        "before": None if record.leader_before is None else _before(record.leader_before),
    }


def _before(state: LeaderState) -> dict[str, Any]:
    return {
        "model": _pair(state.provider, state.model),
        "since_ms": state.since_ms,
        "challenger": _pair(state.challenger_provider, state.challenger_model),
        "closes": state.closes,
    }


def _pair(provider: str | None, model: str | None) -> str | None:
    return None if provider is None or model is None else f"{provider}/{model}"


def _model(
    entry: RankingEntry, following: RankingEntry | None, rules: ScoringPolicyUpdated
) -> Model:
    score, error = entry.score, entry.score_se
    half = None if error is None else Z * error
    return Model(
        model=_name(entry),
        status=entry.status,
        reason=entry.reason,
        rank=entry.rank,
        score=score,
        standard_error=error,
        low=None if score is None or half is None else score - half,
        high=None if score is None or half is None else score + half,
        score_raw=entry.score_raw,
        terms=tuple(_term(t, rules) for t in entry.terms),
        margin=None if following is None else margin(entry, following),
        failed=failed(entry, rules),
        flags=entry.flags,
        quality={
            "value": entry.quality,
            "n": entry.quality_n,
            "hits": entry.quality_hits,
            "prior": entry.quality_prior,
            "prior_only": entry.prior_only,
            "benchmarks": [part.model_dump() for part in entry.benchmarks],
        },
        reliability={
            "value": entry.reliability,
            "parts": [part.model_dump() for part in entry.parts],
            "success_low": entry.success_low,
            "success_high": entry.success_high,
        },
        measured=entry.model_dump(
            include={
                "invocations",
                "complete",
                "trials",
                "hits",
                "rate_limited",
                "latency_us",
                "latency_low_us",
                "latency_high_us",
                "cost_picousd_per_request",
                "cost_picousd_per_1k_tokens",
            }
        ),
    )


def _term(term: ScoreTerm, rules: ScoringPolicyUpdated) -> Term:
    value = Fraction(term.value)
    unit = "share"
    if term.name == "cost":
        per = "request" if rules.cost_unit is CostUnit.PER_REQUEST else "1k_tokens"
        unit = f"picousd_per_{per}"
    elif term.name == "latency":
        unit = f"us_p{rules.latency_percentile}"
    ratio: Fraction | None = None
    if term.name in SHARES:
        credited = value
    else:
        most = Fraction(rules.max_ratio_percent, 100)
        ratio = None if value == 0 or term.reference is None else Fraction(term.reference) / value
        credited = most if ratio is None else min(ratio, most)
    return Term(
        name=term.name,
        value=term.value,
        unit=unit,
        reference=term.reference,
        ratio=None if ratio is None else _float(ratio),
        floored=term.floored,
        credited=_float(credited),
        weight=term.weight,
        contribution=term.contribution,
        standard_error=term.standard_error,
        n=term.n,
    )


def _float(value: Fraction) -> float:
    return double(e9(value.numerator, value.denominator))


def margin(entry: RankingEntry, following: RankingEntry) -> Margin:
    """Lead of a scored entry over another that follows it."""
    score, error = units(entry)
    less, its_error = units(following)
    half = Z * hypot(error, its_error)
    lead = score - less
    return Margin(
        next=_name(following),
        lead=double(lead),
        low=double(round(lead - half)),
        high=double(round(lead + half)),
        certain=apart(score, error, less, its_error),
    )


def _ties(placed: Sequence[RankingEntry]) -> tuple[tuple[str, ...], ...]:
    shared: dict[int | None, list[str]] = {}
    for entry in placed:
        shared.setdefault(entry.rank, []).append(_name(entry))
    return tuple(tuple(names) for names in shared.values() if len(names) > 1)


def failed(entry: RankingEntry, rules: ScoringPolicyUpdated) -> tuple[Failed, ...]:
    """Every test that a model fails, in the order in which they decide its status."""
    found = []
    if entry.complete == 0:
        meaning = f"none of its {entry.invocations} invocations had a complete response"
        found.append(Failed("no_complete_response", 0, 1, 1, meaning))
    elif entry.status == "unrankable" and entry.reason is not None:
        meaning = UNRANKABLE.get(entry.reason, entry.reason)
        found.append(Failed(entry.reason, None, None, None, meaning))
    for test, value, least in (
        ("quality_below_gate", entry.quality, rules.min_quality),
        ("reliability_below_gate", entry.reliability, rules.min_reliability),
    ):
        if value is None:
            continue
        short_e9 = least * (BILLION // WHOLE) - round(value * BILLION)
        if short_e9 > 0 or entry.reason == test:  # short by less than the rounding: 0
            short = double(max(0, short_e9))
            meaning = "below the least that the policy admits"
            found.append(Failed(test, value, least / WHOLE, short, meaning))
    for test, n, needed, meaning in (
        ("few_samples", entry.complete, rules.min_samples, "complete responses"),
        ("few_trials", entry.trials, rules.min_trials, "trials"),
    ):
        if n < needed and entry.complete:
            found.append(Failed(test, n, needed, needed - n, f"too few {meaning}"))
    if entry.prior_only:
        meaning = "no benchmark and no observation speaks of its quality: the policy's prior stands"
        found.append(Failed("prior_only", entry.quality_n, 1, 1, meaning))
    if "interval_is_range" in entry.flags:
        meaning = "too few responses for an interval of the percentile: it spans all of them"
        found.append(Failed("latency_interval", None, None, None, meaning))
    return tuple(found)


UNRANKABLE: Final = {
    "unpriced": "a unit that it used has no rate card: `roster cards set` gives it one",
    "no_tokens": "its responses have no tokens to divide the cost by",
    "no_reliability": "no part of reliability that has a share was tried",
}
