"""Final rankings in the log against those recomputed from the positions they name."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final as Constant
from typing import NamedTuple

from streams import topics
from tools.verify import ranking
from tools.verify.compare import MISSING, Report
from tools.verify.log import Log, Record
from tools.verify.recompute import (
    Cards,
    Meter,
    Pane,
    PaneKey,
    Rules,
    Totals,
    canonical_mode,
    canonical_role,
)
from tools.verify.records import Decoder, Fields, derived_id

TOPIC = topics.MODEL_PROFILE_SCORED.name
POLICIES = topics.SCORING_POLICY_UPDATED.name
CARDS = topics.RATE_CARD_UPDATED.name
BENCHMARKS = topics.SLM_BENCHMARK_RESULTS.name
LAST = "rankings: last final of every role and mode, to the last digit"
EVERY = "rankings: every final in the log, to the last digit"
MARKS = "rankings: watermarks of the marks they name"
GAPS = "rankings: panes of which a final must be there"
SOURCE: Constant = "roster-scorer"
SETTLES_MS: Constant = 10_000  # records of one scorer reach their partitions within that
REMEMBERED: Constant = 1_000  # windows, one for each role, set of modes and length

Key = tuple[str, str]  # role, deployment mode
Place = tuple[str, int]  # topic, partition
Leader = tuple[object, ...]
"""A leader's state, field by field: few of them, so the same ones are shared."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Which finals are recomputed. every: not the last of each key alone, but all of which as_of
    lies in [from_ms, to_ms); None: open."""

    every: bool = False
    from_ms: int | None = None
    to_ms: int | None = None

    def contains(self, as_of_ms: int) -> bool:
        """Whether a final of this time belongs to it."""
        return (self.from_ms is None or self.from_ms <= as_of_ms) and (
            self.to_ms is None or as_of_ms < self.to_ms
        )


@dataclass(frozen=True, slots=True)
class Final:
    """A final ranking as it stands in the log. before: the leader that the final before it left;
    revision: that it must have, by those before it."""

    at: Record
    fields: Fields
    before: Fields | None
    revision: int

    @property
    def where(self) -> str:
        f = self.fields
        return (
            f"{TOPIC}[{self.at.partition}]@{self.at.offset} {f['role']}/{f['deployment_mode']}"
            f" as of {f['as_of_ms']} revision {f['revision']}:"
        )


class Proof(NamedTuple):
    """A scorer that had read the policies below an offset has decided all panes before a time."""

    role: str
    policies: int
    as_of_ms: int
    append_ms: int


LEADER: Constant = (
    "provider",
    "model",
    "since_ms",
    "challenger_provider",
    "challenger_model",
    "closes",
)


class Chain:
    """Finals in log order, of keys that have a partition each: what each must follow."""

    def __init__(self) -> None:
        self._steps: dict[Key, dict[int, tuple[int, Leader | None, Leader | None]]] = {}
        self._newest: dict[Key, int] = {}
        self._shared: dict[Leader, Leader] = {}

    def link(self, record: Record, f: Fields) -> Final | None:
        """The next final; None: it repeats one that is there, and the first counts."""
        key = (f["role"], f["deployment_mode"])
        steps = self._steps.setdefault(key, {})
        at, newest = f["as_of_ms"], self._newest.get(key)
        if at in steps:
            revision, before, _ = steps[at]
            if f["revision"] <= revision:
                return None
            revision += 1
        elif newest is None or newest < at:
            revision, before = 0, None if newest is None else steps[newest][2]
            self._newest[key] = at
        else:
            earlier = max((one for one in steps if one < at), default=None)
            revision, before = 0, None if earlier is None else steps[earlier][2]
        steps[at] = (f["revision"], before, self._share(f["leader"]))
        fields = None if before is None else dict(zip(LEADER, before, strict=True))
        return Final(record, f, fields, revision)

    def _share(self, leader: Fields | None) -> Leader | None:
        if leader is None:
            return None
        found = tuple(leader[name] for name in LEADER)
        return self._shared.setdefault(found, found)


@dataclass(slots=True)
class Finals:
    """Finals of the log, record by record. stretch: those that will be compared.

    last: newest (as_of, revision) per key. panes: length of the window by as_of, per key. count:
    of those in the stretch. marks: watermarks that those to be compared name, by source partition
    and offset. proofs: of how far scorers have come. newest_ms: append time. asked, found: finals
    that recommendations name, by event_id."""

    stretch: Stretch
    rules: Rules
    report: Report
    last: dict[Key, Final] = field(default_factory=dict)
    panes: dict[Key, dict[int, int]] = field(default_factory=dict)
    count: int = 0
    marks: dict[tuple[str, int, int], set[int | None]] = field(default_factory=dict)
    proofs: list[Proof] = field(default_factory=list)
    newest_ms: int = 0
    asked: set[str] = field(default_factory=set)
    found: dict[str, Final] = field(default_factory=dict)
    _chain: Chain = field(default_factory=Chain)

    def take(self, record: Record, f: Fields) -> None:
        """Takes the next ranking of the log."""
        self.newest_ms = max(self.newest_ms, record.append_ms)
        if f["status"] != "FINAL":
            return
        if f["generation"] != self.rules.generation:
            self.report.remark(f"rankings of generation {f['generation']} were not compared")
            return
        final = self._chain.link(record, f)
        if final is None:
            return
        if f["event_id"] in self.asked:
            self.found.setdefault(f["event_id"], final)
        key = (f["role"], f["deployment_mode"])
        window = f["window_end_ms"] - f["window_start_ms"]
        self.panes.setdefault(key, {})[f["as_of_ms"]] = window // self.rules.pane_ms
        if f["revision"] == 0:
            read = _positions(f).get((POLICIES, 0), 0)
            self.proofs.append(Proof(f["role"], read, f["as_of_ms"], record.append_ms))
        known = self.last.get(key)
        if known is None or _version(f) > _version(known.fields):
            self.last[key] = final
        if self.stretch.every and self.stretch.contains(f["as_of_ms"]):
            self.count += 1
            self._note_marks(f)

    def _note_marks(self, f: Fields) -> None:
        """Remembers the watermarks that a final names, to be compared while the log is folded."""
        for mark in f["marks"]:
            place = (mark["source_topic"], mark["source_partition"], mark["up_to_offset"])
            self.marks.setdefault(place, set()).add(mark["watermark_ms"])

    def close(self) -> None:
        """All finals have been taken."""
        if not self.stretch.every:
            self.count = len(self.last)
            for final in self.last.values():
                self._note_marks(final.fields)


def _version(f: Fields) -> tuple[int, int]:
    return f["as_of_ms"], f["revision"]


def _positions(f: Fields) -> dict[Place, int]:
    return {(i["topic"], i["partition"]): i["next_offset"] for i in f["inputs"]}


def every_final(
    bootstrap: str, decode: Decoder, ends: dict[int, int], generation: int, stretch: Stretch
) -> Iterator[Final]:
    """The finals of a stretch, the first record of each (key, as_of, revision); in the order of
    time, since those of one time share their windows."""
    logs = [Log(bootstrap) for _ in ends]
    try:
        for log in logs:
            log.ends(TOPIC)
        streams = [
            _finals(log, decode, p, end, generation, stretch)
            for log, (p, end) in zip(logs, ends.items(), strict=True)
        ]
        yield from heapq.merge(
            *streams,
            key=lambda final: (final.fields["as_of_ms"], final.fields["role"]),
        )
    finally:
        for log in logs:
            log.close()


def _finals(
    log: Log, decode: Decoder, partition: int, end: int, generation: int, stretch: Stretch
) -> Iterator[Final]:
    chain = Chain()
    for record in log.read(TOPIC, partition, end):
        decoded = decode(record)
        if isinstance(decoded, str):
            continue
        f = decoded[1]
        if f["status"] == "FINAL" and f["generation"] == generation:
            final = chain.link(record, f)
            if final is not None and stretch.contains(f["as_of_ms"]):
                yield final


def due(made: Finals, place: Place, report: Report) -> list[tuple[int, Callable[[Meter], None]]]:
    """What to compare while one partition of a source is folded."""
    return [
        (up_to + 1, _watermarks(report, place, up_to, found))
        for (topic, partition, up_to), found in made.marks.items()
        if (topic, partition) == place
    ]


def _watermarks(
    report: Report, place: Place, up_to: int, found: set[int | None]
) -> Callable[[Meter], None]:
    def compare(meter: Meter) -> None:
        for watermark in found:
            where = f"{TOPIC}: mark of {place[0]}[{place[1]}] at {up_to}"
            report.equal(MARKS, where, meter.watermark_ms, watermark)

    return compare


@dataclass(slots=True)
class Inputs:
    """What rankings follow from. sources: partitions that are folded. ends: of the statements'
    topics. policies: in log order. benchmarks: by provider, model and name."""

    rules: Rules
    cards: Cards
    sources: list[Place] = field(default_factory=list)
    ends: dict[Place, int] = field(default_factory=dict)
    policies: dict[Key, list[tuple[int, int, Fields]]] = field(default_factory=dict)
    benchmarks: dict[tuple[str, str, str], list[tuple[Record, Fields]]] = field(
        default_factory=dict
    )
    evidence: dict[str, dict[int, dict[str, Pane]]] = field(default_factory=dict)
    """Role -> start of the pane -> mode -> totals by model."""
    _starts: dict[str, list[int]] = field(default_factory=dict)
    _windows: dict[tuple[str, frozenset[str], int], ranking.Window] = field(default_factory=dict)

    def policy(self, record: Record, f: Fields) -> None:
        """Takes the next policy of the log; its version is its number among those of its key."""
        key = (canonical_role(f["role"]), canonical_mode(f["deployment_mode"]))
        known = self.policies.setdefault(key, [])
        known.append((record.offset, len(known) + 1, f))

    def benchmark(self, record: Record, f: Fields) -> None:
        """Takes a benchmark result."""
        self.benchmarks.setdefault((f["provider"], f["model"], f["name"]), []).append((record, f))

    def panes(self, panes: dict[PaneKey, Pane]) -> None:
        """Adds what one partition has counted."""
        for (role, mode, start), pane in panes.items():
            modes = self.evidence.setdefault(role, {}).setdefault(start, {})
            models = modes.setdefault(mode, {})
            for pair, totals in pane.items():
                models.setdefault(pair, Totals()).add(totals)

    def in_force(self, key: Key, at_ms: int, below: int) -> tuple[int, Fields] | None:
        """(version, policy) of a key at an event time, of those below an offset."""
        known = [
            (f["occurred_at_ms"], offset, version, f)
            for offset, version, f in self.policies.get(key, ())
            if offset < below and f["occurred_at_ms"] <= at_ms
        ]
        if not known:
            return None
        _, _, version, policy = max(known, key=lambda item: item[:2])
        return version, policy

    def result(
        self, who: ranking.Who, wanted: Fields, role: str, at_ms: int, below: dict[Place, int]
    ) -> Fields | None:
        """The benchmark result that counts for a policy's benchmark at a time (M19), of those
        below the offsets."""
        known = [
            (f["occurred_at_ms"], record.partition, record.offset, f)
            for record, f in self.benchmarks.get((*who, wanted["name"]), ())
            if record.offset < below.get((BENCHMARKS, record.partition), 0)
            and f["occurred_at_ms"] <= at_ms
            and (f["role"] is None or canonical_role(f["role"]) == role)
            and wanted["dataset_hash"] in (None, f["dataset_hash"])
            and wanted["signature"] in (None, f["signature"])
        ]
        return max(known, key=lambda item: item[:3])[3] if known else None

    def window(
        self, role: str, first: int, last: int, modes: frozenset[str], below: int
    ) -> ranking.Window:
        """Evidence of the panes that start in [first, last], priced by the cards below an offset.
        Finals come in the order of time, so a window mostly moves by a pane or not at all."""
        asked = (role, modes, last - first)
        known = self._windows.get(asked)
        if known is None or known.below != below:
            if known is None and len(self._windows) >= REMEMBERED:
                self._windows.clear()
            panes = self.evidence.get(role, {})
            starts = self._starts.setdefault(role, sorted(panes))
            known = ranking.Window(panes, starts, modes, self.cards, below)
            self._windows[asked] = known
        known.move(first, last)
        return known


def wanted(final: Final, inputs: Inputs) -> Fields | str:
    """Every field of a final but its positions, from those positions; a text: why there is none."""
    f, rules = final.fields, inputs.rules
    key = (f["role"], f["deployment_mode"])
    below = _positions(f)
    end = f["window_end_ms"]
    last = end - rules.pane_ms
    if rules.pane_of(end) != end:
        return "no ranking: no pane ends then"
    found = inputs.in_force(key, end, below.get((POLICIES, 0), 0))
    if found is None:
        return "no ranking: no policy is in force"
    version, policy = found
    first = last - (policy["window_panes"] - 1) * rules.pane_ms
    modes = frozenset(canonical_mode(mode) for mode in policy["evidence_modes"])
    window = inputs.window(key[0], first, last, modes, below.get((CARDS, 0), 0))
    listed = ranking.entries(
        window.candidates(),
        policy,
        lambda who, benchmark: inputs.result(who, benchmark, key[0], end, below),
    )
    shown = listed[: ranking.MOST_ENTRIES]
    as_of = rules.closes_at(last)
    return {
        "event_id": derived_id(
            "model.profile.scored", "FINAL", *key, rules.generation, as_of, final.revision
        ),
        "occurred_at_ms": as_of,
        "source": SOURCE,
        "tenant": None,
        "persona": None,
        "mode": canonical_mode(key[1]),
        "trace_id": None,
        "budget_trace_id": None,
        "role": canonical_role(key[0]),
        "deployment_mode": canonical_mode(key[1]),
        "status": "FINAL",
        "as_of_ms": as_of,
        "window_start_ms": first,
        "window_end_ms": end,
        "revision": final.revision,
        "generation": rules.generation,
        "policy_event_id": policy["event_id"],
        "policy_version": version,
        "entries": [one.fields for one in shown],
        "state_hash": window.state_hash(),
        "omitted": len(listed) - len(shown),
        "leader_before": final.before,
        "leader": ranking.leader_after(final.before, shown, policy, as_of),
    }


def compare(final: Final, inputs: Inputs, report: Report, subject: str) -> None:
    """Recomputes one final ranking and compares all of it."""
    f = final.fields
    made = wanted(final, inputs)
    if isinstance(made, str):
        report.differs(subject, final.where, made, "a ranking")
        return
    named = [(m["source_topic"], m["source_partition"]) for m in f["marks"]]
    report.equal(subject, f"{final.where} marks", inputs.sources, named)
    watermarks = [m["watermark_ms"] for m in f["marks"]]
    if None in watermarks or min(watermarks, default=0) < made["as_of_ms"]:
        report.differs(
            subject, final.where, f"all marks at {made['as_of_ms']} or later", watermarks
        )
    read = [(i["topic"], i["partition"]) for i in f["inputs"]]
    report.equal(subject, f"{final.where} inputs", sorted(inputs.ends), read)
    for place, position in _positions(f).items():
        if not 0 <= position <= inputs.ends.get(place, position):
            where = f"{final.where} inputs {place[0]}[{place[1]}]"
            report.differs(subject, where, f"0 to {inputs.ends[place]}", position)
    report.fields(subject, final.where, made, f)


def compare_gaps(
    made: Finals,
    inputs: Inputs,
    homes: dict[str, int],
    kept_from_ms: int,
    watermark_ms: int | None,
    report: Report,
) -> None:
    """A key has a final for every pane that enters or leaves its window with evidence while a
    policy is in force: between the first and the last that it has, and, even if it has none at
    all, before the newest final of its scorer that had read the policy. After that the scorer
    only lags. homes: partition of slm.metrics, and so the scorer, of each role."""
    report.subject(GAPS)
    behind: list[Key] = []
    for key in sorted({*made.panes, *inputs.policies}):
        seen = made.panes.get(key, {})
        allowed, needed = _due(key, seen, made, inputs, kept_from_ms)
        name = f"{TOPIC} {'/'.join(key)}"
        for at in sorted(at for at in set(seen) - allowed if made.stretch.contains(at)):
            report.differs(GAPS, f"{name} as of {at}", "none is due", "a final")
        passed = _passed(key, made, inputs, homes)
        if seen:
            passed = max(passed, *seen)
        missing = sorted(needed - set(seen))
        for at in missing:
            if at <= passed and made.stretch.contains(at):
                what = "a final" if seen else "a final: the key has none at all"
                report.differs(GAPS, f"{name} as of {at}", what, MISSING)
        report.count(GAPS, sum(made.stretch.contains(at) for at in allowed & set(seen)))
        if watermark_ms is not None:
            behind += [key for at in missing if passed < at <= watermark_ms]
    if behind:
        keys = ", ".join("/".join(key) for key in sorted(set(behind))[:10])
        report.remark(
            f"the scorer lags: {len(behind):,} finals of panes that the marks have closed are due"
            f" ({keys})"
        )


def _due(
    key: Key, seen: dict[int, int], made: Finals, inputs: Inputs, kept_from_ms: int
) -> tuple[set[int], set[int]]:
    """(times of which there may be a final, those of which there must be one).

    What leaves the window counts where all policies of the key agree about its length: a policy
    that came late may have been unknown when a pane was decided.
    """
    rules = inputs.rules
    starts = inputs.evidence.get(key[0], {})
    may = {
        at
        for at, panes in seen.items()
        if (pane := at - rules.grace_ms - rules.pane_ms) in starts
        or pane - panes * rules.pane_ms in starts
    }
    policies = inputs.policies.get(key, [])
    lengths = {f["window_panes"] for _, _, f in policies}
    begin = min((f["occurred_at_ms"] for _, _, f in policies), default=0)
    touched = set(starts)
    if len(lengths) == 1:
        touched |= {start + n * rules.pane_ms for start in starts for n in lengths}
    longest = max(lengths, default=0)
    first = min(seen, default=None)
    must = {
        rules.closes_at(pane)
        for pane in touched
        if pane + rules.pane_ms >= begin
        and pane - (longest - 1) * rules.pane_ms >= kept_from_ms
        and (first is None or rules.closes_at(pane) >= first)
    }
    return may, must if policies else set()


def _passed(key: Key, made: Finals, inputs: Inputs, homes: dict[str, int]) -> int:
    """Time up to which the scorer of a key has decided all panes, and in the order of time, as
    finals of its other keys prove that had read the key's policies; -1: not known."""
    policies = [offset for offset, _, _ in inputs.policies.get(key, ())]
    home = homes.get(key[0])
    if home is None or not policies:
        return -1
    proofs = (
        proof.as_of_ms - 1
        for proof in made.proofs
        if proof.policies > max(policies)
        and homes.get(proof.role) == home
        and proof.append_ms <= made.newest_ms - SETTLES_MS
    )
    return max(proofs, default=-1)
