"""M3: who leads, and what a challenger must show."""

from hypothesis import given
from hypothesis import strategies as st

from processors.leader import next_leader
from schemas.model_profile import LeaderState, RankingEntry
from tests.processors.test_scoring import policy

MINUTE = 60_000
RULES = policy(hysteresis_margin_e9=20_000_000, hysteresis_closes=3, hysteresis_min_ms=30 * MINUTE)


def entry(model: str, score: float, se: float = 0.001, status: str = "ranked") -> RankingEntry:
    return RankingEntry.model_construct(
        provider="p", model=model, score=score, score_se=se, status=status
    )


def leads(
    model: str, since: int = 0, challenger: str | None = None, closes: int = 0
) -> LeaderState:
    return LeaderState(
        provider="p",
        model=model,
        since_ms=since,
        challenger_provider=None if challenger is None else "p",
        challenger_model=challenger,
        closes=closes,
    )


def follow(
    state: LeaderState | None, finals: list[list[RankingEntry]], at: int
) -> list[str | None]:
    """Leaders after each of the finals, five minutes apart."""
    found = []
    for i, entries in enumerate(finals):
        state = next_leader(state, entries, RULES, at + i * 5 * MINUTE)
        found.append(state.model)
    return found


def test_without_a_leader_the_first_that_is_fully_ranked_leads() -> None:
    entries = [entry("a", 0.9, status="provisional"), entry("b", 0.8), entry("c", 0.7)]
    assert next_leader(None, entries, RULES, 7) == leads("b", since=7)
    assert next_leader(LeaderState(), entries, RULES, 7) == leads("b", since=7)


def test_where_nobody_qualifies_nobody_leads() -> None:
    assert next_leader(None, [entry("a", 0.9, status="provisional")], RULES, 7) == LeaderState()
    assert next_leader(leads("a"), [], RULES, 7) == LeaderState()


def test_a_challenger_must_lead_at_three_finals_running() -> None:
    up, down = [entry("b", 0.9), entry("a", 0.8)], [entry("a", 0.8), entry("b", 0.7)]
    late = 60 * MINUTE
    assert follow(leads("a"), [up, up, up], late) == ["a", "a", "b"]
    assert follow(leads("a"), [up, up, down, up, up, up], late) == [*"aaaaa", "b"]


def test_another_challenger_starts_anew() -> None:
    b, c = [entry("b", 0.9), entry("a", 0.8)], [entry("c", 0.9), entry("a", 0.8)]
    assert follow(leads("a"), [b, b, c, c, c], 60 * MINUTE) == [*"aaaa", "c"]


def test_a_lead_below_the_margin_or_within_the_error_is_none() -> None:
    close = [entry("b", 0.82, 0.0), entry("a", 0.8, 0.0)]  # exactly the margin
    unsure = [entry("b", 0.9, 0.1), entry("a", 0.8, 0.1)]
    for entries in (close, unsure):
        assert next_leader(leads("a", 0, "b", 2), entries, RULES, 60 * MINUTE) == leads("a")


def test_a_leader_stays_for_half_an_hour() -> None:
    up = [entry("b", 0.9), entry("a", 0.8)]
    assert follow(leads("a"), [up] * 7, 5 * MINUTE) == [*"aaaaa", "b", "b"]


def test_a_leader_that_fails_a_gate_is_replaced_at_once() -> None:
    entries = [entry("b", 0.5), entry("a", 0.9, status="ineligible")]
    assert next_leader(leads("a"), entries, RULES, MINUTE) == leads("b", since=MINUTE)
    assert next_leader(leads("a"), [entry("b", 0.5)], RULES, MINUTE) == leads("b", since=MINUTE)


def test_a_leader_with_few_samples_for_a_while_keeps_its_place() -> None:
    entries = [entry("b", 0.81), entry("a", 0.8, status="provisional")]
    assert next_leader(leads("a"), entries, RULES, MINUTE) == leads("a")


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=40))
def test_two_statistically_equal_models_never_switch(noise: list[tuple[int, int]]) -> None:
    """Their scores wander by less than the error of their difference."""
    finals = [
        sorted(
            [entry("a", 0.8 + x / 100, 0.03), entry("b", 0.8 + y / 100, 0.03)],
            key=lambda e: -(e.score or 0),
        )
        for x, y in noise
    ]
    assert set(follow(leads("a"), finals, 60 * MINUTE)) == {"a"}
