"""`roster rankings what-if`: fetches history and has it scored again (processors/what_if.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from processors.evidence import Cards, Panel, panel_of
from processors.what_if import (
    Assumptions,
    Close,
    Outcome,
    outcome,
    over_panes,
    over_published,
)
from schemas import ScoringPolicyUpdated
from schemas.slm_metrics import MetricCount, ModelTotals
from schemas.values import canonical_mode
from streams.errors import BadConfiguration, RosterError
from streams.settings import Settings
from tools import rankings, sql
from tools.published import Ask, Source, Tables, Wanted, answered, quoted, rows

MOST: Final = 100_000
CLOSES: Final = 10_000
"""At most so many closes are scored again: five weeks of panes of 300 s."""


class TooMuch(BadConfiguration):
    """More is asked for than is scored again at once."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Finals of a role and mode (canonical) as of [from_ms, to_ms)."""

    role: str
    mode: str
    from_ms: int
    to_ms: int

    @property
    def wanted(self) -> Wanted:
        """Its published finals."""
        return Wanted(self.role, self.mode, ("FINAL",), from_ms=self.from_ms, to_ms=self.to_ms)


def what_if(settings: Settings, stretch: Stretch, assumed: Assumptions) -> Outcome:
    """Over the panes of the projector's tables, else over the finals in the log.

    Raises BadConfiguration if only panes could tell and there are none, or nothing is there.
    """

    def ask(text: str, most: int) -> list[dict[str, object]]:
        return rows(sql.answer(settings, text, most))

    why = f"they hold none of role {stretch.role}, mode {stretch.mode} between --from and --to"
    try:
        found = from_panes(ask, stretch, assumed)
    except TooMuch:
        raise
    except RosterError as error:
        found, why = None, str(error)
    if found is not None and found.closes:
        return found
    if assumed.window_panes is not None:
        raise BadConfiguration(f"--window needs the projector's panes: {why}")
    found = answered(settings, lambda source: from_published(source, stretch, assumed))
    if not found.closes:
        raise BadConfiguration(
            f"no final ranking of role {stretch.role}, mode {stretch.mode} lies between --from and"
            " --to"
        )
    return found


def from_published(source: Source, stretch: Stretch, assumed: Assumptions) -> Outcome:
    """Over published finals alone."""
    policies: dict[str, ScoringPolicyUpdated | None] = {}
    finals = []
    for record in source.history(stretch.wanted):
        named = record.policy_event_id
        if named not in policies:
            found = source.policy(named)
            policies[named] = None if found is None else found.event
        policy = policies[named]
        if policy is not None:
            finals.append((record, policy))
    limited = any(_limited(policy) for _, policy in finals)
    return outcome("published finals", over_published(finals, assumed), limited)


def from_panes(ask: Ask, stretch: Stretch, assumed: Assumptions) -> Outcome | None:
    """Over panes; None: none is closed. Raises TooMuch."""
    on = rankings.basis(ask, stretch.to_ms - 1)
    if on is None:
        return None
    closes = list(_closes(on, stretch))
    if not closes:
        return None
    policies = {close.policy.event_id: close.policy for close in closes}
    longest = max(
        max(policy.window_panes, assumed.policy(policy).window_panes)
        for policy in policies.values()
    )
    pane_ms = on.windowing.pane_ms
    span = (closes[0].end_ms - longest * pane_ms, closes[-1].end_ms)
    by_modes: dict[tuple[str, ...], dict[int, Panel]] = {}
    for policy in policies.values():
        modes = tuple(sorted({canonical_mode(mode) for mode in policy.evidence_modes}))
        if modes not in by_modes:
            by_modes[modes] = panels(ask, on.cards, stretch.role, modes, span)
    if len(by_modes) > 1:
        raise TooMuch(
            "the policies of this stretch look at different evidence_modes: choose --from and --to"
            " within one of them"
        )
    before = Tables(ask).standing(
        Wanted(stretch.role, stretch.mode, ("FINAL",), at_ms=stretch.from_ms - 1)
    )
    steps = over_panes(
        closes,
        next(iter(by_modes.values())),
        pane_ms,
        lambda who, policy, end_ms: on.benchmarks.prior(who, stretch.role, policy, end_ms),
        assumed,
        before[0].leader if before else None,
    )
    return outcome("panes", steps, any(_limited(policy) for policy in policies.values()))


def _closes(on: rankings.Basis, stretch: Stretch) -> Iterator[Close]:
    """Panes whose final is as of the stretch, where a policy is in force."""
    pane_ms, grace_ms = on.windowing.pane_ms, on.windowing.grace_ms
    first = -(-(stretch.from_ms - grace_ms) // pane_ms) * pane_ms
    last = min(on.closed_ms + pane_ms, stretch.to_ms - 1 - grace_ms)
    if (last - first) // pane_ms >= CLOSES:
        raise TooMuch(
            f"--from lies {(last - first) // pane_ms} panes before --to; allowed: {CLOSES}"
        )
    for end_ms in range(first, last + 1, pane_ms):
        found = on.policies.in_force((stretch.role, stretch.mode), end_ms)
        if found is not None:
            yield Close(end_ms + grace_ms, end_ms, found[1])


def _limited(policy: ScoringPolicyUpdated) -> bool:
    limits = (policy.sla_success, policy.sla_latency_us, policy.sla_cost_picousd_per_1k)
    return any(limit is not None for limit in limits)


def panels(
    ask: Ask, cards: Cards, role: str, modes: tuple[str, ...], span: tuple[int, int]
) -> dict[int, Panel]:
    """Evidence of all models, pane by pane, in [start, end); asks in halves where it is much."""
    tests = [
        f"role = {quoted(role)}",
        f"pane_start_ms >= {span[0]}",
        f"pane_start_ms < {span[1]}",
    ]
    if modes:
        tests.append(f"mode IN ({', '.join(quoted(name) for name in modes)})")
    where = " AND ".join(tests)
    key = "provider, model, pane_start_ms"
    questions = (
        f"SELECT {key}, {', '.join(f'sum({name}) AS {name}' for name in rankings.SUMMED)}"
        f" FROM metrics_panes WHERE {where} GROUP BY {key}",
        f"SELECT {key}, list(bucket ORDER BY bucket) AS buckets, list(n ORDER BY bucket) AS counts"
        f" FROM (SELECT {key}, bucket, sum(n)::BIGINT AS n FROM latency_panes WHERE {where}"
        f" GROUP BY {key}, bucket) GROUP BY {key}",
        f"SELECT {key}, metric, sum(n)::BIGINT AS n, sum(hits)::BIGINT AS hits FROM quality_panes"
        f" WHERE {where} GROUP BY {key}, metric ORDER BY ALL",
    )
    sums, latency, quality = (ask(question, MOST) for question in questions)
    if max(map(len, (sums, latency, quality))) >= MOST and span[1] - span[0] > 1:
        middle = (span[0] + span[1]) // 2
        return {
            **panels(ask, cards, role, modes, (span[0], middle)),
            **panels(ask, cards, role, modes, (middle, span[1])),
        }
    buckets = {_cell(row): (row["buckets"], row["counts"]) for row in latency}
    bits: dict[tuple[str, str, int], list[MetricCount]] = {}
    for row in quality:
        count = MetricCount(metric=row["metric"], n=row["n"], hits=row["hits"])
        bits.setdefault(_cell(row), []).append(count)
    nothing = dict.fromkeys(rankings.SUMMED, 0)
    found: dict[int, list[tuple[int, ModelTotals]]] = {}
    cells = {_cell(row): row for row in sums}
    for cell in sorted({*cells, *bits}):
        provider, model, pane = cell
        row = cells.get(cell) or {"provider": provider, "model": model, **nothing}
        sums_of = rankings.totals(row, *buckets.get(cell, ((), ())), bits.get(cell, ()))
        found.setdefault(pane, []).append((pane, sums_of))
    return {pane: panel_of(facts, cards) for pane, facts in found.items()}


def _cell(row: dict[str, object]) -> tuple[str, str, int]:
    pane = row["pane_start_ms"]
    assert isinstance(pane, int)
    return str(row["provider"]), str(row["model"]), pane
