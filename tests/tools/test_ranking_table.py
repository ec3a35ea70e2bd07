"""Ties, leaders and reasons, as a person sees them."""

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from schemas import ModelProfileScored
from schemas.model_profile import LeaderState, RankingEntry
from tests.support.rankings import entries, evidence, final, policy
from tools.ranking_table import NARROW, WIDE, WIDTHS, heading, tables

RULES = policy(prior_quality=5000)
LED = LeaderState(provider="p", model="b", since_ms=1_700_000_000_000)
PANEL = {
    "a": evidence([1_500_000] * 80, quality=(151, 200)),
    "b": evidence([1_500_000] * 80, quality=(150, 200)),
    "few": evidence([9_500_000] * 3, cost=10**11, quality=(10, 200)),
    "unseen": evidence([9_500_000] * 80, cost=10**12, quality=(0, 0)),
    "none": evidence([], failed=9),
}


def drawn(ranking: ModelProfileScored, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(tables([ranking], width))
    file = console.file
    assert isinstance(file, io.StringIO)
    return [line.rstrip() for line in file.getvalue().split("\n")[:-1]]


def row(lines: list[str], model: str) -> str:
    (found,) = [line for line in lines[1:] if f" p/{model} " in line]
    return found


def test_columns_fill_the_consoles_they_are_made_for() -> None:
    assert sum(WIDTHS) + len(WIDTHS) - 1 == WIDE == 100
    assert sum(NARROW) + len(NARROW) - 1 == 80


@pytest.mark.parametrize("width", [80, 100])
def test_ties_leader_challenger_and_reasons_are_seen(width: int) -> None:
    led = LED.model_copy(
        update={"challenger_provider": "p", "challenger_model": "a", "closes": 1},
    )
    lines = drawn(final(entries(PANEL, RULES), RULES, leader=led), width)
    assert max(map(cell_len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert row(lines, "a").startswith("▲ 1= ")
    assert row(lines, "b").startswith("★ 1= ")
    assert row(lines, "few").startswith("  4  ")
    assert row(lines, "none").startswith("  -  ")
    narrow = width < WIDE
    assert row(lines, "few").endswith("few n" if narrow else "~ few samples")
    assert row(lines, "unseen").endswith("prior" if narrow else "~ prior only")
    assert row(lines, "none").endswith("none" if narrow else "✗ no response")
    assert (".73   200" if narrow else "0.73   200") in row(lines, "b")
    assert (".50     0" if narrow else "0.50     0") in row(lines, "unseen")


def test_the_heading_tells_who_leads_as_fully_as_there_is_room() -> None:
    ranked = entries(PANEL, RULES)

    def told(width: int, **changes: Any) -> str:
        state = LED.model_copy(update=changes)
        return heading(final(ranked, RULES, leader=state), width).plain

    start = "dialogue · PRODUCTION  final as of 22:25:00, policy v1"
    coming = {"challenger_provider": "p", "challenger_model": "a", "closes": 1}
    assert told(100) == f"{start}  ★ p/b since 22:13"
    assert told(120, **coming) == f"{start}  ★ p/b since 22:13  ▲ p/a, 1 close"
    assert told(88, **coming) == f"{start}  ★ p/b since 22:13  ▲ 1 close"
    assert told(80, **coming) == f"{start}  ★ since 22:13  ▲ 1 close"
    assert told(67, **coming) == f"{start}  ★ 22:13 ▲ 1"
    assert told(66, **coming) == start
    assert told(30) == start[:29] + "…"
    yesterday = LED.since_ms or 0
    assert told(100, since_ms=yesterday - 86_400_000) == f"{start}  ★ p/b since 11-13 22:13"
    nobody = final(ranked, RULES, leader=LeaderState())
    assert heading(nobody, 100).plain == f"{start}  no model qualifies"
    assert heading(final(ranked, RULES, leader=None), 100).plain == start


def test_a_rank_of_three_digits_has_room() -> None:
    def ranked(rank: int) -> RankingEntry:
        return entries(PANEL, RULES)[0].model_copy(update={"rank": rank})

    for leader, first in ((None, "100="), (LeaderState(provider="p", model="a"), "★100")):
        lines = drawn(final([ranked(100), ranked(100)], RULES, leader=leader), 100)
        assert [line[:5] for line in lines[2:]] == [f"{first} ", f"{first} "]
