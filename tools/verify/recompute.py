"""Plain folds over records, one partition at a time: verdicts, facts, prices, profiles.

Dictionaries and integers only. math.md M4, M5, M8, M10; the meter judges duplicates within a
pane, the ledger for ever.
"""

import hashlib
import json
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from operator import add, sub
from typing import Final

from tools.verify.log import Record
from tools.verify.records import Fields, identifier

PANE_MS: Final = 300_000  # of the ledger's sums, and of facts by default
MODELS_PER_PANE: Final = 480
METRICS_PER_MODEL: Final = 64
OTHER: Final = "~"  # further metrics of a model
OTHERS: Final = (OTHER, OTHER)  # further models of one partition's pane
LIMIT: Final[list[int]] = [101**i // 99**i for i in range(1102)]
OVERFLOW: Final = 1102
OUTCOMES: Final = (
    "UNKNOWN",
    "SUCCESS",
    "REFUSAL",
    "FAILURE",
    "TIMEOUT",
    "RATE_LIMITED",
    "CALLER_ERROR",
    "CONFIG_ERROR",
    "CANCELLED",
)
OUTCOME_INDEX: Final = {symbol: i for i, symbol in enumerate(OUTCOMES)}
UNITS: Final = ("INPUT_TOKEN", "CACHED_TOKEN", "OUTPUT_TOKEN")
VERDICTS: Final = ("applied", "duplicate", "late", "dead_lettered", "conflict", "control")


@dataclass(frozen=True, slots=True)
class Rules:
    """How a generation of facts and rankings cuts event time (M5)."""

    generation: int = 2
    pane_ms: int = PANE_MS
    bound_ms: int = 60_000
    grace_ms: int = 600_000

    def pane_of(self, at_ms: int) -> int:
        """Start of the pane that a time lies in."""
        return at_ms - at_ms % self.pane_ms

    def closes_at(self, pane: int) -> int:
        """Watermark at which a pane closes; as_of of its final."""
        return pane + self.pane_ms + self.grace_ms


MODES: Final = {
    "local": "LOCAL",
    "development": "DEVELOPMENT",
    "developer": "DEVELOPMENT",
    "developer-light": "DEVELOPMENT",
    "dev": "DEVELOPMENT",
    "test": "TEST",
    "qa": "TEST",
    "training": "TRAINING",
    "production": "PRODUCTION",
    "prod": "PRODUCTION",
    "enterprise": "PRODUCTION",
}
ROLES: Final = {
    **{
        role: role
        for role in (
            "dialogue",
            "planning",
            "code",
            "embedding",
            "summary",
            "speech_recognition",
            "speech_synthesis",
            "image_generation",
        )
    },
    "chat": "dialogue",
    "dialogue & reasoning": "dialogue",
    "tool call planning": "planning",
    "structured output": "code",
    "knowledge ops": "embedding",
    "summaries & reports": "summary",
    "summarization": "summary",
    "asr": "speech_recognition",
    "tts": "speech_synthesis",
}


@lru_cache(maxsize=10_000)
def canonical_mode(sent: str | None) -> str:
    """Canonical mode; an unknown one as it was sent; empty: not said."""
    return "" if sent is None else MODES.get(sent.lower(), sent)


@lru_cache(maxsize=10_000)
def canonical_role(sent: str) -> str:
    """Canonical role; an unknown one as it was sent."""
    return ROLES.get(sent.lower(), sent)


def bucket(latency_us: int) -> int:
    """Smallest i with limit[i] >= latency_us; 1102 above the last limit (M4)."""
    return bisect_left(LIMIT, latency_us)


# Facts


CostSums = tuple[int, int, int, int, int]
"""Sums of cost, tokens, cost*cost, cost*tokens, tokens*tokens; cost in 1e-6 pUSD."""


@dataclass(slots=True)
class Totals:
    """One model in one pane: sums of integers, in the order of avsc/pane_fact.

    quality: observations and hits per metric. cost: what ranking.py has made of them, with the
    offset below which it knew the cards."""

    outcomes: list[int] = field(default_factory=lambda: [0] * len(OUTCOMES))
    tokens: list[int] = field(default_factory=lambda: [0] * 3)
    priced_n: int = 0
    unit_sums: list[int] = field(default_factory=lambda: [0] * 3)
    unit_products: list[int] = field(default_factory=lambda: [0] * 6)
    reported_n: int = 0
    reported_sums: list[int] = field(default_factory=lambda: [0] * 2)
    reported_products: list[int] = field(default_factory=lambda: [0] * 3)
    latency: Counter[int] = field(default_factory=Counter)
    quality: dict[str, list[int]] = field(default_factory=dict)
    cost: tuple[int, CostSums | None] | None = None

    def count(self, f: Fields) -> None:
        """Adds one applied invocation."""
        i, c, o = f["input_tokens"], f["cached_tokens"], f["output_tokens"]
        outcome = f["outcome"]
        self.outcomes[OUTCOME_INDEX[outcome]] += 1
        self.tokens = [self.tokens[0] + i, self.tokens[1] + c, self.tokens[2] + o]
        if outcome not in ("SUCCESS", "REFUSAL"):
            return
        self.latency[bucket(f["latency_us"])] += 1
        cost = f["reported_cost_picousd"]
        if cost is None:
            self.priced_n += 1
            _add(self.unit_sums, (i, c, o))
            _add(self.unit_products, (i * i, i * c, i * o, c * c, c * o, o * o))
        else:
            t = i + c + o
            self.reported_n += 1
            _add(self.reported_sums, (cost, t))
            _add(self.reported_products, (cost * cost, cost * t, t * t))

    def observe(self, f: Fields) -> None:
        """Adds the next applied model.quality.observed; the first metrics keep their names."""
        metric = f["metric"]
        if metric not in self.quality and len(self.quality) >= METRICS_PER_MODEL:
            metric = OTHER
        _add(self.quality.setdefault(metric, [0, 0]), (f["n"], f["hits"]))

    @property
    def invocations(self) -> int:
        """Of any outcome."""
        return sum(self.outcomes)

    def add(self, other: "Totals") -> None:
        """Adds the totals of another partition or pane."""
        _add(self.outcomes, other.outcomes)
        _add(self.tokens, other.tokens)
        self.priced_n += other.priced_n
        _add(self.unit_sums, other.unit_sums)
        _add(self.unit_products, other.unit_products)
        self.reported_n += other.reported_n
        _add(self.reported_sums, other.reported_sums)
        _add(self.reported_products, other.reported_products)
        self.latency.update(other.latency)
        for metric, counts in other.quality.items():
            _add(self.quality.setdefault(metric, [0, 0]), counts)

    def subtract(self, other: "Totals") -> None:
        """Takes away what was added before."""
        _subtract(self.outcomes, other.outcomes)
        _subtract(self.tokens, other.tokens)
        self.priced_n -= other.priced_n
        _subtract(self.unit_sums, other.unit_sums)
        _subtract(self.unit_products, other.unit_products)
        self.reported_n -= other.reported_n
        _subtract(self.reported_sums, other.reported_sums)
        _subtract(self.reported_products, other.reported_products)
        for index, n in other.latency.items():
            self.latency[index] -= n
            if not self.latency[index]:
                del self.latency[index]
        for metric, counts in other.quality.items():
            _subtract(self.quality[metric], counts)
            if not self.quality[metric][0]:
                del self.quality[metric]

    def as_fields(self, provider: str, model: str) -> Fields:
        """As one entry of a fact's models."""
        return {
            "provider": provider,
            "model": model,
            "outcomes": list(self.outcomes),
            "input_tokens": self.tokens[0],
            "cached_tokens": self.tokens[1],
            "output_tokens": self.tokens[2],
            "priced_n": self.priced_n,
            "unit_sums": [str(v) for v in self.unit_sums],
            "unit_products": [str(v) for v in self.unit_products],
            "reported_n": self.reported_n,
            "reported_sums": [str(v) for v in self.reported_sums],
            "reported_products": [str(v) for v in self.reported_products],
            "latency_buckets": sorted(self.latency),
            "latency_counts": [self.latency[i] for i in sorted(self.latency)],
            "quality": [
                {"metric": metric, "n": n, "hits": hits}
                for metric, (n, hits) in sorted(
                    self.quality.items(), key=lambda item: item[0].encode()
                )
            ],
        }


def _add(into: list[int], more: Sequence[int]) -> None:
    into[:] = map(add, into, more)


def _subtract(into: list[int], less: Sequence[int]) -> None:
    into[:] = map(sub, into, less)


PaneKey = tuple[str, str, int]  # role, mode, start of the pane
Pane = dict[tuple[str, str], Totals]  # by provider and model


def by_bytes(pair: tuple[str, str]) -> tuple[bytes, bytes]:
    """Order of provider and model: their UTF-8 bytes."""
    return pair[0].encode(), pair[1].encode()


def fact_models(pane: Pane) -> list[Fields]:
    """The models of a fact."""
    return [pane[pair].as_fields(*pair) for pair in sorted(pane, key=by_bytes)]


Seen = tuple[bytes, bytes]
"""Digests of (tenant, source, event_id) and of the record's value."""


def seen(record: Record, f: Fields) -> Seen:
    """What an invocation or an observation is known by: its identity, and its body."""
    identity = f"{f['tenant']}\x1f{f['source']}\x1f{f['event_id']}".encode()
    return (
        hashlib.blake2b(identity, digest_size=16).digest(),
        hashlib.blake2b(record.value or b"", digest_size=16).digest(),
    )


@dataclass(slots=True)
class Meter:
    """Verdicts, watermark and facts of one partition of a source of the meter (M5)."""

    rules: Rules = field(default_factory=Rules)
    watermark_ms: int | None = None
    newest_event_ms: int | None = None
    newest_append_ms: int | None = None
    records: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    panes: dict[PaneKey, Pane] = field(default_factory=dict)
    open_ids: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    open_from: dict[int, int] = field(default_factory=dict)  # first offset of each open pane
    changed_at: dict[PaneKey, int] = field(default_factory=dict)  # offset of the last applied

    def step(self, record: Record, decoded: tuple[str, Fields] | str, known: Seen | None) -> str:
        """Verdict of the next record of the partition; known: of all but ticks."""
        self.records += 1
        verdict = self._judge(record, decoded, known)
        self.verdicts[verdict] += 1
        return verdict

    def _judge(self, record: Record, decoded: tuple[str, Fields] | str, known: Seen | None) -> str:
        if isinstance(decoded, str):
            return "dead_lettered"
        kind, f = decoded
        if known is None:
            self._advance(f["base_occurred_at_ms"] + record.append_ms - f["base_append_ms"])
            return "control"
        ts = f["occurred_at_ms"]
        pane = self.rules.pane_of(ts)
        if self.watermark_ms is not None and self.rules.closes_at(pane) <= self.watermark_ms:
            return "late"
        if self.newest_event_ms is None or ts > self.newest_event_ms:
            self.newest_event_ms, self.newest_append_ms = ts, record.broker_ms
        ids = self.open_ids.setdefault(pane, {})
        self.open_from.setdefault(pane, record.offset)
        identity, body = known
        first = ids.setdefault(identity, body)
        if first is not body:
            verdict = "duplicate" if first == body else "conflict"
        else:
            verdict = "applied"
            key = (canonical_role(f["role"]), canonical_mode(f["mode"]), pane)
            models = self.panes.setdefault(key, {})
            pair = (f["provider"], f["model"])
            if pair not in models:
                if len(models) >= MODELS_PER_PANE:
                    pair = OTHERS
                models.setdefault(pair, Totals())
            if kind == "LlmInvocation":
                models[pair].count(f)
            else:
                models[pair].observe(f)
            self.changed_at[key] = record.offset
        self._advance(ts)
        return verdict

    def _advance(self, ts: int) -> None:
        moved = ts - self.rules.bound_ms - 1
        if self.watermark_ms is None or moved > self.watermark_ms:
            self.watermark_ms = moved
            closes_at = self.rules.closes_at
            if closes_at(min(self.open_ids, default=moved)) > moved:
                return
            for pane in [p for p in self.open_ids if closes_at(p) <= moved]:
                del self.open_ids[pane], self.open_from[pane]

    def mark(self, next_offset: int) -> Fields:
        """What a mark at next_offset - 1 must say; offsets without a record are control."""
        counts = {verdict: self.verdicts[verdict] for verdict in VERDICTS}
        counts["control"] += next_offset - self.records
        return {
            "up_to_offset": next_offset - 1,
            "watermark_ms": self.watermark_ms,
            "newest_event_ms": self.newest_event_ms,
            "newest_append_ms": self.newest_append_ms,
            "consumed": next_offset,
            **counts,
            "replay_from": min(self.open_from.values(), default=next_offset),
        }


# Statements


def first_of_id(take: Callable[[Record, Fields], None]) -> Callable[[Record, Fields], None]:
    """Gives only the first record of an identity in a partition; a repeat counts for nothing."""
    known: set[tuple[str, int, str | None, str, str]] = set()

    def take_new(record: Record, f: Fields) -> None:
        who = (record.topic, record.partition, f["tenant"], f["source"], f["event_id"])
        if who not in known:
            known.add(who)
            take(record, f)

    return take_new


# Money


class Cards:
    """Rate cards in log order."""

    def __init__(self) -> None:
        self._by_unit: dict[tuple[str, str, str], list[tuple[int, int, Record, Fields]]] = {}

    def add(self, record: Record, f: Fields) -> None:
        """Takes the next card of the log."""
        cards = self._by_unit.setdefault((f["provider"], f["model"], f["unit"]), [])
        cards.append((f["version"], record.offset, record, f))
        cards.sort(key=lambda card: card[:2], reverse=True)

    def price(
        self,
        provider: str,
        model: str,
        unit: str,
        at_ms: int,
        *,
        before_append_ms: int | None = None,
        before_offset: int | None = None,
    ) -> int | None:
        """pUSD per million of the card in force at at_ms, among those appended strictly before
        before_append_ms and standing below before_offset; None: there is none (M8)."""
        for _, offset, record, f in self._by_unit.get((provider, model, unit), ()):
            if before_append_ms is not None and record.append_ms >= before_append_ms:
                continue
            if before_offset is not None and offset >= before_offset:
                continue
            if f["valid_from_ms"] <= at_ms and (
                f["valid_to_ms"] is None or at_ms < f["valid_to_ms"]
            ):
                return int(f["price_picousd_per_million"])
        return None


def card_cost(cards: Cards, f: Fields, append_ms: int) -> int | None:
    """Cost of an invocation by the cards known before it, rounded once, half-even, to 1 pUSD;
    None: some unit has no card (M8)."""
    millionths = 0
    for unit, n in zip(
        UNITS, (f["input_tokens"], f["cached_tokens"], f["output_tokens"]), strict=True
    ):
        if n > 0:
            price = cards.price(
                f["provider"], f["model"], unit, f["occurred_at_ms"], before_append_ms=append_ms
            )
            if price is None:
                return None
            millionths += n * price
    return round(Fraction(millionths, 10**6))  # round() of a Fraction is half-even


@dataclass(slots=True)
class Ledger:
    """Verdicts of the ledger for one partition of llm.invocation (M10)."""

    ids: dict[bytes, bytes] = field(default_factory=dict)

    def step(self, decoded: tuple[str, Fields] | str, known: Seen | None) -> str:
        """Verdict of the next record of the partition; known: of an invocation."""
        if isinstance(decoded, str):
            return "dead_lettered"
        if known is None:
            return "control"
        identity, body = known
        first = self.ids.setdefault(identity, body)
        if first is body:
            return "applied"
        return "duplicate" if first == body else "conflict"


def period_start(period: str, at_ms: int) -> int:
    """Start of the budget period (HOUR, DAY, MONTH; UTC) that contains at_ms."""
    if period == "HOUR":
        return at_ms - at_ms % 3_600_000
    if period == "DAY":
        return at_ms - at_ms % 86_400_000
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return int(datetime(at.year, at.month, 1, tzinfo=UTC).timestamp()) * 1000


# Profiles (reliability.md section 5)

SCOPE: Final = re.compile(
    r"(staged:)?(system|mode|tenant:[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
    r"|user:[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._-]{0,63})"
)
WEB_ADDRESS: Final = re.compile(  # \\s would also take the separators 0x1c to 0x1f
    r"(https?://[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+)?"
)
REMEMBERED_IDS: Final = 64
PROFILE_FIELDS: Final = (
    "model",
    "fallbacks",
    "base_url",
    "temperature",
    "max_tokens",
    "extra",
    "credential_ref",
)


@dataclass(slots=True)
class Profile:
    """A row of the profiles table."""

    version: int = 0
    fields: Fields | None = None  # None: deleted, or never set
    cause: Record | None = None
    cause_fields: Fields | None = None
    ids: list[str] = field(default_factory=list)


def profile_step(row: Profile, record: Record, f: Fields) -> tuple[str, str | None]:
    """Takes the next model.profile.updated of a key into its row.

    Returns (ignored | applied | CONFLICT | INVALID, field that is invalid).
    """
    if f["event_id"] in row.ids:
        return "ignored", None
    row.ids = [*row.ids, f["event_id"]][-REMEMBERED_IDS:]
    if record.key != f"{f['scope']}/{f['role']}/{f['deployment_mode']}".encode():
        return "INVALID", "key"
    if f["expected_version"] is not None and f["expected_version"] != row.version:
        return "CONFLICT", None
    wrong = _invalid_profile(f)
    if wrong is not None:
        return "INVALID", wrong
    row.version += 1
    row.fields = {name: f[name] for name in PROFILE_FIELDS} if f["action"] == "SET" else None
    row.cause, row.cause_fields = record, f
    return "applied", None


def _model_id(value: str) -> bool:
    return identifier(value) is None and re.fullmatch(r"[^/]+/.+", value) is not None


def _shallow_object(text: str) -> bool:
    try:
        level = [json.loads(text)]
    except (RecursionError, ValueError):
        return False
    if not isinstance(level[0], dict):
        return False
    for _ in range(32):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False


def _invalid_profile(f: Fields) -> str | None:
    """Path of the first field that a profile may not have."""
    if SCOPE.fullmatch(f["scope"]) is None:
        return "scope"
    if f["action"] != "SET":
        return None
    if not _model_id(f["model"]):
        return "model"
    for i, fallback in enumerate(f["fallbacks"]):
        if not _model_id(fallback):
            return f"fallbacks.{i}"
    if len(f["base_url"]) > 4096 or WEB_ADDRESS.fullmatch(f["base_url"]) is None:
        return "base_url"
    heat = f["temperature"]
    if not (math.isfinite(heat) and 0 <= heat <= 2 and math.copysign(1, heat) > 0):  # no -0.0
        return "temperature"
    if f["max_tokens"] is not None and not 1 <= f["max_tokens"] <= 10**9:
        return "max_tokens"
    if len(f["extra"]) > 4096 or not _shallow_object(f["extra"]):
        return "extra"
    ref = f["credential_ref"]
    if ref is not None and (len(ref) > 4096 or not re.fullmatch(r"(env|vault)://.+", ref)):
        return "credential_ref"
    return None
