"""What is published when (M6), and what a late policy or card corrects."""

from typing import Any

from processors.columns import columns_of
from processors.pane_fold import Late, PartitionFold, Stretch
from processors.scorer import Scorer
from schemas import (
    MeterMark,
    ModelProfileScored,
    Position,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
)
from schemas.model_profile import RankingEntry, RankingStatus
from schemas.rate_card import PriceUnit
from tests.processors.test_pane_fold import T0, event
from tests.processors.test_scoring import policy

PANE = 300_000
P0 = T0 // PANE * PANE
LATER = 20 * PANE


def at(topic: str, offset: int) -> Position:
    return Position(topic, 0, offset, 0)


class Log:
    """One source partition, folded and scored; every batch ends in a mark."""

    def __init__(self, **rules: Any) -> None:
        self.fold = PartitionFold("src", 0, 1, None)
        self.scorer = Scorer({"src": 1}, 1)
        self.offset = 0
        self.late: list[Late] = []
        self.policies = self.cards = 0
        self.set_policy(role="code", **rules)
        self.set_card(10**11)

    def set_policy(self, **changes: Any) -> tuple[ModelProfileScored, ...]:
        changes.setdefault("event_id", f"policy{self.policies}")
        where = at("scoring.policy.updated", self.policies)
        self.policies += 1
        record: Recorded[ScoringPolicyUpdated] = Recorded(policy(**changes), where, b"k")
        return self.scorer.policy(record)

    def set_card(self, price: int) -> tuple[ModelProfileScored, ...]:
        said: list[ModelProfileScored] = []
        for unit in (PriceUnit.INPUT_TOKEN, PriceUnit.CACHED_TOKEN, PriceUnit.OUTPUT_TOKEN):
            card = RateCardUpdated(
                event_id=f"card{self.cards}",
                occurred_at_ms=0,
                source="test",
                provider="p",
                model="m",
                unit=unit,
                price_picousd_per_million=price,
                valid_from_ms=0,
                version=self.cards + 1,
            )
            said += self.scorer.card(Recorded(card, at("rate.card.updated", self.cards), b"k"))
            self.cards += 1
        return tuple(said)

    def events(self, *rows: dict[str, Any]) -> tuple[ModelProfileScored, ...]:
        numbered = [
            dict(row, offset=self.offset + i, event_id=f"e{self.offset + i}")
            for i, row in enumerate(rows)
        ]
        self.offset += len(rows)
        return self.take(Stretch(columns_of(numbered), [], [], self.offset - 1))

    def tick(self, at_ms: int) -> tuple[ModelProfileScored, ...]:
        self.offset += 1
        last = self.offset - 1
        return self.take(Stretch(columns_of([]), [(last, at_ms)], [], last))

    def take(self, stretch: Stretch) -> tuple[ModelProfileScored, ...]:
        self.late += self.fold.fold(stretch)
        for fact in self.fold.facts():
            self.scorer.fact(fact)
        mark: MeterMark = self.fold.mark(None, "test")
        self.fold.committed()
        return self.scorer.mark(mark, catching_up=False)


def of(said: tuple[ModelProfileScored, ...], status: RankingStatus) -> list[ModelProfileScored]:
    return [s for s in said if s.status is status]


def entry(score: float) -> RankingEntry:
    return RankingEntry.model_construct(provider="p", model="m", rank=1, score=score)


def test_the_example_of_m6() -> None:
    """Last provisional at 100.0 s with .941; .944 at 103.0, .947 at 106.0, .947 at 110.0 s:
    exactly one record, at 110.0 s. The clock is the watermark; scores are put in by hand."""
    scores = {100_000: 0.941, 103_000: 0.944, 106_000: 0.947, 110_000: 0.947}
    begin = P0 + LATER

    class Told(Scorer):
        def _entries(self, *_: Any) -> tuple[RankingEntry, ...]:
            watermark = self.watermark_ms()
            assert watermark is not None
            return (entry(scores[watermark - begin]),)

    log = Log()
    told = Told({"src": 1}, 1)
    told.policies = log.scorer.policies
    log.scorer = told
    log.fold.fold(Stretch(columns_of([event(0, 0)]), [], [], 0))
    for fact in log.fold.facts():
        told.fact(fact)
    log.fold.committed()
    log.offset = 1
    told.decided["code", "PRODUCTION"] = P0 + LATER  # finals are not this test's
    said = {
        second: [r.status.value for r in log.tick(begin + second + 60_001)]
        for second in sorted(scores)
    }
    assert said == {
        100_000: ["PROVISIONAL"],
        103_000: [],
        106_000: [],
        110_000: ["PROVISIONAL"],
    }


def test_a_pane_gets_its_final_when_it_closes_and_when_it_leaves_the_window() -> None:
    log = Log()
    assert not of(log.events(event(0, 0)), RankingStatus.FINAL)
    (first,) = of(log.tick(P0 + PANE + 600_000 + 60_001), RankingStatus.FINAL)
    assert first.window_end_ms == P0 + PANE
    assert [e.complete for e in first.entries] == [1]
    (last,) = of(log.tick(P0 + 289 * PANE + 600_000 + 60_001), RankingStatus.FINAL)
    assert last.window_start_ms == P0 + PANE
    assert last.entries == ()


def test_several_panes_that_close_at_once_get_one_final_each_in_order() -> None:
    log = Log()
    log.events(event(0, 0), event(0, 300), event(0, 900))
    finals = of(log.tick(P0 + LATER), RankingStatus.FINAL)
    assert [f.window_end_ms - P0 for f in finals] == [PANE, 2 * PANE, 4 * PANE]


def test_a_card_that_comes_late_corrects_the_newest_final_once() -> None:
    log = Log()
    log.events(event(0, 0))
    (final,) = of(log.tick(P0 + LATER), RankingStatus.FINAL)
    corrected = log.set_card(10**12)
    assert [c.revision for c in corrected] == [1, 2, 3]  # one per card: each is an event
    assert {c.as_of_ms for c in corrected} == {final.as_of_ms}
    assert corrected[-1].entries[0].cost_picousd_per_request == 10 * (
        final.entries[0].cost_picousd_per_request or 0
    )
    assert not of(log.tick(P0 + LATER + 1000), RankingStatus.FINAL)


def test_a_policy_of_the_past_corrects_and_one_of_the_future_does_not() -> None:
    log = Log()
    log.events(event(0, 0))
    (final,) = of(log.tick(P0 + LATER), RankingStatus.FINAL)
    future = {"role": "code", "occurred_at_ms": final.window_end_ms + 1}
    assert log.set_policy(**future, weight_quality=3000, weight_cost=2500) == ()
    (again,) = log.set_policy(role="code", occurred_at_ms=1, weight_quality=3000, weight_cost=2500)
    assert (again.revision, again.policy_version) == (1, 3)
    assert again.event_id != final.event_id


def test_a_final_that_is_in_the_log_is_not_said_again() -> None:
    log = Log()
    log.events(event(0, 0))
    said = log.tick(P0 + LATER)
    again = Log()
    for scored in said:
        again.scorer.published(scored)
    again.events(event(0, 0))
    assert not of(again.tick(P0 + LATER), RankingStatus.FINAL)


def test_after_silence_there_is_a_heartbeat_and_it_hides_no_change() -> None:
    log = Log(heartbeat_ms=900_000)
    log.events(event(0, 0))
    log.tick(P0 + LATER)
    newest = max(s.as_of_ms for s in log.scorer.newest.values())
    (beat,) = log.tick(newest + 900_000 + 60_001)
    assert beat.status is RankingStatus.HEARTBEAT
    compared = log.scorer.changed["code", "PRODUCTION"]
    assert compared.status is not RankingStatus.HEARTBEAT
    assert compared.as_of_ms < beat.as_of_ms


def test_nothing_is_said_before_every_source_partition_has_spoken() -> None:
    log = Log()
    log.scorer.sources = {"src": 2}
    log.events(event(0, 0))
    assert log.tick(P0 + LATER) == ()
