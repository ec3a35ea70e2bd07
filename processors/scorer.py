"""The scorer as a state machine, apart from all I/O (design, Exactness 3; M5, M6).

It is fed the committed records of one partition of slm.metrics, in order, and the policies and
cards; it answers with the rankings to be published. It decides at marks alone: a mark proves that
all facts of its source partition up to its offset have been seen.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from processors.benchmarks import Benchmarks, Prior
from processors.digest import state_hash
from processors.evidence import (
    Cards,
    Panel,
    Who,
    add_panel,
    copy_panel,
    panel_of,
)
from processors.leader import next_leader
from processors.meter_protocol import fact_key
from processors.scoring import MOST_ENTRIES, Measured, measure, rank
from processors.windows import STANDARD, Windowing
from schemas.envelope import Recorded
from schemas.model_profile import (
    InputPosition,
    LeaderState,
    MarkPosition,
    ModelProfileScored,
    RankingEntry,
    RankingStatus,
)
from schemas.quality import SlmBenchmarkResults
from schemas.rate_card import RateCardUpdated
from schemas.scoring_policy import ScoringPolicyUpdated
from schemas.slm_metrics import MeterMark, PaneFact
from schemas.values import BILLION, canonical_mode, canonical_role, derived_id

Key = tuple[str, str]
"""(role, deployment mode)."""
LOOK_EVERY_MS = 1_000
"""Event time between two looks at whether a provisional ranking has changed, at most."""


class Facts:
    """Newest facts of the roles of one partition: role -> pane -> (source, mode) -> fact."""

    def __init__(self) -> None:
        self.roles: dict[str, dict[int, dict[tuple[str, int, str], PaneFact]]] = {}

    def put(self, fact: PaneFact) -> bool:
        """Keeps a fact if it is newer than the one known; says whether it was."""
        role = self.roles.setdefault(fact.role, {})
        pane = role.setdefault(fact.pane_start_ms, {})
        where = (fact.source_topic, fact.source_partition, fact.mode)
        known = pane.get(where)
        if known is not None and not self.replaces(known, fact):
            return False
        pane[where] = fact
        return True

    def replaces(self, known: PaneFact, fact: PaneFact) -> bool:
        """A fact replaces one that knew less of the source."""
        return fact.up_to_offset > known.up_to_offset

    def drop(self, role: str, pane_ms: int, where: tuple[str, int, str]) -> None:
        """A tombstone: the fact is no longer kept."""
        panes = self.roles.get(role, {})
        panes.get(pane_ms, {}).pop(where, None)
        if pane_ms in panes and not panes[pane_ms]:
            del panes[pane_ms]


@dataclass(frozen=True, slots=True)
class View:
    """What a policy looks at. modes: canonical ones whose invocations count; empty: all. length_ms:
    of its window."""

    role: str
    modes: tuple[str, ...]
    length_ms: int


def view_of(role: str, policy: ScoringPolicyUpdated, windowing: Windowing) -> View:
    """What a policy looks at."""
    modes = tuple(sorted({canonical_mode(mode) for mode in policy.evidence_modes}))
    return View(role, modes, policy.window_panes * windowing.pane_ms)


class Windows:
    """Panels of panes and of the windows of views; panes of closed windows are added once and
    taken away once."""

    def __init__(self, facts: Facts, cards: Cards) -> None:
        self._facts, self._cards = facts, cards
        self._panes: dict[tuple[str, tuple[str, ...], int], Panel] = {}
        self._closed: dict[View, tuple[int, Panel]] = {}
        self._longest: dict[tuple[str, tuple[str, ...]], int] = {}

    def forget_pane(self, role: str, pane_ms: int) -> None:
        """A fact of an open pane has changed."""
        for key in [k for k in self._panes if k[0] == role and k[2] == pane_ms]:
            del self._panes[key]

    def forget_all(self) -> None:
        """Prices have changed."""
        self._panes.clear()
        self._closed.clear()

    def _pane(self, role: str, modes: tuple[str, ...], pane_ms: int) -> Panel:
        key = (role, modes, pane_ms)
        known = self._panes.get(key)
        if known is None:
            facts = self._facts.roles.get(role, {}).get(pane_ms, {})
            known = self._panes[key] = panel_of(
                (
                    (pane_ms, totals)
                    for fact in facts.values()
                    if not modes or fact.mode in modes
                    for totals in fact.models
                ),
                self._cards,
            )
        return known

    def _held(self, role: str, after_ms: int, through_ms: int) -> list[int]:
        return [p for p in self._facts.roles.get(role, {}) if after_ms < p <= through_ms]

    def closed(self, view: View, last_ms: int) -> Panel:
        """The window that ends with a closed pane. Do not change it."""
        end, panel = self._closed.get(view, (None, {}))
        if end is None or end > last_ms or last_ms - end >= view.length_ms:
            end, panel = last_ms - view.length_ms, {}
            for pane in self._held(view.role, end, last_ms):
                add_panel(panel, self._pane(view.role, view.modes, pane))
        else:
            self._slide(panel, view, end, last_ms)
            self._let_go(view, end, last_ms)
        self._closed[view] = (last_ms, panel)
        return panel

    def _slide(self, panel: Panel, view: View, end: int, to_ms: int) -> None:
        for pane in self._held(view.role, end, to_ms):
            add_panel(panel, self._pane(view.role, view.modes, pane))
        for pane in self._held(view.role, end - view.length_ms, to_ms - view.length_ms):
            add_panel(panel, self._pane(view.role, view.modes, pane), -1)

    def _let_go(self, view: View, end: int, to_ms: int) -> None:
        """Forgets panels of panes that no window of these modes will ask for again."""
        same = (view.role, view.modes)
        self._longest[same] = max(view.length_ms, self._longest.get(same, 0))
        if view.length_ms == self._longest[same]:
            for pane in self._held(view.role, end - view.length_ms, to_ms - view.length_ms):
                self._panes.pop((*same, pane), None)

    def open(self, view: View, closed_ms: int, last_ms: int) -> Panel:
        """The window that ends with a pane which is still open, from the closed one before it."""
        panel = copy_panel(self.closed(view, closed_ms))
        self._slide(panel, view, closed_ms, last_ms)
        return panel


class Policies:
    """Scoring policies as far as they have been read."""

    def __init__(self) -> None:
        self._by_key: dict[Key, list[tuple[int, int, int, ScoringPolicyUpdated]]] = {}
        self.count = 0

    def add(self, offset: int, policy: ScoringPolicyUpdated) -> Key:
        """Takes the policy at an offset; returns its key, canonical."""
        key = (canonical_role(policy.role), canonical_mode(policy.deployment_mode))
        known = self._by_key.setdefault(key, [])
        known.append((policy.occurred_at_ms, offset, len(known) + 1, policy))
        self.count += 1
        return key

    def modes(self, role: str) -> list[str]:
        """Modes that a role has policies for."""
        return sorted(mode for r, mode in self._by_key if r == role)

    def lengths(self, key: Key) -> set[int]:
        """Panes of the windows that a key's policies have asked for."""
        return {policy.window_panes for *_, policy in self._by_key.get(key, ())}

    def in_force(self, key: Key, at_ms: int) -> tuple[int, ScoringPolicyUpdated] | None:
        """(version, policy) of a key at an event time; None before its first."""
        valid = [entry for entry in self._by_key.get(key, ()) if entry[0] <= at_ms]
        if not valid:
            return None
        _, _, version, policy = max(valid, key=lambda entry: entry[:2])
        return version, policy


class Scorer:
    """State of one partition of slm.metrics. sources: partitions per source topic."""

    def __init__(
        self,
        source_partitions: Mapping[str, int],
        generation: int,
        windowing: Windowing = STANDARD,
    ) -> None:
        self.windowing = windowing
        self.sources = dict(source_partitions)
        self.leading = next(iter(self.sources))  # its watermark is the clock of provisionals
        self.generation = generation
        self.marks: dict[tuple[str, int], MeterMark] = {}
        self.facts = Facts()
        self.cards = Cards()
        self.policies = Policies()
        self.benchmarks = Benchmarks()
        self.windows = Windows(self.facts, self.cards)
        self.positions: dict[tuple[str, int], int] = {}
        self.ids: set[tuple[object, ...]] = set()  # of statements
        self.finals: dict[Key, ModelProfileScored] = {}  # newest in the log
        self.newest: dict[Key, ModelProfileScored] = {}  # newest record of any status
        self.changed: dict[Key, ModelProfileScored] = {}  # newest that is no heartbeat
        self.looked: tuple[int, int] | None = None  # last closed pane, number of policies
        self.provisional_at: dict[Key, int] = {}
        self.decided: dict[Key, int] = {}  # last pane whose final is decided
        self.looked_at: dict[Key, int] = {}
        self.compared: set[Key] = set()  # newest final in the log has been compared since start

    # --- what the log says

    def published(self, scored: ModelProfileScored) -> None:
        """A ranking that is in the log, in order. The first record of an id counts."""
        key = (scored.role, scored.deployment_mode)
        if scored.generation != self.generation:
            return
        if scored.status is RankingStatus.FINAL:
            known = self.finals.get(key)
            if known is None or _version(scored) > _version(known):
                self.finals[key] = scored
                self.decided[key] = scored.window_end_ms - self.windowing.pane_ms
        elif scored.status is RankingStatus.PROVISIONAL:
            self.provisional_at[key] = scored.as_of_ms
        last = self.newest.get(key)
        if last is None or scored.as_of_ms >= last.as_of_ms:
            self.newest[key] = scored
        if scored.status is not RankingStatus.HEARTBEAT:
            known = self.changed.get(key)
            if known is None or scored.as_of_ms >= known.as_of_ms:
                self.changed[key] = scored

    def inputs(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Next offsets of the control topics as far as policies and cards have been given."""
        self.positions.update(positions)

    def policy(self, recorded: Recorded[ScoringPolicyUpdated]) -> tuple[ModelProfileScored, ...]:
        """A policy; returns the correction of its key's newest final, if it changes it."""
        return self.statements(policies=(recorded,))

    def card(self, recorded: Recorded[RateCardUpdated]) -> tuple[ModelProfileScored, ...]:
        """A card; returns corrections of the newest finals that it changes."""
        return self.statements(cards=(recorded,))

    def benchmark(self, recorded: Recorded[SlmBenchmarkResults]) -> tuple[ModelProfileScored, ...]:
        """A benchmark result; returns corrections of the newest finals that it changes."""
        return self.statements(benchmarks=(recorded,))

    def statements(
        self,
        policies: Iterable[Recorded[ScoringPolicyUpdated]] = (),
        cards: Iterable[Recorded[RateCardUpdated]] = (),
        benchmarks: Iterable[Recorded[SlmBenchmarkResults]] = (),
    ) -> tuple[ModelProfileScored, ...]:
        """What was read together; returns one correction of each newest final that it changes: a
        hundred new prices are one look at the rankings, not a hundred."""
        changed: set[Key] = set()
        for policy in filter(self._is_new, policies):
            changed.add(self.policies.add(policy.at.offset, policy.event))
        for card in filter(self._is_new, cards):
            self.cards.add(card)
            self.windows.forget_all()
            changed.update(self.finals)
        for result in filter(self._is_new, benchmarks):
            self.benchmarks.add(result)
            changed.update(self.finals)
        return tuple(self._corrections(sorted(changed)))

    def _is_new(self, recorded: Recorded[Any]) -> bool:
        """Whether a statement's id has not been read before: the first in the log counts."""
        event, at = recorded.event, recorded.at
        self.positions[at.topic, at.partition] = at.offset + 1
        identity = (at.topic, at.partition, event.tenant, event.source, event.event_id)
        new = identity not in self.ids
        self.ids.add(identity)
        return new

    def fact(self, fact: PaneFact) -> None:
        """A committed fact."""
        ours = fact.generation == self.generation and fact.source_topic in self.sources
        if ours and self.facts.put(fact):
            self.windows.forget_pane(fact.role, fact.pane_start_ms)

    def forget(self, key: bytes) -> None:
        """A tombstone of slm.metrics."""
        fact = fact_key(key)
        if fact is not None and fact.generation == self.generation:
            where = (fact.source_topic, fact.source_partition, fact.mode)
            self.facts.drop(fact.role, fact.pane_ms, where)

    def mark(self, mark: MeterMark, catching_up: bool) -> tuple[ModelProfileScored, ...]:
        """A committed mark; returns the rankings it makes due, in order of publication.

        catching_up: more of the log is known to be there: nothing provisional is said yet.
        """
        if mark.generation != self.generation or mark.source_topic not in self.sources:
            return ()
        where = (mark.source_topic, mark.source_partition)
        known = self.marks.get(where)
        if known is not None and known.up_to_offset >= mark.up_to_offset:
            return ()
        self.marks[where] = mark
        watermark = self.watermark_ms()
        if watermark is None:
            return ()
        due = list(self._finals(watermark))
        if not catching_up:
            due.extend(self._provisionals(self.windowing.last_closed(watermark)))
        return tuple(due)

    # --- time

    def watermark_ms(self) -> int | None:
        """Smallest watermark over all configured source partitions; None while one is missing."""
        return self._smallest(self.wanted())

    def _smallest(self, wanted: Iterable[tuple[str, int]]) -> int | None:
        marks = [self.marks.get(where) for where in wanted]
        known = [m.watermark_ms for m in marks if m is not None and m.watermark_ms is not None]
        return min(known) if known and len(known) == len(marks) else None

    def wanted(self) -> Iterable[tuple[str, int]]:
        """The source partitions that must have spoken."""
        return [(t, p) for t, count in sorted(self.sources.items()) for p in range(count)]

    def kept_from_ms(self) -> int:
        """Panes that start before this may be gone from the log."""
        return max((m.kept_from_ms or 0 for m in self.marks.values()), default=0)

    # --- decisions

    def _finals(self, watermark: int) -> Iterator[ModelProfileScored]:
        """Finals of panes closed since the last mark, in order of pane end; and, once since the
        start, the correction of the newest final in the log."""
        closed = self.windowing.last_closed(watermark)
        kept = self.kept_from_ms()
        if self.looked == (closed, self.policies.count):
            return
        self.looked = (closed, self.policies.count)
        due: list[tuple[int, str, str]] = []
        for role, panes in self.facts.roles.items():
            for mode in self.policies.modes(role):
                last = self.decided.get((role, mode))
                due.extend(
                    (pane, role, mode)
                    for pane in self._touched((role, mode), panes)
                    if pane <= closed
                    and (last is None or pane > last)
                    and self._due((role, mode), pane, panes, kept)
                )
        for key in sorted(set(self.finals) - self.compared):
            if self._is_closed(self.finals[key], watermark):
                self.compared.add(key)
                yield from self._corrections([key])
        shared: dict[object, Any] = {}
        shared_pane = None
        for pane, role, mode in sorted(due):
            if pane != shared_pane:
                shared, shared_pane = {}, pane
            self.decided[role, mode] = pane
            known = self.finals.get((role, mode))
            before = None if known is None else known.leader
            final = self._final((role, mode), pane, 0, shared, before)
            if final is not None:
                self.compared.add((role, mode))
                self._said(final)
                yield final

    def _touched(self, key: Key, panes: Iterable[int]) -> set[int]:
        """Panes that bring evidence into some window of a key's policies, or take it away."""
        size = self.windowing.pane_ms
        lengths = {0, *(count * size for count in self.policies.lengths(key))}
        return {pane + length for pane in panes for length in lengths}

    def _due(self, key: Key, pane: int, panes: Mapping[int, object], kept: int) -> bool:
        """Whether the policy in force at a pane's end sees evidence come or go with it."""
        found = self.policies.in_force(key, pane + self.windowing.pane_ms)
        if found is None:
            return False
        view = view_of(key[0], found[1], self.windowing)
        moved = pane in panes or pane - view.length_ms in panes
        return moved and self._window(view, pane)[0] >= kept

    def _window(self, view: View, pane: int) -> tuple[int, int]:
        """[start, end) of the window whose last pane starts at pane."""
        end = pane + self.windowing.pane_ms
        return end - view.length_ms, end

    def _is_closed(self, final: ModelProfileScored, watermark: int) -> bool:
        """Whether the marks have closed the last pane of a final that is in the log."""
        pane = final.window_end_ms - self.windowing.pane_ms
        return self.windowing.is_closed(pane, watermark)

    def _corrections(self, keys: Iterable[Key]) -> Iterator[ModelProfileScored]:
        """A next revision of each key's newest final whose content is no longer the same."""
        watermark = self.watermark_ms()
        for key in keys:
            final = self.finals.get(key)
            if final is None or watermark is None or final.window_start_ms < self.kept_from_ms():
                continue
            if not self._is_closed(final, watermark):
                continue
            pane = final.window_end_ms - self.windowing.pane_ms
            again = self._final(key, pane, final.revision + 1, {}, final.leader_before)
            if again is not None and self.content(again) != self.content(final):
                self._said(again)
                yield again

    def content(self, scored: ModelProfileScored) -> tuple[object, ...]:
        """What a revision would correct: all but positions and the ids made from them. After a
        restart the vector of marks is another one, and the final stands."""
        return (
            scored.window_start_ms,
            scored.window_end_ms,
            scored.policy_event_id,
            scored.policy_version,
            [e.model_dump() for e in scored.entries],
            scored.state_hash,
            scored.omitted,
            None if scored.leader is None else scored.leader.model_dump(),
        )

    def _said(self, scored: ModelProfileScored) -> None:
        self.published(scored)

    def _final(
        self,
        key: Key,
        pane: int,
        revision: int,
        shared: dict[object, Any],
        before: LeaderState | None,
    ) -> ModelProfileScored | None:
        found = self.policies.in_force(key, pane + self.windowing.pane_ms)
        if found is None:
            return None
        version, policy = found
        view = view_of(key[0], policy, self.windowing)
        start, end = self._window(view, pane)
        as_of = end + self.windowing.grace_ms
        panel = self.windows.closed(view, pane)
        entries = self._entries(view, panel, policy, shared, end)
        return self._record(
            key,
            RankingStatus.FINAL,
            as_of,
            (start, end),
            revision,
            (version, policy),
            entries,
            self._hash(view, panel, shared),
            next_leader(before, entries, policy, as_of),
            before,
        )

    def _provisionals(self, closed: int) -> Iterator[ModelProfileScored]:
        """Provisional rankings that differ enough from what was last said, and heartbeats.

        They see all that has been folded. Their clock is the watermark of the first source alone:
        a source of which little comes, and whose time moves by ticks, holds back finals only.
        closed: the newest pane that is.
        """
        watermark = self._smallest([where for where in self.wanted() if where[0] == self.leading])
        newest = [m.newest_event_ms for m in self.marks.values() if m.newest_event_ms is not None]
        if watermark is None or not newest:
            return
        pane = max(closed, self.windowing.pane_of(max(newest)))
        end = pane + self.windowing.pane_ms
        shared: dict[object, Any] = {}
        for role in sorted(self.facts.roles):
            for mode in self.policies.modes(role):
                key = (role, mode)
                found = self.policies.in_force(key, end)
                if found is None:
                    continue
                version, policy = found
                every = min(LOOK_EVERY_MS, policy.emit_min_interval_ms)
                if watermark - self.looked_at.get(key, -every) < every:
                    continue
                self.looked_at[key] = watermark
                said_at = self.provisional_at.get(key)
                silent = key in self.newest and (
                    watermark - self.newest[key].as_of_ms >= policy.heartbeat_ms
                )
                held = said_at is not None and watermark - said_at < policy.emit_min_interval_ms
                if held and not silent:
                    continue
                view = view_of(role, policy, self.windowing)
                panel = self.windows.open(view, closed, pane)
                entries = self._entries(view, panel, policy, shared, end)
                changed = not held and self._changed(key, entries, policy)
                if not changed and not silent:
                    continue
                record = self._record(
                    key,
                    RankingStatus.PROVISIONAL if changed else RankingStatus.HEARTBEAT,
                    watermark,
                    self._window(view, pane),
                    0,
                    (version, policy),
                    entries,
                    self._hash(view, panel, shared),
                    self.finals[key].leader if key in self.finals else None,
                    None,
                )
                self._said(record)
                yield record

    def _changed(
        self, key: Key, entries: tuple[RankingEntry, ...], policy: ScoringPolicyUpdated
    ) -> bool:
        """Whether the order has changed, or a score by epsilon or more (M6)."""
        last = self.changed.get(key)
        if last is None:
            return True
        before = [(e.provider, e.model, e.rank) for e in last.entries]
        if before != [(e.provider, e.model, e.rank) for e in entries]:
            return True
        return any(
            abs(round((new.score or 0) * BILLION) - round((old.score or 0) * BILLION))
            >= max(1, policy.emit_epsilon_e9)
            for new, old in zip(entries, last.entries, strict=True)
        )

    def _entries(
        self,
        view: View,
        panel: Panel,
        policy: ScoringPolicyUpdated,
        shared: dict[object, Any],
        at_ms: int,
    ) -> tuple[RankingEntry, ...]:
        """Entries of a panel; measures are shared by the policies that look at the same."""
        percentile, unit = policy.latency_percentile, policy.cost_unit

        def measured(who: Who) -> Measured:
            key = (view, percentile, unit, who)
            if key not in shared:
                shared[key] = measure(panel[who], percentile, unit)
            found: Measured = shared[key]
            return found

        def prior(who: Who) -> Prior:
            return self.benchmarks.prior(who, view.role, policy, at_ms)

        return rank(panel, policy, measured, prior)

    def _hash(self, view: View, panel: Panel, shared: dict[object, Any]) -> str:
        if view not in shared:
            shared[view] = state_hash(panel)
        return str(shared[view])

    def _record(
        self,
        key: Key,
        status: RankingStatus,
        as_of_ms: int,
        window: tuple[int, int],
        revision: int,
        policy: tuple[int, ScoringPolicyUpdated],
        entries: tuple[RankingEntry, ...],
        digest: str,
        leader: LeaderState | None,
        leader_before: LeaderState | None,
    ) -> ModelProfileScored:
        role, mode = key
        marks = tuple(
            MarkPosition.model_construct(
                source_topic=t,
                source_partition=p,
                up_to_offset=self.marks[t, p].up_to_offset,
                watermark_ms=self.marks[t, p].watermark_ms,
            )
            for t, p in self.wanted()
        )
        last = (
            str(revision)
            if status is RankingStatus.FINAL
            else ",".join(str(m.up_to_offset) for m in marks)
        )
        return ModelProfileScored.model_construct(
            event_id=derived_id(
                "model.profile.scored", status.value, role, mode, self.generation, as_of_ms, last
            ),
            occurred_at_ms=as_of_ms,
            source="roster-scorer",
            tenant=None,
            persona=None,
            mode=mode,
            trace_id=None,
            budget_trace_id=None,
            role=role,
            deployment_mode=mode,
            status=status,
            as_of_ms=as_of_ms,
            window_start_ms=window[0],
            window_end_ms=window[1],
            revision=revision,
            generation=self.generation,
            policy_event_id=policy[1].event_id,
            policy_version=policy[0],
            marks=marks,
            inputs=tuple(
                InputPosition.model_construct(topic=t, partition=p, next_offset=offset)
                for (t, p), offset in sorted(self.positions.items())
            ),
            entries=entries[:MOST_ENTRIES],
            state_hash=digest,
            omitted=max(0, len(entries) - MOST_ENTRIES),
            leader=leader,
            leader_before=leader_before,
        )


def _version(scored: ModelProfileScored) -> tuple[int, int]:
    return scored.as_of_ms, scored.revision
