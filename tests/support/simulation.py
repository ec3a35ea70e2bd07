"""Random schedules that drive the real meter and scorer protocols against a simulated log.

A schedule is a seed. Meters crash, are paused past their session and go on as stale owners,
transactions abort, markers arrive late, the topic is compacted, scorers restart, policies and cards
come in between. Observations of quality are silent for long: the meters' ticks move time on there.
In the end everything is brought to rest and compared with a plain fold of the source log.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from processors.benchmarks import Benchmarks
from processors.columns import columns_of, observed_columns
from processors.evidence import Cards, Evidence, Panel, add_panel, evidence_of
from processors.meter_protocol import Flush, Meter, Source, place
from processors.pane_fold import PartitionFold, Stretch
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
from schemas.model_profile import RankingEntry
from schemas.rate_card import PriceUnit
from schemas.scoring_policy import CostUnit
from schemas.values import Outcome
from tests.support.simulated_log import Refused, SimulatedLog

TOPICS = {"src": 2, "quality": 2}
SOURCES = [(topic, p) for topic, count in TOPICS.items() for p in range(count)]
METRICS = 2
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
    waiting: list[Source] = field(default_factory=list)
    ends: list[int] | None = None
    reading: dict[Source, int] = field(default_factory=dict)
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
        self.trouble = self.rng.choice((1.0, 0.1))  # in calm schedules rankings are made early
        self.hours = (8, 45) if sleepy else (6, 30)
        self.reads = 0.002 if sleepy else 0.05
        self.log = SimulatedLog(METRICS, self.rng)
        self.source: dict[Source, list[Any]] = {s: [] for s in SOURCES}  # row, ("tick", ms), None
        self.now = BEGIN
        self.clock = BEGIN  # the broker's
        self.observing = True
        self.control: list[Recorded[Any]] = []
        self.ids = 0
        self.members: list[Member] = []
        self.born = 0
        self.late: dict[int, list[tuple[Source, int]]] = {}  # transaction -> (source, offset)
        self.scored: list[ModelProfileScored] = []
        self.scorers: list[Scorer] = []
        self.scorer_at: list[int] = []
        self.control_at: list[int] = []
        for role in ROLES:
            self._say(policy_of(role, 0, f"first-{role}"))
        for unit in (PriceUnit.INPUT_TOKEN, PriceUnit.OUTPUT_TOKEN):
            self._say(card_of(unit, 10**11, 0, 1, f"first-{unit.value}"))
        for _ in range(2):
            self._join()
        self._new_scorers()

    # --- the source

    def _produce(self) -> None:
        rng = self.rng
        if rng.random() < 0.1:
            self.observing = not self.observing
        for _ in range(rng.randint(1, 8)):
            # Now and then hours pass, so that panes leave the window and facts are deleted.
            jump = rng.choice([0, 5_000, 60_000, 400_000])
            self.now += rng.randint(*self.hours) * 3_600_000 if rng.random() < 0.03 else jump
            self.clock += rng.randint(0, 2_000)
            source = rng.choice(SOURCES if self.observing else SOURCES[: TOPICS["src"]])
            rows = self.source[source]
            kind = rng.random()
            if kind < 0.03:
                rows.append(("tick", self.now))
            elif kind < 0.06:
                rows.append("dead")
            elif kind < 0.08:
                rows.append(None)
            elif kind < 0.20 and (known := [r for r in rows if isinstance(r, dict)]):
                again = dict(rng.choice(known[-6:]), offset=len(rows), append_ms=self.clock)
                if rng.random() < 0.4:  # a conflict; its time may differ inside the pane
                    again["body"] = b"other%d" % len(rows)
                    pane = again["occurred_at_ms"] // PANE * PANE
                    again["occurred_at_ms"] = pane + rng.randrange(PANE)
                rows.append(again)
            else:
                rows.append(self._event(source[0], len(rows)))

    def _tick(self, member: Member) -> None:
        """A member moves time on where it has read everything."""
        base = member.meter.tick_base()
        for source, fold in member.meter.folds.items():
            rows = self.source[source]
            if base is not None and fold.caught_up and fold.position == len(rows):
                rows.append(("tick", base[0] + self.clock - base[1]))

    def _state(self) -> None:
        """A new price or policy; some are of long ago, some of times to come."""
        rng, number = self.rng, len(self.control)
        at = max(0, self.now + rng.choice((-90, -30, -1, 0, 2)) * 3_600_000)
        if rng.random() < 0.5:
            unit = rng.choice((PriceUnit.INPUT_TOKEN, PriceUnit.OUTPUT_TOKEN))
            price = rng.randint(1, 9) * 10**11
            self._say(card_of(unit, price, rng.choice((0, at)), rng.randint(1, 3), f"c{number}"))
        else:
            panes = rng.choice((288, 288, 30))
            self._say(policy_of(rng.choice(ROLES), at, f"p{number}", number % 7 * 500, panes))

    def _say(self, event: RateCardUpdated | ScoringPolicyUpdated) -> None:
        offset = sum(r.event.NAME == event.NAME for r in self.control)
        self.control.append(Recorded(event, Position(event.NAME, 0, offset, self.clock), b"k"))

    def _event(self, topic: str, offset: int) -> dict[str, Any]:
        rng = self.rng
        self.ids += 1
        back = rng.choice([0, 0, 0, 30_000, 200_000, 600_000, 1_500_000])
        provider, model = rng.choice(MODELS)
        row = {
            "offset": offset,
            "occurred_at_ms": max(0, self.now - rng.randint(0, back)),
            "append_ms": self.clock,
            "tenant": "t",
            "source": "s",
            "event_id": f"e{self.ids}",
            "body": b"%d" % self.ids,
            "role": rng.choice(ROLES),
            "mode": rng.choice(("PRODUCTION", "TEST")),
            "provider": provider,
            "model": model,
        }
        if topic == "quality":
            n = rng.randint(1, 9)
            return {**row, "metric": "quality", "n": n, "hits": rng.randint(0, n)}
        return {
            **row,
            "outcome": rng.choice((Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE)),
            "input_tokens": rng.randint(0, 900),
            "cached_tokens": 0,
            "output_tokens": rng.randint(0, 90),
            "latency_us": rng.randint(1, 9_000_000),
            "reported": rng.choice((None, None, 77)),
        }

    def _stretch(self, source: Source, start: int, stop: int) -> Stretch:
        rows = self.source[source][start:stop]
        columns = observed_columns if source[0] == "quality" else columns_of
        return Stretch(
            columns=columns([r for r in rows if isinstance(r, dict)]),
            ticks=[(start + i, r[1]) for i, r in enumerate(rows) if isinstance(r, tuple)],
            dead=[start + i for i, r in enumerate(rows) if r == "dead"],
            up_to_offset=stop - 1,
        )

    # --- meters

    def _join(self) -> None:
        self.born += 1
        meter = self.rules.meter(TOPICS, METRICS, 1, f"m{self.born}")
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
            source = self.rng.choice(sorted(member.reading))
            start = member.reading[source]
            stop = min(len(self.source[source]), start + self.rng.randint(1, 12))
            if stop > start:
                member.meter.fold(source, self._stretch(source, start, stop))
                member.reading[source] = stop

    def _settle(self, member: Member) -> None:
        if member.ends is None:
            member.ends = [self.log.stable_end(p) for p in range(METRICS)]
        self._observe(member, 1000)
        if any(at < end for at, end in zip(member.follow, member.ends, strict=True)):
            return
        starts = {}
        for source in member.waiting:
            try:
                committed = self.log.stable_offset(source)
            except LookupError:
                if self.rules.stable_offsets:
                    member.meter.reset()
                    return
                committed = self.log.offsets.get(source)
            start = member.meter.assign(source, committed)
            if start is None:
                member.meter.reset()
                member.ends = None
                return
            starts[source] = start
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
        self.control_at = [0] * METRICS
        for partition in range(METRICS):
            self.scorers.append(self.rules.scorer(TOPICS, 1))
            self._listen(partition)
            for scored in self.scored:
                if place(scored.role, METRICS) == partition:
                    self.scorers[partition].published(scored)

    def _listen(self, partition: int) -> tuple[ModelProfileScored, ...]:
        """Policies and cards as far as they are there."""
        told = self.control[self.control_at[partition] :]
        self.control_at[partition] = len(self.control)
        return self.scorers[partition].statements(
            policies=[r for r in told if isinstance(r.event, ScoringPolicyUpdated)],
            cards=[r for r in told if isinstance(r.event, RateCardUpdated)],
        )

    def _score(self, most: int) -> None:
        for partition, scorer in enumerate(self.scorers):
            if self.rng.random() < 0.15:  # around an assignment Faust delivers records twice
                self.scorer_at[partition] -= self.rng.randint(0, self.scorer_at[partition])
            if self.rng.random() < 0.7:
                self.scored.extend(self._listen(partition))
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
        if 0.27 <= kind < 0.315 and rng.random() >= self.trouble:
            kind = 1.0
        if kind < 0.14:
            self._produce()
        elif kind < 0.15:
            self._state()
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
            elif rng.random() < 0.15:
                self._tick(member)
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
        for rows in self.source.values():
            self.now += 1
            rows.append(("tick", self.now + 3 * GRACE))
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
            marks = {source_of(mark): mark for mark in self.log.committed_marks}
            if all(
                source in marks and marks[source].up_to_offset == len(rows) - 1
                for source, rows in self.source.items()
            ):
                break
        self.log.deliver()
        if self.reads < 0.01:
            for partition in list(range(METRICS)) * 4:
                self.log.compact(partition)
        for turn in range(60):  # prices and policies go on, between the scorer's reads
            if turn in (15, 25, 35):
                self._state()
            self._score(self.rng.randint(1, 80) if 10 < turn < 40 else 10_000)

    def _marks(self) -> dict[Source, MeterMark]:
        newest: dict[Source, MeterMark] = {}
        for partition in range(METRICS):
            for _, entry in self.log.read(partition, 0, 10**9):
                if entry is not None and isinstance(entry.value, MeterMark):
                    newest[source_of(entry.value)] = entry.value
        return newest

    # --- the plain fold

    def _differences(self) -> Iterator[str]:
        truth = {source: plain_fold(rows) for source, rows in self.source.items()}
        marks = self._marks()
        for source, rows in self.source.items():
            if source not in marks or marks[source].up_to_offset != len(rows) - 1:
                yield f"{source}: never folded to its end"
                return
        for mark in self.log.committed_marks:
            expected = truth[source_of(mark)].at[mark.up_to_offset]
            newest = (mark.newest_event_ms, mark.newest_append_ms)
            found = (mark.watermark_ms, newest, *(getattr(mark, name) for name in VERDICTS))
            if found != expected:
                yield f"{source_of(mark)}@{mark.up_to_offset}: {found} != {expected}"
                break
        yield from self._hasty_deletions()
        told = Counter(
            entry
            for txn, entries in self.late.items()
            if self.log.outcome.get(txn)
            for entry in entries
        )
        wanted = Counter((source, o) for source, fold in truth.items() for o in fold.late)
        if told != wanted:
            yield f"late events {sorted((told - wanted) + (wanted - told))[:3]}"
        yield from self._final_differences(list(truth.values()))

    def _hasty_deletions(self) -> Iterator[str]:
        """Of what may be deleted, nothing is announced that a window may still need by the
        smallest watermark known at that time."""
        known: dict[Source, int | None] = {}
        for mark in self.log.committed_marks:
            known[source_of(mark)] = mark.watermark_ms
            if mark.kept_from_ms is None:
                continue
            lowest = min(known.get(source) or 0 for source in SOURCES)
            if mark.kept_from_ms > max(0, lowest - GRACE - PANE - 2 * WINDOW):
                yield f"{source_of(mark)}@{mark.up_to_offset}: {mark.kept_from_ms} kept too little"
                return

    def _final_differences(self, truth: list["Plain"]) -> Iterator[str]:
        watermark = min(fold.watermark for fold in truth)
        assert watermark is not None
        judge = Judge(truth, self.control)
        published: dict[tuple[str, int], ModelProfileScored] = {}
        newest: dict[str, ModelProfileScored] = {}
        seen: set[str] = set()
        for scored in self.scored:
            if scored.status.value != "FINAL" or scored.event_id in seen:
                continue
            seen.add(scored.event_id)
            role, last = scored.role, newest.get(scored.role)
            end = scored.window_end_ms
            read = {(i.topic, i.partition): i.next_offset for i in scored.inputs}
            if scored.entries != judge.entries(role, end, read):
                yield f"{role}: final of {end}.{scored.revision} differs from the plain fold"
            if last is not None and (end, scored.revision) <= (last.window_end_ms, last.revision):
                yield f"{role}: final of {end}.{scored.revision} after a newer one"
            if scored.revision == 0:
                before = None if last is None else last.leader
                if scored.leader_before != before:
                    yield f"{role}: final of {end} follows another leader"
                if not judge.panes(role) & {end - PANE, scored.window_start_ms - PANE}:
                    yield f"{role}: a final for {end} that no pane accounts for"
                if end + GRACE > watermark:
                    yield f"{role}: a final for {end}, which is open"
            elif last is None or end != last.window_end_ms:
                yield f"{role}: a correction of {end}, which is not the newest final"
            elif said(scored) == said(last):
                yield f"{role}: a correction of {end} that corrects nothing"
            newest[role] = published[role, end] = scored
        kept = max((m.kept_from_ms or 0 for m in self._marks().values()), default=0)
        for role in ROLES:
            if role in newest and newest[role].window_start_ms >= kept:
                final = newest[role]
                if final.entries != judge.entries(role, final.window_end_ms, None):
                    yield f"{role}: the newest final was not corrected"
            panes = judge.panes(role)
            leaving = set() if judge.lengths_differ else {pane + WINDOW for pane in panes}
            for pane in sorted(panes | leaving):
                if pane + PANE + GRACE > watermark:
                    continue
                if (role, pane + PANE) not in published and pane + PANE - WINDOW >= kept:
                    yield f"{role}: no final for the pane {pane}"


def said(scored: ModelProfileScored) -> tuple[object, ...]:
    """What a final says, apart from where it was read."""
    fields = ("window_start_ms", "policy_event_id", "policy_version", "entries", "leader")
    return tuple(getattr(scored, name) for name in fields)


class Judge:
    """Rankings by the plain fold, as of any position in the policies and cards."""

    def __init__(self, truth: list["Plain"], control: list[Recorded[Any]]) -> None:
        self.truth, self.control = truth, control
        self.priced: dict[int, dict[tuple[str, int], Panel]] = {}
        policies = [r.event for r in control if isinstance(r.event, ScoringPolicyUpdated)]
        self.lengths_differ = len({policy.window_panes for policy in policies}) > 1

    def panes(self, role: str) -> set[int]:
        """Panes with evidence of a role."""
        return {pane for fold in self.truth for (r, _, pane) in fold.panes if r == role}

    def entries(
        self, role: str, end_ms: int, read: dict[Source, int] | None
    ) -> tuple[RankingEntry, ...]:
        """Entries of the window that ends there. read: next offsets of policies and cards; None:
        all of them."""
        known = [
            r
            for r in self.control
            if read is None or r.at.offset < read.get((r.at.topic, r.at.partition), 0)
        ]
        _, _, policy = max(
            (r.event.occurred_at_ms, r.at.offset, r.event)
            for r in known
            if isinstance(r.event, ScoringPolicyUpdated)
            and (r.event.role, r.event.occurred_at_ms <= end_ms) == (role, True)
        )
        cards = [r for r in known if isinstance(r.event, RateCardUpdated)]
        if len(cards) not in self.priced:
            book = Cards()
            for card in cards:
                book.add(card)
            self.priced[len(cards)] = plain_panes(self.truth, book)
        length = policy.window_panes * PANE
        panel = plain_panel(self.priced[len(cards)], role, end_ms - PANE, length)
        measures = {who: measure(e, 95, CostUnit.PER_REQUEST) for who, e in panel.items()}
        none = Benchmarks()
        return rank(
            panel,
            policy,
            measures.__getitem__,
            lambda who: none.prior(who, role, policy, end_ms),
        )


class Plain(NamedTuple):
    at: list[tuple[Any, ...]]  # watermark, newest event and verdicts after each offset
    watermark: int
    late: list[int]
    panes: dict[tuple[str, str, int], dict[tuple[str, str], list[dict[str, Any]]]]


def source_of(mark: MeterMark) -> Source:
    return mark.source_topic, mark.source_partition


def plain_fold(rows: list[Any]) -> Plain:
    """The rules of the design, one record at a time."""
    verdicts: Counter[str] = Counter()
    watermark = -(10**18)
    newest: tuple[int | None, int | None] = (None, None)
    at: list[tuple[Any, ...]] = []
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
                if newest[0] is None or row["occurred_at_ms"] > newest[0]:
                    newest = (row["occurred_at_ms"], row["append_ms"])
        seen = watermark if watermark > 0 else None
        at.append((seen, newest, *(verdicts[name] for name in VERDICTS)))
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


def plain_panel(
    panels: dict[tuple[str, int], Panel], role: str, pane: int, length_ms: int
) -> Panel:
    """Panel of the window that ends with a pane: every pane added up anew."""
    window: Panel = {}
    for (r, start), panel in panels.items():
        if r == role and pane - length_ms < start <= pane:
            add_panel(window, panel)
    return window


def _count(totals: Totals, row: dict[str, Any]) -> None:
    if "metric" in row:
        counts = totals.quality.setdefault(row["metric"], [0, 0])
        counts[0] += row["n"]
        counts[1] += row["hits"]
        return
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


def policy_of(
    role: str, at_ms: int, event_id: str, shift: int = 0, panes: int = 288
) -> ScoringPolicyUpdated:
    """A policy. shift: ten-thousandths of weight that go from quality to cost."""
    return ScoringPolicyUpdated(
        event_id=event_id,
        occurred_at_ms=at_ms,
        source="test",
        role=role,
        deployment_mode="PRODUCTION",
        weight_quality=4000 - shift,
        weight_cost=1500 + shift,
        weight_latency=1500,
        weight_reliability=3000,
        cost_unit=CostUnit.PER_REQUEST,
        reference_cost_picousd=10**8,
        reference_latency_us=2_000_000,
        window_panes=panes,
        actor="test",
    )


def card_of(
    unit: PriceUnit, price: int, from_ms: int, version: int, event_id: str
) -> RateCardUpdated:
    """A price of the one model that has any."""
    return RateCardUpdated(
        event_id=event_id,
        occurred_at_ms=from_ms,
        source="test",
        provider="p",
        model="a",
        unit=unit,  # type: ignore[arg-type]  # a known one
        price_picousd_per_million=price,
        valid_from_ms=from_ms,
        version=version,
    )


__all__ = ["Facts", "PartitionFold", "Rules", "Simulation"]
