"""Gathers what the live view shows: follows topics, status files and the projector's read path in
threads of its own. `state()` is a value; tools/view.py draws it."""

import bisect
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx
from confluent_kafka import Message

from schemas import (
    BudgetThresholdCrossed,
    DeadLetter,
    Event,
    MeterMark,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
    Recorded,
)
from schemas.values import canonical_mode
from streams.codec import decode
from streams.kafka import append_ms
from streams.live_reader import LiveReader
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.status import named, read_all
from streams.topics import (
    BUDGET_THRESHOLD_CROSSED,
    DEAD_LETTERS,
    FOLDED,
    MODE_CHANGED,
    MODEL_FALLBACK_USED,
    MODEL_PROFILE_REJECTED,
    MODEL_PROFILE_SCORED,
    MODEL_PROFILE_UPDATED,
    SLM_METRICS,
)
from tools.log_reader import NEWEST_RANKINGS, Rankings
from tools.supervisor import ProcessState

RATE_OVER_S: Final = 5.0
LOOK_EVERY_S: Final = 0.5
ASK_EVERY_S: Final = 2.0
BURST_MS: Final = 30_000  # fallbacks (dead letters) within this time are one line
NOTABLE_KEPT: Final = 60
NEWEST: Final = {  # records before the end of each partition that are looked at
    MODEL_PROFILE_SCORED.name: NEWEST_RANKINGS,
    MODEL_PROFILE_UPDATED.name: 20,
    MODEL_PROFILE_REJECTED.name: 20,
    BUDGET_THRESHOLD_CROSSED.name: 50,
    MODEL_FALLBACK_USED.name: 200,
    DEAD_LETTERS.name: 20,
    SLM_METRICS.name: 500,
}
MARK: Final = b"mark\x1f"  # how keys of meter.mark begin
FOLLOWED: Final = (MODE_CHANGED.name, *NEWEST)
LAW: Final = ("applied", "duplicate", "late", "dead_lettered", "conflict", "control")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process as it is now. in_per_s, out_per_s: None until two reports were seen."""

    name: str
    state: str
    in_per_s: float | None = None
    out_per_s: float | None = None
    records_in: int = 0
    records_out: int = 0
    lag: int | None = None
    restarts: int = 0
    rss_bytes: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A budget's newest period. crossed: thresholds in percent of the cap."""

    tenant: str
    budget: str
    period: str
    spent_picousd: int
    cap_picousd: int
    crossed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notable:
    """Something a person wants to hear of. number: counts them; what happens many times in a row
    is one, whose text changes. at_ms: append time of the first."""

    number: int
    at_ms: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Conservation counters of one projection: consumed is the sum of the verdicts, or not."""

    name: str
    counters: Mapping[str, int]

    @property
    def holds(self) -> bool:
        """Whether nothing is lost or counted twice."""
        return self.counters.get("consumed", 0) == sum(self.counters.get(n, 0) for n in LAW)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that the view shows."""

    deployment: str
    mode: str | None = None
    now_ms: int = 0
    event_ms: int | None = None  # newest event time in any partition
    watermark_ms: int | None = None  # up to which all partitions are complete; None: not all known
    joined: str = ""
    rankings: tuple[ModelProfileScored, ...] = ()
    rankings_published: int = 0  # since the view began
    first_ranking_ms: int | None = None  # append time of the first of them
    processes: tuple[Process, ...] = ()
    budgets: tuple[Budget, ...] = ()
    notable: tuple[Notable, ...] = ()  # newest last
    laws: tuple[Law, ...] = ()
    trouble: str | None = None


@dataclass(slots=True)
class _Burst:
    begun_ms: int
    number: int
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Seen:
    """What the followed topics said. Guarded by the poller's lock."""

    modes: list[tuple[int, str]] = field(default_factory=list)  # event time, mode; as in the log
    notable: list[Notable] = field(default_factory=list)  # the newest, in the order of at_ms
    bursts: dict[str, _Burst] = field(default_factory=dict)
    marks: dict[bytes, Message] = field(default_factory=dict)  # newest of each source partition
    number: int = 0
    published: int = 0
    first_ms: int | None = None


def _mode_at(changes: list[tuple[int, str]], at_ms: int) -> str | None:
    """The mode in force at an event time; of two of the same time the later in the log counts."""
    past = [change for change in reversed(changes) if change[0] <= at_ms]
    return max(past, key=lambda change: change[0])[1] if past else None


class Poller:
    """Thread-safe. children: asked in the thread that calls state()."""

    def __init__(
        self,
        settings: Settings,
        joined: str = "",
        children: Callable[[], list[ProcessState]] | None = None,
        api: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._settings, self._joined, self._children, self._api = settings, joined, children, api
        self._begun_ms = time.time_ns() // 1_000_000
        self._lock = threading.Lock()
        self._seen = _Seen()
        self._ticks: dict[str, deque[tuple[float, int, int]]] = {}
        self._restarts: dict[str, int] = {}
        self._statuses: dict[str, dict[str, Any]] = {}
        self._budgets: tuple[Budget, ...] = ()
        self._stop = threading.Event()
        self._registry = Registry(settings.need_registry())
        self._catalogue = Catalogue(self._registry, topics=())
        self._rankings = Rankings(self._catalogue)
        self._reader = LiveReader(settings.need_kafka(), FOLLOWED, self._take, NEWEST)
        self._thread = threading.Thread(target=self._look, name="roster-poller", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the threads."""
        self._stop.set()
        self._reader.close()
        self._thread.join(5.0)
        self._registry.close()

    def state(self) -> State:
        """What is known now."""
        children = self._children() if self._children is not None else []
        rankings = tuple(self._rankings.now())
        marks = self._marks()
        with self._lock:
            self._note_restarts(children)
            seen = self._seen
            pids = {child.pid: child.name for child in children if child.pid is not None}
            statuses = named(self._statuses, pids)
            now_ms = time.time_ns() // 1_000_000
            return State(
                deployment=self._settings.deployment,
                mode=_mode_at(seen.modes, now_ms),
                now_ms=now_ms,
                event_ms=max((m.newest_event_ms or 0 for m in marks), default=0) or None,
                watermark_ms=watermark(marks),
                joined=self._joined,
                rankings=rankings,
                rankings_published=seen.published,
                first_ranking_ms=seen.first_ms,
                processes=tuple(self._processes(children, statuses)),
                budgets=self._budgets,
                notable=tuple(seen.notable),
                laws=tuple(
                    Law(name=name, counters=status["law"])
                    for name, status in sorted(statuses.items())
                    if status.get("law")
                ),
                trouble=self._reader.trouble,
            )

    # --- topics, in the reader's thread

    def _take(self, messages: list[Message]) -> None:
        rankings = [m for m in messages if m.topic() == MODEL_PROFILE_SCORED.name]
        if rankings:
            self._rankings.take(rankings)
        with self._lock:
            for message in rankings:
                at = append_ms(message)
                if at >= self._begun_ms:
                    self._seen.published += 1
                    self._seen.first_ms = self._seen.first_ms or at
        for message in messages:
            key = message.key()
            if message.topic() == SLM_METRICS.name:
                # Facts are many and large; only the newest mark of a partition is ever decoded.
                if isinstance(key, bytes) and key.startswith(MARK):
                    with self._lock:
                        self._seen.marks[key] = message
            elif message.topic() != MODEL_PROFILE_SCORED.name:
                found = decode(self._catalogue, message)
                if isinstance(found, Recorded):
                    with self._lock:
                        self._event(found.event, found.at.append_ms)

    def _event(self, event: Event, at_ms: int) -> None:
        match event:
            case ModeChanged():
                to = canonical_mode(event.to_mode)
                if event.deployment == self._settings.deployment:
                    self._seen.modes.append((event.occurred_at_ms, to))
                self._say(at_ms, "mode", f"{event.deployment} switched to {to} by {event.actor}")
            case ModelProfileUpdated():
                what = event.model or event.action.value.lower()
                self._say(at_ms, "profile", f"{event.profile_key()}: {what} by {event.actor}")
            case ModelProfileRejected():
                key = f"{event.scope}/{event.role}/{event.deployment_mode}"
                why = f"{event.kind.value.lower()}, {event.field}={event.value}"
                self._say(at_ms, "rejected", f"{key} by {event.actor}: {why}")
            case BudgetThresholdCrossed():
                self._say(
                    at_ms,
                    "budget",
                    f"{event.tenant}/{event.budget} has spent {event.threshold_percent} %"
                    f" of ${event.cap_picousd / 1e12:,.2f}",
                )
            case ModelFallbackUsed():
                provider = event.from_model.partition("/")[0]
                self._burst(at_ms, "fallback", f"from {provider} ({event.reason})")
            case DeadLetter():
                self._burst(at_ms, "dead", f"{event.origin_topic}: {event.reason}")
            case _:
                pass  # nothing else is followed

    def _say(self, at_ms: int, kind: str, text: str) -> int:
        self._seen.number += 1
        number = self._seen.number
        notable = Notable(number=number, at_ms=at_ms, kind=kind, text=text)
        # Topics are read side by side: what is read last need not be what happened last.
        bisect.insort(self._seen.notable, notable, key=lambda n: (n.at_ms, n.number))
        del self._seen.notable[:-NOTABLE_KEPT]
        return number

    def _burst(self, at_ms: int, kind: str, what: str) -> None:
        """One line for many of a kind: how many of what, the most frequent first."""
        burst = self._seen.bursts.get(kind)
        if burst is None or at_ms - burst.begun_ms > BURST_MS:
            burst = self._seen.bursts[kind] = _Burst(at_ms, self._say(at_ms, kind, ""))
        burst.counts[what] += 1
        parts = sorted(burst.counts.items(), key=lambda item: (-item[1], item[0]))
        text = ", ".join(f"{n:,} {what}" for what, n in parts)
        for index, notable in enumerate(self._seen.notable):
            if notable.number == burst.number:
                self._seen.notable[index] = replace(notable, text=text)

    def _marks(self) -> list[MeterMark]:
        with self._lock:
            messages = list(self._seen.marks.values())
        found = [decode(self._catalogue, message) for message in messages]
        marks = [r.event for r in found if isinstance(r, Recorded)]
        return [
            mark
            for mark in marks
            if isinstance(mark, MeterMark) and mark.generation == self._settings.generation
        ]

    # --- status files and the projector, in the poller's thread

    def _look(self) -> None:
        asked = 0.0
        with httpx.Client(timeout=3.0, trust_env=False) as http:
            while not self._stop.wait(LOOK_EVERY_S):
                statuses = read_all(self._settings.data)
                with self._lock:
                    self._statuses = statuses
                    for name, status in statuses.items():
                        self._tick(name, status)
                if time.monotonic() - asked >= ASK_EVERY_S:
                    asked = time.monotonic()
                    budgets = _budgets(http, self._api())
                    if budgets is not None:
                        self._budgets = budgets

    def _tick(self, name: str, status: Mapping[str, Any]) -> None:
        ticks = self._ticks.setdefault(name, deque())
        now = (status["at"], status["records_in"], status["records_out"])
        if ticks and (now[1] < ticks[-1][1] or now[2] < ticks[-1][2]):
            ticks.clear()  # started again: it counts from 0
        if not ticks or now[0] > ticks[-1][0]:
            ticks.append(now)
        while len(ticks) > 2 and ticks[-1][0] - ticks[1][0] >= RATE_OVER_S:
            ticks.popleft()

    def _processes(
        self, children: list[ProcessState], statuses: Mapping[str, dict[str, Any]]
    ) -> list[Process]:
        found = [self._process(c.name, c.state, statuses.get(c.name, {}), c) for c in children]
        others = statuses.keys() - {child.name for child in children}
        return found + [self._process(n, "ready", statuses[n], None) for n in sorted(others)]

    def _process(
        self, name: str, state: str, status: Mapping[str, Any], child: ProcessState | None
    ) -> Process:
        ticks = list(self._ticks.get(str(status.get("name")), ()))
        rates: tuple[float | None, float | None] = (None, None)
        if len(ticks) >= 2 and ticks[-1][0] > ticks[0][0]:
            (begun, in0, out0), (end, in1, out1) = ticks[0], ticks[-1]
            rates = ((in1 - in0) / (end - begun), (out1 - out0) / (end - begun))
        return Process(
            name=name,
            state=state,
            in_per_s=rates[0],
            out_per_s=rates[1],
            records_in=int(status.get("records_in", 0)),
            records_out=int(status.get("records_out", 0)),
            lag=status.get("lag"),
            restarts=child.restarts if child is not None else 0,
            rss_bytes=child.rss_bytes if child is not None else 0,
            note=str(status.get("note") or ""),
        )

    def _note_restarts(self, children: list[ProcessState]) -> None:
        now_ms = time.time_ns() // 1_000_000
        for child in children:
            died = child.restarts + (child.state == "down")
            if died > self._restarts.get(child.name, 0):
                self._restarts[child.name] = died
                text = f"{child.name} ended ({child.last_reason}) and is started again"
                self._say(now_ms, "process", text)


def watermark(marks: Sequence[MeterMark]) -> int | None:
    """The least watermark over all partitions of what is folded, by marks of one generation; None
    while one of them is unknown."""
    of = {(mark.source_topic, mark.source_partition): mark.watermark_ms for mark in marks}
    known = [w for w in of.values() if w is not None]
    return min(known) if len(known) == sum(topic.partitions for topic in FOLDED) else None


def _budgets(http: httpx.Client, api: str | None) -> tuple[Budget, ...] | None:
    if api is None:
        return None
    try:
        response = http.get(f"{api}/v1/budgets")
        rows = response.json()["budgets"] if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    if rows is None:
        return None
    return tuple(
        Budget(
            tenant=row["tenant"],
            budget=row["budget"],
            period=row["period"],
            spent_picousd=int(row["spent_picousd"]),
            cap_picousd=int(row["cap_picousd"]),
            crossed=tuple(row["crossed"] or ()),
        )
        for row in rows
    )
