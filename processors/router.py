"""Which model serves a persona: of those within its limits the best, else the one nearest to them
(M21, R58). Pure: a published ranking and what is asked in, a decision out that names every value
it rests on, so that it can be made again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Final, Literal

from processors.rational import double, e9
from schemas.model_profile import ModelProfileScored, RankingEntry
from schemas.scoring_policy import ScoringPolicyUpdated

WHOLE: Final = 10_000
PLACED: Final = frozenset({"ranked", "provisional"})
Verdict = Literal["passed", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a persona asks for; None: not tested. success: least share of complete responses, in
    ten-thousandths. latency_us: of the ranking's percentile. cost: pico-USD per 1,000 tokens."""

    success: int | None = None
    latency_us: int | None = None
    cost_picousd_per_1k: int | None = None
    min_samples: int = 1


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a ranking does not say, by provider/model. personas: who may use a model; one that is
    not named is open to all. broken: its breaker is open. unfunded: no reservation for it."""

    personas: Mapping[str, frozenset[str]] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    unfunded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Test:
    """One test of one model. value, limit: in the test's own unit; missing: no value to compare."""

    name: str
    verdict: Verdict
    value: float | str | None
    limit: float | str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """violation: by how much, relative to the limit, it misses the one it misses most; None: it
    may not be used at all, or a value is missing."""

    model: str
    score: float | None
    tests: tuple[Test, ...]
    eligible: bool
    violation: float | None


@dataclass(frozen=True, slots=True)
class Decision:
    """Who is to serve, and why. pick None: nobody may (fallback.exhausted). sla_unmet: the pick
    misses a limit, by as little as possible."""

    persona: str
    role: str
    mode: str
    pick: str | None
    sla_unmet: bool
    reason: str
    limits: Limits
    percentile: int
    candidates: tuple[Candidate, ...]
    ranking_event_id: str
    ranking_as_of_ms: int
    policy_event_id: str
    policy_version: int
    marks: tuple[Mapping[str, Any], ...]
    inputs: tuple[Mapping[str, Any], ...]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def limits_of(
    policy: ScoringPolicyUpdated,
    *,
    success: int | None = None,
    latency_us: int | None = None,
    cost_picousd_per_1k: int | None = None,
    min_samples: int | None = None,
) -> Limits:
    """The limits that are given, and the policy's where they are not."""
    return Limits(
        policy.sla_success if success is None else success,
        policy.sla_latency_us if latency_us is None else latency_us,
        policy.sla_cost_picousd_per_1k if cost_picousd_per_1k is None else cost_picousd_per_1k,
        policy.min_samples if min_samples is None else min_samples,
    )


def route(
    ranking: ModelProfileScored,
    policy: ScoringPolicyUpdated,
    persona: str,
    limits: Limits,
    around: Circumstances | None = None,
) -> Decision:
    """The model for a persona. policy: that of the ranking.

    A tie, by score or by violation, is broken as the ranking's own order has it: score, then lower
    cost, then id.
    """
    known = around or Circumstances()
    judged = [_judged(entry, persona, limits, known) for entry in ranking.entries]
    eligible = [c for c, _ in judged if c.eligible]
    near = [(violation, i) for i, (_, violation) in enumerate(judged) if violation is not None]
    if eligible:
        pick, reason = eligible[0].model, "the best score of those within all limits"
    elif near:
        pick = judged[min(near)[1]][0].model
        reason = "none is within all limits: the smallest violation"
    else:
        pick, reason = None, "fallback.exhausted: none may be used"
    return Decision(
        persona=persona,
        role=ranking.role,
        mode=ranking.deployment_mode,
        pick=pick,
        sla_unmet=not eligible,
        reason=reason,
        limits=limits,
        percentile=policy.latency_percentile,
        candidates=tuple(c for c, _ in judged),
        ranking_event_id=ranking.event_id,
        ranking_as_of_ms=ranking.as_of_ms,
        policy_event_id=ranking.policy_event_id,
        policy_version=ranking.policy_version,
        marks=tuple(mark.model_dump() for mark in ranking.marks),
        inputs=tuple(position.model_dump() for position in ranking.inputs),
    )


def _judged(
    entry: RankingEntry, persona: str, limits: Limits, known: Circumstances
) -> tuple[Candidate, Fraction | None]:
    """A candidate with its exact violation."""
    model = f"{entry.provider}/{entry.model}"
    admitted = known.personas.get(model)
    bars = (
        _bar("placed", entry.status in PLACED, entry.reason or entry.status, "ranked"),
        _bar("breaker", model not in known.broken, "open", "closed"),
        _bar("reservation", model not in known.unfunded, "refused", "granted"),
        _bar(
            "persona",
            admitted is None or persona in admitted,
            persona,
            "all" if admitted is None else ", ".join(sorted(admitted)),
        ),
        Test(
            "samples",
            "passed" if entry.complete >= limits.min_samples else "failed",
            entry.complete,
            limits.min_samples,
        ),
    )
    slas = _slas(entry, limits)
    tests = (*bars, *(test for test, _ in slas))
    violation: Fraction | None = None
    if all(bar.verdict == "passed" for bar in bars):
        misses = [miss for _, miss in slas if miss is not None]
        if len(misses) == len(slas):
            violation = max(misses, default=Fraction(0))
    candidate = Candidate(
        model=model,
        score=entry.score,
        tests=tests,
        eligible=all(test.verdict == "passed" for test in tests),
        violation=None
        if violation is None
        else double(e9(violation.numerator, violation.denominator)),
    )
    return candidate, violation


def missed(entry: RankingEntry, limits: Limits) -> tuple[str, ...]:
    """Limits of success, latency and cost that a model does not meet, or has no value for."""
    return tuple(test.name for test, _ in _slas(entry, limits) if test.verdict != "passed")


def _slas(entry: RankingEntry, limits: Limits) -> list[tuple[Test, Fraction | None]]:
    success = None if limits.success is None else Fraction(limits.success, WHOLE)
    return [
        _sla(name, value, limit, at_least=name == "success")
        for name, value, limit in (
            ("success", entry.success_low, success),
            ("latency", entry.latency_high_us, _exact(limits.latency_us)),
            ("cost", entry.cost_picousd_per_1k_tokens, _exact(limits.cost_picousd_per_1k)),
        )
        if limit is not None
    ]


def _exact(limit: int | None) -> Fraction | None:
    return None if limit is None else Fraction(limit)


def _bar(name: str, passed: bool, value: str, limit: str) -> Test:
    """A test that has no degrees: a model that fails it is out. value: what it is if it fails."""
    return Test(name, "passed" if passed else "failed", limit if passed else value, limit)


def _sla(
    name: str, value: float | None, limit: Fraction, *, at_least: bool
) -> tuple[Test, Fraction | None]:
    """A test of a limit, with the relative violation, 0 where it passes; None: it has none, as the
    value is missing, or the limit is 0 and the value is above it."""
    if value is None:
        return Test(name, "missing", None, float(limit)), None
    exact = Fraction(value)
    passed = exact >= limit if at_least else exact <= limit
    test = Test(name, "passed" if passed else "failed", value, float(limit))
    if passed:
        return test, Fraction(0)
    if limit == 0:
        return test, None
    return test, (limit - exact) / limit if at_least else exact / limit - 1
