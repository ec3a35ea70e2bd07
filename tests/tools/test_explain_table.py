"""Explanations and decisions as a person sees them: within 100 columns, nothing cut off."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from processors.explain import explain
from processors.router import Circumstances, Limits, route
from schemas.model_profile import LeaderState
from tests.support.rankings import WINDOW_END, entries, evidence, final, policy, recorded
from tools.explain_table import page
from tools.route_table import page as decision_page

RULES = policy(
    min_reliability=8000,
    benchmarks=({"name": "wer", "weight": 2, "floor_e9": 3 * 10**8, "target_e9": 10**8},),
)
PANEL = {
    "a-model-with-quite-a-long-name-that-folds": evidence([3_000_000] * 60, cost=5 * 10**9),
    "second": evidence([2_000_000 + i * 7 for i in range(90)], failed=3, cost=4 * 10**9 + 1),
    "third": evidence([1_500_000] * 80, cost=10**9, quality=(60, 100)),
    "free": evidence([1_500_000] * 7, cost=0, quality=(0, 0)),
    "flaky": evidence([1_000_000] * 70, failed=60),
    "unpriced": evidence([1_000_000] * 80, unpriced=True),
    "silent": evidence([], failed=3),
}
BEFORE = LeaderState(provider="p", model="second", since_ms=WINDOW_END - 10**6)


def shown(what: RenderableType, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


@pytest.mark.parametrize("top", [0, 2, 9])
def test_an_explanation_fits_100_columns(top: int) -> None:
    record = final(entries(PANEL, RULES), RULES, before=BEFORE)
    text = shown(page(explain(record, recorded(RULES)), top))
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "…" not in text.replace(f"{record.state_hash[:16]}…", "")
    said = ["scoring.policy.updated[0] offset 7", "challenges it", "What would put", "ahead of"]
    for part in [
        *said,
        "rate card",
        "below 0.8000",
        "too few complete responses: 7 of 59, 52 lack",
    ]:
        assert part in text, part
    assert text.count("availability 80/80") == (0 if top == 0 else 1)


@pytest.mark.parametrize("names", [[], ["silent"], ["third"], ["third", "silent"]])
def test_a_ranking_with_few_models_is_explained_too(names: list[str]) -> None:
    record = final(entries({name: PANEL[name] for name in names}, RULES), RULES)
    text = shown(page(explain(record, recorded(RULES))))
    assert "no second model" in text
    assert ("none: no model has qualified yet" in text) == ("third" not in names)


def test_a_decision_fits_100_columns_and_marks_what_failed() -> None:
    record = final(entries(PANEL, RULES), RULES)
    limits = Limits(success=9_200, latency_us=2_500_000, cost_picousd_per_1k=3 * 10**9)
    around = Circumstances(broken=frozenset({"p/second"}), personas={"p/third": frozenset({"a"})})
    text = shown(decision_page(route(record, RULES, "a", limits, around)))
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "for a: p/third" in text
    assert "→ p/third" in text
    assert "breaker: open" in text
    assert "✗ missing" in text
    nobody = shown(decision_page(route(record, RULES, "b", Limits(min_samples=10**6))))
    assert "nobody" in nobody
    assert "fallback.exhausted" in nobody
