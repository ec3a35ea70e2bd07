"""Who leads a ranking key, and when a challenger takes over (M3, hysteresis)."""

from collections.abc import Sequence
from typing import Any, Final

from processors.scoring import apart, units
from schemas.model_profile import LeaderState, RankingEntry
from schemas.scoring_policy import ScoringPolicyUpdated

KEEPS: Final = frozenset({"ranked", "provisional"})
"""Status in which a leader keeps its place; a challenger must be ranked."""


def next_leader(
    before: LeaderState | None,
    entries: Sequence[RankingEntry],
    policy: ScoringPolicyUpdated,
    as_of_ms: int,
) -> LeaderState:
    """The state after a final. entries: in display order. before: after the final before it.

    A challenger replaces the leader when it leads by the margin and by more than the error of the
    difference at so many consecutive finals, and the last change is long enough ago.
    """
    ranked = [e for e in entries if e.status == "ranked"]
    incumbent = None
    if before is not None and before.provider is not None:
        leads = (before.provider, before.model)
        incumbent = next(
            (e for e in entries if (e.provider, e.model) == leads and e.status in KEEPS), None
        )
    if before is None or incumbent is None:
        return _placed(ranked[0], as_of_ms) if ranked else LeaderState()
    challenger = next((e for e in ranked if e is not incumbent), None)
    kept: dict[str, Any] = {
        "provider": before.provider,
        "model": before.model,
        "since_ms": before.since_ms,
    }
    if challenger is None or not _overtakes(challenger, incumbent, policy):
        return LeaderState.model_construct(
            **kept, challenger_provider=None, challenger_model=None, closes=0
        )
    same = (before.challenger_provider, before.challenger_model) == (
        challenger.provider,
        challenger.model,
    )
    closes = before.closes + 1 if same else 1
    long_enough = as_of_ms - (before.since_ms or 0) >= policy.hysteresis_min_ms
    if closes >= policy.hysteresis_closes and long_enough:
        return _placed(challenger, as_of_ms)
    return LeaderState.model_construct(
        **kept,
        challenger_provider=challenger.provider,
        challenger_model=challenger.model,
        closes=closes,
    )


def _placed(entry: RankingEntry, as_of_ms: int) -> LeaderState:
    return LeaderState.model_construct(
        provider=entry.provider,
        model=entry.model,
        since_ms=as_of_ms,
        challenger_provider=None,
        challenger_model=None,
        closes=0,
    )


def _overtakes(a: RankingEntry, b: RankingEntry, policy: ScoringPolicyUpdated) -> bool:
    score_a, se_a = units(a)
    score_b, se_b = units(b)
    return score_a - score_b > policy.hysteresis_margin_e9 and apart(score_a, se_a, score_b, se_b)
