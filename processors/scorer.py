"""The scorer as a state machine, apart from all I/O (design, Exactness 3; M5, M6).

It is fed the committed records of one partition of slm.metrics, in order, and the policies and
cards; it answers with the rankings to be published. It decides at marks alone: a mark proves that
all facts of its source partition up to its offset have been seen.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from processors.evidence import (
    Cards,
    Panel,
    Who,
    add_panel,
    copy_panel,
    panel_of,
)
from processors.meter_protocol import fact_key
from processors.scoring import Measured, measure, rank
from processors.windows import (
    GRACE_MS,
    PANE_MS,
    WINDOW_MS,
    WINDOW_PANES,
    is_closed,
    last_closed,
    pane_of,
)
from schemas.envelope import Recorded
from schemas.model_profile import (
    InputPosition,
    MarkPosition,
    ModelProfileScored,
    RankingEntry,
    RankingStatus,
)
from schemas.rate_card import RateCardUpdated
from schemas.scoring_policy import ScoringPolicyUpdated
from schemas.slm_metrics import MeterMark, PaneFact
from schemas.values import BILLION, canonical_mode, canonical_role, derived_id

Key = tuple[str, str]
"""(role, deployment mode)."""
LOOK_EVERY_MS = 1_000
"""Event time between two looks at whether a provisional ranking has changed."""


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


class Windows:
    """Panels of panes and windows per (role, evidence modes); panes of closed windows are added
    once and taken away once."""

    def __init__(self, facts: Facts, cards: Cards) -> None:
        self._facts, self._cards = facts, cards
        self._panes: dict[tuple[str, tuple[str, ...], int], Panel] = {}
        self._closed: dict[tuple[str, tuple[str, ...]], tuple[int, Panel]] = {}

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

    def closed(self, role: str, modes: tuple[str, ...], last_ms: int) -> Panel:
        """The window that ends with a closed pane. Do not change it."""
        end, panel = self._closed.get((role, modes), (None, {}))
        if end is None or end > last_ms or last_ms - end >= WINDOW_MS:
            end, panel = last_ms - WINDOW_MS, {}
            for pane in self._held(role, end, last_ms):
                add_panel(panel, self._pane(role, modes, pane))
        else:
            self._slide(panel, role, modes, end, last_ms)
        self._closed[role, modes] = (last_ms, panel)
        return panel

    def _slide(self, panel: Panel, role: str, modes: tuple[str, ...], end: int, to_ms: int) -> None:
        for pane in self._held(role, end, to_ms):
            add_panel(panel, self._pane(role, modes, pane))
        for pane in self._held(role, end - WINDOW_MS, to_ms - WINDOW_MS):
            add_panel(panel, self._pane(role, modes, pane), -1)
            self._panes.pop((role, modes, pane), None)

    def open(self, role: str, modes: tuple[str, ...], closed_ms: int, last_ms: int) -> Panel:
        """The window that ends with a pane which is still open, from the closed one before it."""
        panel = copy_panel(self.closed(role, modes, closed_ms))
        self._slide(panel, role, modes, closed_ms, last_ms)
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

    def in_force(self, key: Key, at_ms: int) -> tuple[int, ScoringPolicyUpdated] | None:
        """(version, policy) of a key at an event time; None before its first."""
        valid = [entry for entry in self._by_key.get(key, ()) if entry[0] <= at_ms]
        if not valid:
            return None
        _, _, version, policy = max(valid, key=lambda entry: entry[:2])
        return version, policy


class Scorer:
    """State of one partition of slm.metrics. sources: partitions per source topic."""

    def __init__(self, source_partitions: Mapping[str, int], generation: int) -> None:
        self.sources = dict(source_partitions)
        self.generation = generation
        self.marks: dict[tuple[str, int], MeterMark] = {}
        self.facts = Facts()
        self.cards = Cards()
        self.policies = Policies()
        self.windows = Windows(self.facts, self.cards)
        self.positions: dict[tuple[str, int], int] = {}
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
                self.decided[key] = scored.window_end_ms - PANE_MS
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
        return self.statements((recorded,), ())

    def card(self, recorded: Recorded[RateCardUpdated]) -> tuple[ModelProfileScored, ...]:
        """A card; returns corrections of the newest finals that it changes."""
        return self.statements((), (recorded,))

    def statements(
        self,
        policies: Iterable[Recorded[ScoringPolicyUpdated]],
        cards: Iterable[Recorded[RateCardUpdated]],
    ) -> tuple[ModelProfileScored, ...]:
        """Policies and cards that were read together; returns one correction of each newest final
        that they change: a hundred new prices are one look at the rankings, not a hundred."""
        changed: set[Key] = set()
        for policy in policies:
            changed.add(self.policies.add(policy.at.offset, policy.event))
            self.positions[policy.at.topic, policy.at.partition] = policy.at.offset + 1
        repriced = False
        for card in cards:
            self.cards.add(card.at.offset, card.event)
            self.positions[card.at.topic, card.at.partition] = card.at.offset + 1
            repriced = True
        if repriced:
            self.windows.forget_all()
            changed.update(self.finals)
        return tuple(self._corrections(sorted(changed)))

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
            due.extend(self._provisionals(watermark))
        return tuple(due)

    # --- time

    def watermark_ms(self) -> int | None:
        """Smallest watermark over all configured source partitions; None while one is missing."""
        marks = [self.marks.get(where) for where in self.wanted()]
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
        closed = last_closed(watermark)
        kept = self.kept_from_ms()
        if self.looked == (closed, self.policies.count):
            return
        self.looked = (closed, self.policies.count)
        due: list[tuple[int, str, str]] = []
        for role, panes in self.facts.roles.items():
            touched = {p for p in panes} | {p + WINDOW_MS for p in panes}
            for mode in self.policies.modes(role):
                last = self.decided.get((role, mode))
                due.extend(
                    (pane, role, mode)
                    for pane in touched
                    if pane <= closed
                    and (last is None or pane > last)
                    and window_of(pane)[0] >= kept
                )
        for key in sorted(set(self.finals) - self.compared):
            if is_closed(self.finals[key].window_end_ms - PANE_MS, watermark):
                self.compared.add(key)
                yield from self._corrections([key])
        shared: dict[object, Measured] = {}
        shared_pane = None
        for pane, role, mode in sorted(due):
            if pane != shared_pane:
                shared, shared_pane = {}, pane
            self.decided[role, mode] = pane
            final = self._final((role, mode), pane, 0, shared)
            if final is not None:
                self.compared.add((role, mode))
                self._said(final)
                yield final

    def _corrections(self, keys: Iterable[Key]) -> Iterator[ModelProfileScored]:
        """A next revision of each key's newest final whose content is no longer the same."""
        watermark = self.watermark_ms()
        for key in keys:
            final = self.finals.get(key)
            if final is None or watermark is None or final.window_start_ms < self.kept_from_ms():
                continue
            pane = final.window_end_ms - PANE_MS
            if not is_closed(pane, watermark):
                continue
            again = self._final(key, pane, final.revision + 1, {})
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
        )

    def _said(self, scored: ModelProfileScored) -> None:
        self.published(scored)

    def _final(
        self, key: Key, pane: int, revision: int, shared: dict[object, Measured]
    ) -> ModelProfileScored | None:
        start, end = window_of(pane)
        found = self.policies.in_force(key, end)
        if found is None:
            return None
        version, policy = found
        modes = evidence_modes(policy)
        panel = self.windows.closed(key[0], modes, pane)
        entries = self._entries(key[0], modes, panel, policy, shared)
        as_of = end + GRACE_MS
        return self._record(
            key, RankingStatus.FINAL, as_of, (start, end), revision, version, policy, entries
        )

    def _provisionals(self, watermark: int) -> Iterator[ModelProfileScored]:
        """Provisional rankings that differ enough from what was last said, and heartbeats."""
        pane = pane_of(watermark)
        closed = last_closed(watermark)
        shared: dict[object, Measured] = {}
        for role in sorted(self.facts.roles):
            for mode in self.policies.modes(role):
                key = (role, mode)
                if watermark - self.looked_at.get(key, -LOOK_EVERY_MS) < LOOK_EVERY_MS:
                    continue
                self.looked_at[key] = watermark
                found = self.policies.in_force(key, pane + PANE_MS)
                if found is None:
                    continue
                version, policy = found
                said_at = self.provisional_at.get(key)
                silent = key in self.newest and (
                    watermark - self.newest[key].as_of_ms >= policy.heartbeat_ms
                )
                held = said_at is not None and watermark - said_at < policy.emit_min_interval_ms
                if held and not silent:
                    continue
                modes = evidence_modes(policy)
                panel = self.windows.open(role, modes, closed, pane)
                entries = self._entries(role, modes, panel, policy, shared)
                changed = not held and self._changed(key, entries, policy)
                if not changed and not silent:
                    continue
                record = self._record(
                    key,
                    RankingStatus.PROVISIONAL if changed else RankingStatus.HEARTBEAT,
                    watermark,
                    window_of(pane),
                    0,
                    version,
                    policy,
                    entries,
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
        role: str,
        modes: tuple[str, ...],
        panel: Panel,
        policy: ScoringPolicyUpdated,
        shared: dict[object, Measured],
    ) -> tuple[RankingEntry, ...]:
        """Entries of a panel; measures are shared by the policies of a role that see the same."""
        percentile, unit = policy.latency_percentile, policy.cost_unit

        def measured(who: Who) -> Measured:
            key = (role, modes, percentile, unit, who)
            if key not in shared:
                shared[key] = measure(panel[who], percentile, unit)
            return shared[key]

        look: Callable[[Who], Measured] = measured
        return rank(panel, policy, look)

    def _record(
        self,
        key: Key,
        status: RankingStatus,
        as_of_ms: int,
        window: tuple[int, int],
        revision: int,
        version: int,
        policy: ScoringPolicyUpdated,
        entries: tuple[RankingEntry, ...],
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
            policy_event_id=policy.event_id,
            policy_version=version,
            marks=marks,
            inputs=tuple(
                InputPosition.model_construct(topic=t, partition=p, next_offset=offset)
                for (t, p), offset in sorted(self.positions.items())
            ),
            entries=entries,
        )


def window_of(pane_ms: int) -> tuple[int, int]:
    """[start, end) of the window whose last pane starts at pane_ms."""
    return pane_ms - (WINDOW_PANES - 1) * PANE_MS, pane_ms + PANE_MS


def evidence_modes(policy: ScoringPolicyUpdated) -> tuple[str, ...]:
    """Canonical modes whose invocations count; empty: all."""
    return tuple(sorted({canonical_mode(mode) for mode in policy.evidence_modes}))


def _version(scored: ModelProfileScored) -> tuple[int, int]:
    return scored.as_of_ms, scored.revision
