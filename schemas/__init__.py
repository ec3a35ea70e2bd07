"""WHAT HAPPENED: every event as a typed value and as an Avro schema. Pure: no I/O.

envelope.py         what every event carries; where a record stands
values.py           units, names, bounds, ids
avro.py             event <-> Avro bytes, with the schemas of avsc/
llm_invocation.py   llm.invocation          clock_tick.py      clock.tick
model_fallback.py   model.fallback.used     model_profile.py   model.profile.*
mode.py             mode.changed            scoring_policy.py  scoring.policy.updated
rate_card.py        rate.card.updated       budget.py          budget.*
slm_metrics.py      pane facts and marks    dead_letter.py     dead letters, late events
quality.py          model.quality.observed, slm.benchmark.results
model.py            model.registered
"""

from typing import Final

from schemas.budget import BudgetThresholdCrossed, BudgetUpdated
from schemas.clock_tick import ClockTick
from schemas.dead_letter import DeadLetter, LateEvent
from schemas.envelope import Event, HeadedEvent, Position, Recorded
from schemas.llm_invocation import LlmInvocation
from schemas.mode import ModeChanged
from schemas.model import ModelRegistered
from schemas.model_fallback import ModelFallbackUsed
from schemas.model_profile import (
    ModelProfileActive,
    ModelProfileRecommended,
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
)
from schemas.quality import ModelQualityObserved, SlmBenchmarkResults
from schemas.rate_card import RateCardUpdated
from schemas.scoring_policy import ScoringPolicyUpdated
from schemas.slm_metrics import MeterMark, PaneFact

EVENTS: Final[tuple[type[Event], ...]] = (
    LlmInvocation,
    ClockTick,
    ModelFallbackUsed,
    ModelProfileUpdated,
    ModelProfileRejected,
    ModelProfileActive,
    ModelProfileScored,
    ModeChanged,
    ModelRegistered,
    ScoringPolicyUpdated,
    RateCardUpdated,
    BudgetUpdated,
    BudgetThresholdCrossed,
    PaneFact,
    MeterMark,
    DeadLetter,
    LateEvent,
    ModelQualityObserved,
    SlmBenchmarkResults,
    ModelProfileRecommended,
)
"""Every event type, once."""

__all__ = [
    "EVENTS",
    "BudgetThresholdCrossed",
    "BudgetUpdated",
    "ClockTick",
    "DeadLetter",
    "Event",
    "HeadedEvent",
    "LateEvent",
    "LlmInvocation",
    "MeterMark",
    "ModeChanged",
    "ModelFallbackUsed",
    "ModelProfileActive",
    "ModelProfileRecommended",
    "ModelProfileRejected",
    "ModelProfileScored",
    "ModelProfileUpdated",
    "ModelQualityObserved",
    "ModelRegistered",
    "PaneFact",
    "Position",
    "RateCardUpdated",
    "Recorded",
    "ScoringPolicyUpdated",
    "SlmBenchmarkResults",
]
