"""History scored again under other weights, prices, models or windows: who would have led. Pure.

Over panes it is the code of the published rankings that scores, with hysteresis. Over published
rankings alone only their entries can be scored again, and who leads by score is compared.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from processors.benchmarks import Prior
from processors.evidence import Evidence, Panel, Who, add_panel
from processors.flips import Changes, Weights, score_of
from processors.leader import next_leader
from processors.rational import double, round_div
from processors.router import limits_of, missed
from processors.scoring import measure, rank
from schemas.model_profile import LeaderState, ModelProfileScored, RankingEntry
from schemas.scoring_policy import ScoringPolicyUpdated

WHOLE: Final = 10_000
PLACED: Final = frozenset({"ranked", "provisional"})


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is assumed to be otherwise. prices: provider/model -> ten-thousandths of what it cost.
    drop: provider/model that is not there. window_panes: None: as the policies say."""

    weights: Weights | None = None
    prices: Mapping[str, int] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()
    window_panes: int | None = None

    def policy(self, policy: ScoringPolicyUpdated) -> ScoringPolicyUpdated:
        """A policy under them."""
        changes: dict[str, int] = {}
        if self.weights is not None:
            names = ("quality", "cost", "latency", "reliability")
            changes = {f"weight_{n}": w for n, w in zip(names, self.weights, strict=True)}
        if self.window_panes is not None:
            changes["window_panes"] = self.window_panes
        return policy.model_copy(update=changes)

    def panel(self, panel: Panel) -> Panel:
        """Evidence under them: costs scale linearly, rounded at 1e-6 pico-USD."""
        return {
            who: _repriced(evidence, self.prices.get(_name(who), WHOLE))
            for who, evidence in panel.items()
            if _name(who) not in self.drop
        }


def _name(who: Who) -> str:
    return f"{who[0]}/{who[1]}"


def _repriced(evidence: Evidence, factor: int) -> Evidence:
    if factor == WHOLE:
        return evidence
    return replace(
        evidence,
        cost=round_div(evidence.cost * factor, WHOLE),
        cost_cost=round_div(evidence.cost_cost * factor**2, WHOLE**2),
        cost_tokens=round_div(evidence.cost_tokens * factor, WHOLE),
    )


@dataclass(frozen=True, slots=True)
class Led:
    """Who led, what its responses cost, and which limits of the policy it missed."""

    model: str | None
    score: float | None
    cost_picousd_per_1k_tokens: float | None
    missed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One close: as it was, and as it would have been."""

    as_of_ms: int
    was: Led
    would: Led


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive closes with the same leaders. to_ms: as_of of the last of them."""

    from_ms: int
    to_ms: int
    was: str | None
    would: str | None
    closes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Over all closes. changes: of the leader. cost: mean over those closes where it is known;
    breaches: closes at which the leader missed a limit; None: no policy has one."""

    changes: int
    cost_picousd_per_1k_tokens: float | None
    breaches: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What would have been. differing: closes with another leader."""

    method: str
    closes: int
    differing: int
    was: Totals
    would: Totals
    spans: tuple[Span, ...]
    steps: tuple[Step, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


# --- over panes


@dataclass(frozen=True, slots=True)
class Close:
    """A pane that closes, with the policy in force at its end."""

    as_of_ms: int
    end_ms: int
    policy: ScoringPolicyUpdated


class Window:
    """A window that moves along panes: those that enter are added, those that leave taken away."""

    def __init__(self, panes: Mapping[int, Panel]) -> None:
        """panes: by their start."""
        self._panes, self._starts = panes, sorted(panes)
        self._held: Panel = {}
        self._from, self._to = 0, 0

    def at(self, start_ms: int, end_ms: int) -> Panel:
        """The panel of [start, end); not to be changed."""
        if start_ms < self._from or end_ms < self._to or start_ms >= self._to:
            self._held, self._from, self._to = {}, start_ms, start_ms
        for pane in self._starts:
            if self._to <= pane < end_ms:
                add_panel(self._held, self._panes[pane])
            elif self._from <= pane < start_ms:
                add_panel(self._held, self._panes[pane], -1)
        self._from, self._to = start_ms, end_ms
        return self._held


def over_panes(
    closes: Iterable[Close],
    panes: Mapping[int, Panel],
    pane_ms: int,
    prior: Callable[[Who, ScoringPolicyUpdated, int], Prior],
    assumed: Assumptions,
    before: LeaderState | None,
) -> Iterator[Step]:
    """Every close, scored twice. panes: all that any window needs. prior: of a model, by a policy,
    at a time. before: who led when it begins."""
    windows = Window(panes), Window(panes)
    was, would = before, before
    for close in closes:
        rules = assumed.policy(close.policy)
        start, other = (
            close.end_ms - policy.window_panes * pane_ms for policy in (close.policy, rules)
        )
        panel = windows[0].at(start, close.end_ms)
        if not panel:
            continue
        changed = assumed.panel(windows[1].at(other, close.end_ms))
        entries = _ranked(panel, close.policy, close.end_ms, prior)
        altered = _ranked(changed, rules, close.end_ms, prior)
        was = next_leader(was, entries, close.policy, close.as_of_ms)
        would = next_leader(would, altered, rules, close.as_of_ms)
        yield Step(
            close.as_of_ms,
            _led(_entry(entries, was), close.policy),
            _led(_entry(altered, would), close.policy),
        )


def _ranked(
    panel: Panel,
    policy: ScoringPolicyUpdated,
    end_ms: int,
    prior: Callable[[Who, ScoringPolicyUpdated, int], Prior],
) -> tuple[RankingEntry, ...]:
    return rank(
        panel,
        policy,
        lambda who: measure(panel[who], policy.latency_percentile, policy.cost_unit),
        lambda who: prior(who, policy, end_ms),
    )


def _entry(entries: Iterable[RankingEntry], state: LeaderState) -> RankingEntry | None:
    who = state.provider, state.model
    return next((e for e in entries if (e.provider, e.model) == who), None)


def _led(entry: RankingEntry | None, policy: ScoringPolicyUpdated) -> Led:
    """policy: the real one, whose limits stay."""
    if entry is None:
        return Led(None, None, None, ())
    return Led(
        f"{entry.provider}/{entry.model}",
        entry.score,
        entry.cost_picousd_per_1k_tokens,
        missed(entry, limits_of(policy)),
    )


# --- over published rankings


def over_published(
    finals: Iterable[tuple[ModelProfileScored, ScoringPolicyUpdated]], assumed: Assumptions
) -> Iterator[Step]:
    """Every final, in order: its first by score, and the first by score if its entries are scored
    again. Raises ValueError for another window: entries do not say what lies in it."""
    if assumed.window_panes is not None:
        raise ValueError("a published ranking cannot be given another window")
    for record, policy in finals:
        placed = [e for e in record.entries if e.status in PLACED]
        again = [
            rescored(entry, assumed.policy(policy), assumed.prices)
            for entry in placed
            if f"{entry.provider}/{entry.model}" not in assumed.drop
        ]
        again.sort(
            key=lambda e: (
                -(e.score or 0.0),
                next(t.value for t in e.terms if t.name == "cost"),
                e.provider.encode(),
                e.model.encode(),
            )
        )
        yield Step(
            record.as_of_ms,
            _led(_first(placed), policy),
            _led(_first(again), policy),
        )


def _first(entries: list[RankingEntry]) -> RankingEntry | None:
    """Who would be recommended: the first that is ranked; the first of all where none is."""
    return next((e for e in entries if e.status == "ranked"), entries[0] if entries else None)


def rescored(
    entry: RankingEntry, policy: ScoringPolicyUpdated, prices: Mapping[str, int]
) -> RankingEntry:
    """A placed entry with the score it would have; its cost is at the price, all else as it was."""
    factor = prices.get(f"{entry.provider}/{entry.model}", WHOLE)
    costs = ("cost_picousd_per_request", "cost_picousd_per_1k_tokens")
    scaled = {
        name: None if value is None else value * factor / WHOLE
        for name in costs
        for value in [getattr(entry, name)]
    }
    terms = tuple(
        t.model_copy(update={"value": t.value * factor / WHOLE}) if t.name == "cost" else t
        for t in entry.terms
    )
    score = double(score_of(entry, policy, Changes(price=factor)))
    return entry.model_copy(update={**scaled, "terms": terms, "score": score})


# --- the outcome


def outcome(method: str, steps: Iterable[Step], limited: bool) -> Outcome:
    """Steps as spans and totals. limited: whether any policy has a limit that could be missed."""
    all_ = tuple(steps)
    spans: list[Span] = []
    for step in all_:
        pair = (step.was.model, step.would.model)
        if spans and (spans[-1].was, spans[-1].would) == pair:
            spans[-1] = replace(spans[-1], to_ms=step.as_of_ms, closes=spans[-1].closes + 1)
        else:
            spans.append(Span(step.as_of_ms, step.as_of_ms, *pair, 1))
    return Outcome(
        method=method,
        closes=len(all_),
        differing=sum(step.was.model != step.would.model for step in all_),
        was=_totals([step.was for step in all_], limited),
        would=_totals([step.would for step in all_], limited),
        spans=tuple(spans),
        steps=all_,
    )


def _totals(led: list[Led], limited: bool) -> Totals:
    costs = [one.cost_picousd_per_1k_tokens for one in led]
    known = [cost for cost in costs if cost is not None]
    return Totals(
        changes=sum(a.model != b.model for a, b in pairwise(led)),
        cost_picousd_per_1k_tokens=sum(known) / len(known) if known else None,
        breaches=sum(bool(one.missed) for one in led) if limited else None,
    )
