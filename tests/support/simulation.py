"""Random schedules that drive the real meter and scorer protocols against a simulated log.

A schedule is a seed. Meters crash, are paused past their session and go on as stale owners,
transactions abort, markers arrive late, the topic is compacted, scorers restart. In the end
everything is brought to rest and compared with a plain fold of the source log.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from processors.evidence import Cards, Evidence, Panel, add_panel, evidence_of
from processors.meter_protocol import Flush, Meter, place
from processors.pane_fold import PartitionFold, Stretch, columns_of
from processors.scorer import Facts, Scorer
from processors.scoring import measure, rank
from processors.totals import Totals
from schemas import (
    MeterMark,
    ModelProfileScored,
    PaneFact,
    Position,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
)
from schemas.rate_card import PriceUnit
from schemas.scoring_policy import CostUnit
from schemas.values import Outcome
from tests.support.simulated_log import Refused, SimulatedLog

SOURCES, METRICS = 3, 2
ROLES = ("code", "dialogue")
MODELS = (("p", "a"), ("p", "b"))
VERDICTS = ("applied", "duplicate", "late", "dead_lettered", "conflict", "control")
PANE, WINDOW, BOUND, GRACE = 300_000, 288 * 300_000, 60_000, 600_000
LIMITS = [101**i // 99**i for i in range(1102)]
BEGIN = 1_700_000_100_000 // PANE * PANE


@dataclass(frozen=True)
class Rules:
    """The classes that run; a test replaces one by a mutant that breaks one rule."""

    meter: type[Meter] = Meter
    scorer: type[Scorer] = Scorer
    fenced: bool = True
    reset_after_abort: bool = True
    deliveries_checked: bool = True
    committed_reads: bool = True
    marks_after_facts: bool = True
    metadata_at_assignment: bool = True
    stable_offsets: bool = True


@dataclass
class Member:
    """A meter process. flush, sent: the transaction it is in the middle of."""

    name: str
    meter: Meter
    follow: list[int] = field(default_factory=lambda: [0] * METRICS)
    generation: int = -1
    waiting: list[int] = field(default_factory=list)
    ends: list[int] | None = None
    reading: dict[int, int] = field(default_factory=dict)
    flush: Flush | None = None
    txn: int = 0
    sent: int = 0
    lost: bool = False
    phase: str = ""
    paused: bool = False


class Simulation:
    def __init__(self, seed: int, rules: Rules, *, sleepy: bool = False) -> None:
        """sleepy: the scorer reads seldom and days pass, so that it finds facts deleted."""
        self.rng = Random(seed)
        self.rules = rules
        self.steps = 400
        self.hours = (8, 45) if sleepy else (6, 30)
        self.reads = 0.002 if sleepy else 0.05
        self.log = SimulatedLog(METRICS, self.rng)
        self.source: list[list[Any]] = [[] for _ in range(SOURCES)]  # row, ("tick", ms) or None
        self.now = BEGIN
        self.ids = 0
        self.members: list[Member] = []
        self.born = 0
        self.late: dict[int, list[tuple[int, int]]] = {}  # transaction -> (partition, offset)
        self.scored: list[ModelProfileScored] = []
        self.scorers: list[Scorer] = []
        self.scorer_at: list[int] = []
        for _ in range(2):
            self._join()
        self._new_scorers()

    # --- the source

    def _produce(self) -> None:
        rng = self.rng
        for _ in range(rng.randint(1, 8)):
            # Now and then hours pass, so that panes leave the window and facts are deleted.
            jump = rng.choice([0, 5_000, 60_000, 400_000])
            self.now += rng.randint(*self.hours) * 3_600_000 if rng.random() < 0.03 else jump
            partition = rng.randrange(SOURCES)
            rows = self.source[partition]
            kind = rng.random()
            if kind < 0.06:
                rows.append(("tick", self.now))
            elif kind < 0.09:
                rows.append("dead")
            elif kind < 0.11:
                rows.append(None)
            elif kind < 0.22 and (known := [r for r in rows if isinstance(r, dict)]):
                again = dict(rng.choice(known[-6:]), offset=len(rows))
                if rng.random() < 0.4:  # a conflict; its time may differ inside the pane
                    again["body"] = b"other%d" % len(rows)
                    pane = again["occurred_at_ms"] // PANE * PANE
                    again["occurred_at_ms"] = pane + rng.randrange(PANE)
                rows.append(again)
            else:
                rows.append(self._event(len(rows)))

    def _event(self, offset: int) -> dict[str, Any]:
        rng = self.rng
        self.ids += 1
        back = rng.choice([0, 0, 0, 30_000, 200_000, 600_000, 1_500_000])
        provider, model = rng.choice(MODELS)
        return {
            "offset": offset,
            "occurred_at_ms": max(0, self.now - rng.randint(0, back)),
            "append_ms": BEGIN + self.ids,
            "tenant": "t",
            "source": "s",
            "event_id": f"e{self.ids}",
            "body": b"%d" % self.ids,
            "role": rng.choice(ROLES),
            "mode": rng.choice(("PRODUCTION", "TEST")),
            "provider": provider,
            "model": model,
            "outcome": rng.choice((Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE)),
            "input_tokens": rng.randint(0, 900),
            "cached_tokens": 0,
            "output_tokens": rng.randint(0, 90),
            "latency_us": rng.randint(1, 9_000_000),
            "reported": rng.choice((None, None, 77)),
        }

    def _stretch(self, partition: int, start: int, stop: int) -> Stretch:
        rows = self.source[partition][start:stop]
        return Stretch(
            columns=columns_of([r for r in rows if isinstance(r, dict)]),
            ticks=[(start + i, r[1]) for i, r in enumerate(rows) if isinstance(r, tuple)],
            dead=[start + i for i, r in enumerate(rows) if r == "dead"],
            up_to_offset=stop - 1,
        )

    # --- meters

    def _join(self) -> None:
        self.born += 1
        meter = self.rules.meter("src", SOURCES, METRICS, 1, f"m{self.born}")
        self.members.append(Member(f"m{self.born}", meter))
        self._rebalance()

    def _rebalance(self) -> None:
        self.log.rebalance([m.name for m in self.members if not m.paused], SOURCES)

    def _crash(self, member: Member) -> None:
        self.members.remove(member)  # its open transaction stays until the coordinator ends it
        self._rebalance()

    def _observe(self, member: Member, most: int) -> None:
        for partition in range(METRICS):
            start = member.follow[partition]
            for offset, entry in self.log.read(partition, start, most):
                member.follow[partition] = offset
                if entry is not None:
                    member.meter.observe(partition, entry.key, entry.value)

    def _poll(self, member: Member) -> None:
        """Learns of a rebalance, or folds the next records."""
        current = self.log.members.get(member.name)
        if current is None:  # thrown out while paused: joins again
            self._rebalance()
            return
        if current != member.generation:
            member.generation = current
            member.meter.reset()
            member.reading = {}
            member.waiting, member.ends = list(self.log.assignment[member.name]), None
            return
        if member.waiting:
            self._settle(member)
        elif member.reading:
            partition = self.rng.choice(sorted(member.reading))
            start = member.reading[partition]
            stop = min(len(self.source[partition]), start + self.rng.randint(1, 12))
            if stop > start:
                member.meter.fold(partition, self._stretch(partition, start, stop))
                member.reading[partition] = stop

    def _settle(self, member: Member) -> None:
        if member.ends is None:
            member.ends = [self.log.stable_end(p) for p in range(METRICS)]
        self._observe(member, 1000)
        if any(at < end for at, end in zip(member.follow, member.ends, strict=True)):
            return
        starts = {}
        for partition in member.waiting:
            try:
                committed = self.log.stable_offset(partition)
            except LookupError:
                if self.rules.stable_offsets:
                    member.meter.reset()
                    return
                committed = self.log.offsets.get(partition)
            start = member.meter.assign(partition, committed)
            if start is None:
                member.meter.reset()
                member.ends = None
                return
            starts[partition] = start
        member.reading, member.waiting = starts, []

    def _write(self, member: Member) -> None:
        """One step of a transaction."""
        log = self.log
        if member.flush is None:
            if any(txn == member.txn for txn, _ in log.markers):
                return  # CONCURRENT_TRANSACTIONS: the last one is still being completed
            member.flush = member.meter.flush()
            if member.flush is None:
                return
            member.txn, member.sent, member.lost = log.begin(), 0, False
            member.phase = "records"
            self.late[member.txn] = [(p, late.offset) for p, late in member.flush.late]
            return
        records = list(member.flush.records)
        if not self.rules.marks_after_facts:
            records.sort(key=lambda out: not isinstance(out.value, MeterMark))
        try:
            if member.phase == "records":
                for _ in range(self.rng.randint(1, 6)):
                    if member.sent == len(records):
                        member.phase = "offsets"
                        return
                    out = records[member.sent]
                    member.sent += 1
                    if self.rng.random() < 0.01:
                        member.lost = True  # this delivery failed, as its report will say
                    else:
                        log.append(member.txn, out.partition, out.key, out.value)
            elif member.phase == "offsets":
                if member.lost and self.rules.deliveries_checked:
                    raise Refused("a delivery failed")
                generation = member.generation
                if not self.rules.metadata_at_assignment:
                    generation = log.members.get(member.name, generation)
                if not self.rules.fenced:
                    log.pending_offsets[member.txn] = dict(member.flush.offsets)
                else:
                    log.send_offsets(member.txn, member.name, generation, member.flush.offsets)
                member.phase = "commit"
            elif self.rng.random() < 0.05:
                raise Refused("the coordinator gave up")
            else:
                log.end(member.txn, commit=True)
                member.meter.committed(member.flush)
                member.flush = None
        except Refused:
            assert member.flush is not None
            log.end(member.txn, commit=False)
            if self.rules.reset_after_abort:
                member.meter.reset()
                waiting = list(member.reading) or member.waiting
                member.waiting, member.ends, member.reading = waiting, None, {}
            else:
                member.meter.committed(member.flush)
            member.flush = None

    # --- the scorer

    def _new_scorers(self) -> None:
        """A fresh process: it knows what is in the log, and reads everything from the start."""
        self.scorers = []
        self.scorer_at = [0] * METRICS
        for partition in range(METRICS):
            scorer = self.rules.scorer({"src": SOURCES}, 1)
            for record in control_records():
                if isinstance(record.event, ScoringPolicyUpdated):
                    scorer.policy(Recorded(record.event, record.at, record.key))
                elif isinstance(record.event, RateCardUpdated):
                    scorer.card(Recorded(record.event, record.at, record.key))
            for scored in self.scored:
                if place(scored.role, METRICS) == partition:
                    scorer.published(scored)
            self.scorers.append(scorer)

    def _score(self, most: int) -> None:
        for partition, scorer in enumerate(self.scorers):
            if self.rng.random() < 0.05:  # around an assignment Faust delivers records twice
                self.scorer_at[partition] -= self.rng.randint(0, self.scorer_at[partition])
            start = self.scorer_at[partition]
            reads = self.log.read(partition, start, most, self.rules.committed_reads)
            for offset, entry in reads:
                self.scorer_at[partition] = offset
                if entry is None:
                    continue
                if isinstance(entry.value, MeterMark):
                    due = scorer.mark(entry.value, self.rng.random() < 0.7)
                    if due and self.rng.random() < 0.1:  # dies with some of them unsaid
                        self.scored.extend(due[: self.rng.randrange(len(due))])
                        self._new_scorers()
                        return
                    self.scored.extend(due)
                elif isinstance(entry.value, PaneFact):
                    scorer.fact(entry.value)
                else:
                    scorer.forget(entry.key)

    # --- a schedule

    def run(self) -> list[str]:
        """Runs the schedule; returns what differs from the plain fold, nothing if all is well."""
        for _ in range(self.steps):
            self._step()
        self._rest()
        return list(self._differences())

    def _step(self) -> None:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.15:
            self._produce()
        elif kind < 0.15 + self.reads:
            self._score(rng.randint(1, 40))
        elif kind < 0.25:
            self.log.deliver(rng.randint(1, 3))
        elif kind < 0.27:
            self.log.compact(rng.randrange(METRICS))
        elif kind < 0.275:
            self._new_scorers()
        elif kind < 0.285 and len(self.members) < 4:
            self._join()
        elif kind < 0.30 and len(self.members) > 1:
            self._crash(rng.choice(self.members))
        elif kind < 0.315:
            self._pause(rng.choice(self.members))
        elif kind < 0.33:
            for txn in sorted(self.log.open):
                if not any(m.flush is not None and m.txn == txn for m in self.members):
                    self.log.end(txn, commit=False)  # its owner is dead: timed out
        elif awake := [m for m in self.members if not m.paused]:
            member = rng.choice(awake)
            if member.flush is not None or rng.random() < 0.3:
                self._write(member)
            elif rng.random() < 0.2:
                self._observe(member, rng.randint(1, 30))
            else:
                self._poll(member)

    def _pause(self, member: Member) -> None:
        """SIGSTOP past the session, or SIGCONT."""
        member.paused = not member.paused
        if member.paused:
            self._rebalance()
            if member.flush is not None and self.rng.random() < 0.5:
                self.log.end(member.txn, commit=False)  # past the transaction's timeout too

    def _rest(self) -> None:
        """Everybody wakes, finishes and catches up."""
        for partition in range(SOURCES):
            self.now += 1
            self.source[partition].append(("tick", self.now + 3 * GRACE))
        for member in self.members:
            member.paused = False
        self._rebalance()
        for _ in range(4000):
            for txn in sorted(self.log.open):
                if not any(m.flush is not None and m.txn == txn for m in self.members):
                    self.log.end(txn, commit=False)
            self.log.deliver()
            for member in self.members:
                if member.flush is not None or self.rng.random() < 0.4:
                    self._write(member)
                else:
                    self._poll(member)
            if any(m.flush for m in self.members):
                continue
            marks = self._marks()
            if all(
                marks.get(p) is not None and marks[p].up_to_offset == len(rows) - 1
                for p, rows in enumerate(self.source)
            ):
                break
        self.log.deliver()
        if self.reads < 0.01:
            for partition in list(range(METRICS)) * 4:
                self.log.compact(partition)
        for _ in range(60):
            self._score(10_000)

    def _marks(self) -> dict[int, MeterMark]:
        newest: dict[int, MeterMark] = {}
        for partition in range(METRICS):
            for _, entry in self.log.read(partition, 0, 10**9):
                if entry is not None and isinstance(entry.value, MeterMark):
                    newest[entry.value.source_partition] = entry.value
        return newest

    # --- the plain fold

    def _differences(self) -> Iterator[str]:
        truth = [plain_fold(rows) for rows in self.source]
        marks = self._marks()
        for p in range(SOURCES):
            mark = marks.get(p)
            if mark is None or mark.up_to_offset != len(self.source[p]) - 1:
                yield f"partition {p}: never folded to its end"
                return
        for mark in self.log.committed_marks:
            expected = truth[mark.source_partition].at[mark.up_to_offset]
            found = (mark.watermark_ms, *(getattr(mark, name) for name in VERDICTS))
            if found != expected:
                yield f"{mark.source_partition}@{mark.up_to_offset}: {found} != {expected}"
                break
        told = Counter(
            entry
            for txn, entries in self.late.items()
            if self.log.outcome.get(txn)
            for entry in entries
        )
        wanted = Counter((p, o) for p, fold in enumerate(truth) for o in fold.late)
        if told != wanted:
            yield f"late events {sorted((told - wanted) + (wanted - told))[:3]}"
        yield from self._final_differences(truth)

    def _final_differences(self, truth: list["Plain"]) -> Iterator[str]:
        watermark = min(fold.watermark for fold in truth)
        assert watermark is not None
        cards = Cards()
        policy = policies()[0]
        for record in control_records():
            if isinstance(record.event, RateCardUpdated):
                cards.add(record.at.offset, record.event)
        panels = plain_panes(truth, cards)
        published: dict[tuple[str, int], ModelProfileScored] = {}
        seen: set[str] = set()
        for scored in self.scored:
            if scored.status.value == "FINAL" and scored.event_id not in seen:
                seen.add(scored.event_id)
                if scored.revision:
                    yield f"{scored.role}: a correction, though nothing came late"
                published[scored.role, scored.window_end_ms] = scored
        kept = max((m.kept_from_ms or 0 for m in self._marks().values()), default=0)
        for role in ROLES:
            panes = {pane for fold in truth for (r, _, pane) in fold.panes if r == role}
            for pane in sorted(panes | {p + WINDOW for p in panes}):
                if pane + PANE + GRACE > watermark:
                    continue
                scored_here = published.pop((role, pane + PANE), None)
                if scored_here is None:
                    if pane + PANE - WINDOW >= kept:
                        yield f"{role}: no final for the pane {pane}"
                    continue
                panel = plain_panel(panels, role, pane)
                measures = {w: measure(e, 95, CostUnit.PER_REQUEST) for w, e in panel.items()}
                expected = rank(panel, policy, measures.__getitem__)
                if scored_here.entries != expected:
                    yield f"{role}: final of pane {pane} differs from the plain fold"
        for role, end in published:
            yield f"{role}: a final for {end} that no pane accounts for"


@dataclass
class Plain:
    at: list[tuple[int | None, ...]]  # watermark and verdicts after each offset
    watermark: int
    late: list[int]
    panes: dict[tuple[str, str, int], dict[tuple[str, str], list[dict[str, Any]]]]


def plain_fold(rows: list[Any]) -> Plain:
    """The rules of the design, one record at a time."""
    verdicts: Counter[str] = Counter()
    watermark = -(10**18)
    at: list[tuple[int | None, ...]] = []
    ids: dict[tuple[int, str], bytes] = {}
    panes: dict[tuple[str, str, int], dict[tuple[str, str], list[dict[str, Any]]]] = {}
    late = []
    for offset, row in enumerate(rows):
        if row is None:
            verdicts["control"] += 1
        elif row == "dead":
            verdicts["dead_lettered"] += 1
        elif isinstance(row, tuple):
            verdicts["control"] += 1
            watermark = max(watermark, row[1] - BOUND - 1)
        else:
            pane = row["occurred_at_ms"] // PANE * PANE
            if pane + PANE + GRACE <= watermark:
                verdicts["late"] += 1
                late.append(offset)
            elif (first := ids.get((pane, row["event_id"]))) is not None:
                verdicts["duplicate" if first == row["body"] else "conflict"] += 1
            else:
                ids[pane, row["event_id"]] = row["body"]
                verdicts["applied"] += 1
                models = panes.setdefault((row["role"], row["mode"], pane), {})
                models.setdefault((row["provider"], row["model"]), []).append(row)
            if late[-1:] != [offset]:
                watermark = max(watermark, row["occurred_at_ms"] - BOUND - 1)
        at.append((watermark if watermark > 0 else None, *(verdicts[name] for name in VERDICTS)))
    return Plain(at, watermark, late, panes)


def plain_panes(truth: list[Plain], cards: Cards) -> dict[tuple[str, int], Panel]:
    """Panel of each role and pane."""
    panels: dict[tuple[str, int], Panel] = {}
    for fold in truth:
        for (role, _, start), models in fold.panes.items():
            panel = panels.setdefault((role, start), {})
            for who, rows in models.items():
                totals = Totals()
                for row in rows:
                    _count(totals, row)
                panel.setdefault(who, Evidence()).add(evidence_of(totals.wire(*who), start, cards))
    return panels


def plain_panel(panels: dict[tuple[str, int], Panel], role: str, pane: int) -> Panel:
    """Panel of the window that ends with a pane: every pane added up anew."""
    window: Panel = {}
    for (r, start), panel in panels.items():
        if r == role and pane - WINDOW < start <= pane:
            add_panel(window, panel)
    return window


def _count(totals: Totals, row: dict[str, Any]) -> None:
    outcomes = list(Outcome)
    totals.outcomes[outcomes.index(row["outcome"])] += 1
    if row["outcome"] not in (Outcome.SUCCESS, Outcome.REFUSAL):
        return
    units = [row["input_tokens"], row["cached_tokens"], row["output_tokens"]]
    if row["reported"] is None:
        totals.priced_n += 1
        pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
        for i in range(3):
            totals.unit_sums[i] += units[i]
        for i, (a, b) in enumerate(pairs):
            totals.unit_products[i] += units[a] * units[b]
    else:
        cost, tokens = row["reported"], sum(units)
        totals.reported_n += 1
        for i, value in enumerate((cost, tokens)):
            totals.reported_sums[i] += value
        for i, value in enumerate((cost * cost, cost * tokens, tokens * tokens)):
            totals.reported_products[i] += value
    bucket = bisect_left(LIMITS, row["latency_us"])
    totals.latency[bucket] = totals.latency.get(bucket, 0) + 1


def policies() -> list[ScoringPolicyUpdated]:
    return [
        ScoringPolicyUpdated(
            event_id=f"policy-{role}",
            occurred_at_ms=0,
            source="test",
            role=role,
            deployment_mode="PRODUCTION",
            weight_quality=4000,
            weight_cost=1500,
            weight_latency=1500,
            weight_reliability=3000,
            cost_unit=CostUnit.PER_REQUEST,
            reference_cost_picousd=10**8,
            reference_latency_us=2_000_000,
            actor="test",
        )
        for role in ROLES
    ]


def control_records() -> list[Recorded[Any]]:
    cards = [
        RateCardUpdated(
            event_id=f"card-{unit.value}",
            occurred_at_ms=0,
            source="test",
            provider="p",
            model="a",
            unit=unit,
            price_picousd_per_million=10**11,
            valid_from_ms=0,
        )
        for unit in (PriceUnit.INPUT_TOKEN, PriceUnit.OUTPUT_TOKEN)
    ]
    return [
        *(
            Recorded(card, Position("rate.card.updated", 0, i, 0), b"k")
            for i, card in enumerate(cards)
        ),
        *(
            Recorded(policy, Position("scoring.policy.updated", 0, i, 0), b"k")
            for i, policy in enumerate(policies())
        ),
    ]


__all__ = ["Facts", "PartitionFold", "Rules", "Simulation"]
