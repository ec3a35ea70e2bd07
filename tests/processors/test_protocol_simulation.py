"""The protocol of meter and scorer under random schedules (design, Exactness 2 and 3).

Every schedule is a seed, printed when it fails: Simulation(seed, Rules()).run() repeats it.
More of them: ROSTER_SCHEDULES=5000 pytest tests/processors/test_protocol_simulation.py
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from processors.meter_protocol import Meter, Source
from processors.pane_fold import PartitionFold, Verdicts
from processors.scorer import Facts, Scorer, Windows
from schemas import MeterMark, ModelProfileScored, PaneFact
from tests.support.simulation import Rules, Simulation

SCHEDULES = int(os.environ.get("ROSTER_SCHEDULES", "120"))
BATCH = 40


@pytest.mark.parametrize("first", range(0, SCHEDULES, BATCH))
def test_every_schedule_ends_as_the_plain_fold_does(first: int) -> None:
    for seed in range(first, first + BATCH):
        differences = Simulation(seed, Rules()).run()
        assert not differences, f"seed {seed}: {differences[:5]}"


def test_a_scorer_that_slept_for_days_says_nothing_wrong() -> None:
    for seed in range(30):
        differences = Simulation(seed, Rules(), sleepy=True).run()
        assert not differences, f"seed {seed}, sleepy: {differences[:5]}"


class StartsAtTheMark(Meter):
    """Forgets the open panes: reads on from up_to_offset + 1."""

    def start_of(self, fold: PartitionFold, mark: MeterMark | None) -> int:
        fold.position = fold.up_to_offset + 1
        return fold.position


class OnlyDirtyPanes(PartitionFold):
    def replay_from(self) -> int:
        firsts = [pane.first_offset for pane in self.panes.values() if pane.dirty]
        return min(firsts, default=self.up_to_offset + 1)


class ForgetsItsWatermark(PartitionFold):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.watermark_ms = None


class ForgetsItsCounters(PartitionFold):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.verdicts = Verdicts()


class ForgetsTheNewestEvent(PartitionFold):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.newest = None


class CountsTheReplay(PartitionFold):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.replayed = self.position - 1


class ConflictsMoveNothing(PartitionFold):
    def moves_time(self, timely: Any, applied: Any) -> Any:
        return applied


def folding(fold: type[PartitionFold]) -> type[Meter]:
    class Mutant(Meter):
        fold_type: ClassVar[type[PartitionFold]] = fold

    return Mutant


class WritesBeforeItCaughtUp(PartitionFold):
    @property
    def up_to_offset(self) -> int:
        return self.position - 1


class StartsUnsettled(Meter):
    def settled(self, mark: MeterMark | None, committed: int | None) -> bool:
        return True


class DeletesUnannounced(Meter):
    def gone_before(self, fold: PartitionFold, floor: int | None) -> int:
        return -1 if floor is None else floor


class LooksAtInvocationsOnly(Meter):
    def held_by(self) -> Iterable[Source]:
        return [source for source in self.sources if source[0] == "src"]


class ClosesByInvocations(Scorer):
    def wanted(self) -> Iterable[Source]:
        return [source for source in super().wanted() if source[0] == "src"]


class LastFactCounts(Facts):
    def replaces(self, known: PaneFact, fact: PaneFact) -> bool:
        return True


class TakesTheLastFact(Scorer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.facts = LastFactCounts()
        self.windows = Windows(self.facts, self.cards)


class IgnoresKeptFrom(Scorer):
    def kept_from_ms(self) -> int:
        return 0


class MissingMarksDoNotHold(Scorer):
    def watermark_ms(self) -> int | None:
        known = [m.watermark_ms for m in self.marks.values() if m.watermark_ms is not None]
        return min(known, default=None)


class ComparesMarks(Scorer):
    def content(self, scored: ModelProfileScored) -> tuple[object, ...]:
        return (*super().content(scored), [m.model_dump() for m in scored.marks])


RULES = Rules()
MUTANTS = {
    "replay starts at the first offset of the oldest open pane": replace(
        RULES, meter=StartsAtTheMark
    ),
    "replay_from covers all open panes, not the dirty ones": replace(
        RULES, meter=folding(OnlyDirtyPanes)
    ),
    "the watermark is taken from the mark": replace(RULES, meter=folding(ForgetsItsWatermark)),
    "the counters are taken from the mark": replace(RULES, meter=folding(ForgetsItsCounters)),
    "the newest event is taken from the mark": replace(RULES, meter=folding(ForgetsTheNewestEvent)),
    "nothing is counted before up_to_offset is passed": replace(
        RULES, meter=folding(CountsTheReplay)
    ),
    "a conflict moves the watermark": replace(RULES, meter=folding(ConflictsMoveNothing)),
    "nothing is written before up_to_offset is passed": replace(
        RULES, meter=folding(WritesBeforeItCaughtUp)
    ),
    "a start waits until mark and stable offset agree": replace(
        RULES, meter=StartsUnsettled, stable_offsets=False
    ),
    "the transaction carries the group's metadata": replace(RULES, fenced=False),
    "metadata is captured at assignment": replace(RULES, metadata_at_assignment=False),
    "after an abort everything starts from the last mark": replace(RULES, reset_after_abort=False),
    "every delivery is checked before the commit": replace(RULES, deliveries_checked=False),
    "facts are read committed": replace(RULES, committed_reads=False),
    "marks come behind the facts": replace(RULES, marks_after_facts=False),
    "deletion is announced one transaction before": replace(RULES, meter=DeletesUnannounced),
    "facts are kept by the watermarks of all topics": replace(RULES, meter=LooksAtInvocationsOnly),
    "panes close by the watermarks of all topics": replace(RULES, scorer=ClosesByInvocations),
    "of two facts the one that knew more counts": replace(RULES, scorer=TakesTheLastFact),
    "no final whose window begins before kept_from": replace(RULES, scorer=IgnoresKeptFrom),
    "a missing mark is minus infinity": replace(RULES, scorer=MissingMarksDoNotHold),
    "finals are compared without their vector of marks": replace(RULES, scorer=ComparesMarks),
}

SLEEPY = {
    "deletion is announced one transaction before",
    "no final whose window begins before kept_from",
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_without_this_rule_some_schedule_goes_wrong(rule: str) -> None:
    for seed in range(300):
        try:
            if Simulation(seed, MUTANTS[rule], sleepy=rule in SLEEPY).run():
                return
        except Exception:  # a broken rule may also break an invariant on the way
            return
    pytest.fail(f"300 schedules did not notice: {rule}")
