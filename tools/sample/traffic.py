"""The sample's invocations and fallbacks, a pure function of seed and start.

The same arguments give the same bytes, however time is cut. An event's time is that at which its
call ended: arrival + latency (+ that of the calls before it, for a fallback).
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyruhvro
from numpy.typing import NDArray

from schemas import Event, LlmInvocation, ModelFallbackUsed, ModelQualityObserved
from schemas.avro import schema_text
from schemas.values import Outcome
from tools import sample
from tools.defaults import BUDGET, CHEAP_CHAINS, PRODUCTION_CHAINS
from tools.sample import Ints
from tools.sample.script import (
    ATTEMPTS,
    JUDGED_PERCENT,
    LARGER,
    MODE_FALLS,
    MODE_RISES,
    MOVED_CHAIN,
    OUTAGE_CODE,
    OUTAGE_PERCENT,
    OUTAGE_TIMEOUT_PERCENT,
    OUTAGE_US,
    OUTAGES,
    PERSONAS,
    PHASE_US,
    PILOT,
    PILOT_PERCENT,
    PRIMARY_PERCENT,
    PROFILE_MOVES,
    PROFILE_RETURNS,
    ROLES,
    SOURCE,
    TENANTS,
    pilot,
)

BLOCK_MS: Final = 1_800_000  # event time made at once in the back-fill
LIVE_BLOCK_MS: Final = 200

Rows = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of [from_ms, to_ms), in order of event time. Columns as pyruhvro derives them from the
    schemas of llm.invocation, model.fallback.used and model.quality.observed."""

    from_ms: int
    to_ms: int
    invocations: pa.RecordBatch
    fallbacks: pa.RecordBatch
    observations: pa.RecordBatch


# Draws: a hash of what is drawn, so that no draw depends on another or on where time was cut. ---

_DRAWS: Final = ("role", "tenant", "pilot", "persona", "explore", "pair", "trace", "trace_low")
_ATTEMPT_DRAWS: Final = ("outage", "kind", "call", "id", "id_low", "switch", "switch_low")


def _key(seed: int, start_ms: int) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}|{start_ms}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea, Flood 2014), element by element."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draw(key: np.uint64, request: Ints, what: str, attempt: int | Ints = 0) -> NDArray[np.uint64]:
    """64 evenly spread bits per request, for one purpose and attempt."""
    names = _DRAWS + _ATTEMPT_DRAWS
    stream = np.asarray(names.index(what) + len(names) * np.asarray(attempt), np.uint64)
    return _mix(_mix(request.astype(np.uint64) ^ key) ^ _mix(np.atleast_1d(stream)))


def _percent(bits: NDArray[np.uint64]) -> Ints:
    return (bits % np.uint64(100)).astype(np.int64)


def _pick(shares: Sequence[int] | Ints, bits: NDArray[np.uint64]) -> Ints:
    """Index drawn in proportion to the shares."""
    edges = np.cumsum(shares)
    at = (bits % np.uint64(edges[-1])).astype(np.int64)
    return np.searchsorted(edges, at, side="right").astype(np.int64)


# Arrivals: request k of the endless repetition of the trace's hour. ------------------------------


def _arrival_us(request: Ints, start_ms: int, rate: float) -> Ints:
    """When requests arrive, in microseconds; never decreases with the number of the request."""
    trace = sample.arrivals()
    cycle, within = np.divmod(request, len(trace.offset_us))
    since = cycle * sample.HOUR_US + trace.offset_us[within] - PHASE_US
    live = np.floor(since / rate).astype(np.int64)
    return start_ms * 1000 + np.where(since < 0, since, live)


def _first_request(at_us: int, start_ms: int, rate: float) -> int:
    """The first request that arrives at or after a time."""
    offsets = sample.arrivals().offset_us
    since = at_us - start_ms * 1000
    place = PHASE_US + (since if since < 0 else math.floor(since * rate))
    cycle, within = divmod(place, sample.HOUR_US)
    k = cycle * len(offsets) + int(np.searchsorted(offsets, within))

    def arrives(number: int) -> int:
        return int(_arrival_us(np.array([number]), start_ms, rate)[0])

    while arrives(k - 1) >= at_us:  # the rate's rounding may move a request by some microseconds
        k -= 1
    while arrives(k) < at_us:
        k += 1
    return k


# Calls: every attempt of every request. ----------------------------------------------------------

_ROW: Final = np.dtype(
    [
        ("end_us", "i8"),
        ("request", "i8"),
        ("attempt", "i4"),
        ("arrival_us", "i8"),
        ("before_us", "i8"),  # spent on the attempts before this one
        ("latency_us", "i8"),
        ("first_token_us", "i8"),  # 0: none
        ("pair", "i4"),
        ("from_pair", "i4"),  # of the attempt before; -1: none
        ("from_outcome", "i4"),
        ("outcome", "i4"),
        ("error", "i4"),
        ("role", "i4"),
        ("tenant", "i4"),
        ("chain", "i4"),
        ("by_profile", "?"),
        ("input_tokens", "i8"),
        ("output_tokens", "i8"),
    ]
)
_OUTCOMES: Final = tuple(Outcome)
_COMPLETE: Final = _OUTCOMES.index(Outcome.SUCCESS)
_ERRORS: Final = ("", *sorted(set(sample.calls().error_code) - {""}), *OUTAGE_CODE.values())
_BY_CODE: Final = {
    "": Outcome.SUCCESS,
    "429": Outcome.RATE_LIMITED,
    **{code: outcome for outcome, code in OUTAGE_CODE.items()},
}
_OUTCOME_OF: Final = np.array(
    [_OUTCOMES.index(_BY_CODE.get(code, Outcome.FAILURE)) for code in _ERRORS]
)
_UNANSWERED: Final = np.array([code in {"429", "-1", *OUTAGE_CODE.values()} for code in _ERRORS])
_CALL_ERROR: Final = np.array([_ERRORS.index(code) for code in sample.calls().error_code])

_PAIRS: Final = [f"{provider}/{model}" for provider, model in sample.calls().pairs]
_PROVIDERS: Final = sorted({provider for provider, _ in sample.calls().pairs})
_PROVIDER: Final = np.array([_PROVIDERS.index(p) for p, _ in sample.calls().pairs])
_CHAINS: Final = (
    *(PRODUCTION_CHAINS[role] for role in ROLES),
    *(CHEAP_CHAINS[role] for role in ROLES),
    MOVED_CHAIN,
)
_CHAIN_PAIRS: Final = np.array([[_PAIRS.index(model) for model in chain] for chain in _CHAINS])
_MOVED: Final = len(_CHAINS) - 1

# No call takes longer, so whatever ends now belongs to a request that arrived within this time.
LONGEST_US: Final = ATTEMPTS * max(int(sample.calls().latency_us.max()), *OUTAGE_US.values())


def _within(at_us: Ints, start_ms: int, span_ms: tuple[int, int]) -> NDArray[np.bool_]:
    begin, end = ((start_ms + ms) * 1000 for ms in span_ms)
    return (at_us >= begin) & (at_us < end)


def _calls(key: np.uint64, start_ms: int, rate: float, first: int, last: int) -> Rows:
    """All calls of the requests [first, last), in no particular order."""
    trace, recorded = sample.arrivals(), sample.calls()
    request = np.arange(first, last, dtype=np.int64)
    if not len(request):
        return np.zeros(0, _ROW)
    at = np.zeros(len(request), _ROW)
    at["request"], at["attempt"], at["from_pair"] = request, 1, -1
    at["arrival_us"] = arrival = _arrival_us(request, start_ms, rate)
    at["role"] = role = _pick(tuple(ROLES.values()), _draw(key, request, "role"))
    pilot = _within(arrival, start_ms, PILOT) & (
        _percent(_draw(key, request, "pilot")) < PILOT_PERCENT
    )
    drawn = _pick(tuple(TENANTS.values()), _draw(key, request, "tenant"))
    at["tenant"] = np.where(pilot, len(TENANTS), drawn)
    cheap = _within(arrival, start_ms, (MODE_FALLS, MODE_RISES))
    moved = _within(arrival, start_ms, (PROFILE_MOVES, PROFILE_RETURNS)) & (role == 0)
    at["chain"] = np.where(cheap, role + len(ROLES), np.where(moved, _MOVED, role))
    at["by_profile"] = _percent(_draw(key, request, "explore")) < PRIMARY_PERCENT
    at["pair"] = np.where(
        at["by_profile"],
        _CHAIN_PAIRS[at["chain"], 0],
        _pick(recorded.succeeded, _draw(key, request, "pair")),
    )
    tried = [_PROVIDER[at["pair"]]]
    done = []
    for attempt in range(1, ATTEMPTS + 1):
        _finish(at, key, start_ms, attempt)
        answered = ~_UNANSWERED[at["error"]]
        place = at["request"] % len(trace.offset_us)
        at["input_tokens"] = np.where(answered, trace.input_tokens[place], 0)
        at["output_tokens"] = np.where(answered, trace.output_tokens[place], 0)
        done.append(at)
        again = at["outcome"] != _COMPLETE
        at, tried = at[again].copy(), [provider[again] for provider in tried]
        at["from_pair"], at["from_outcome"] = at["pair"], at["outcome"]
        at["before_us"] += at["latency_us"]
        at["attempt"], at["by_profile"] = attempt + 1, True
        options = _CHAIN_PAIRS[at["chain"]]
        fresh = np.all([_PROVIDER[options] != p[:, None] for p in tried], axis=0)
        at["pair"] = options[np.arange(len(at)), fresh.argmax(axis=1)]
        tried.append(_PROVIDER[at["pair"]])
    return np.concatenate(done)


def _finish(at: Rows, key: np.uint64, start_ms: int, attempt: int) -> None:
    """Fills in how the calls ended: as a recorded call of the pair, or by an outage."""
    recorded = sample.calls()
    begin = at["arrival_us"] + at["before_us"]
    drawn = _draw(key, at["request"], "call", attempt)
    call = recorded.first[at["pair"]] + (
        drawn % recorded.count[at["pair"]].astype(np.uint64)
    ).astype(np.int64)
    fails = np.zeros(len(at), bool)
    for provider, *span in OUTAGES:
        hit = _PROVIDER[at["pair"]] == _PROVIDERS.index(provider)
        fails |= hit & _within(begin, start_ms, (span[0], span[1]))
    fails &= _percent(_draw(key, at["request"], "outage", attempt)) < OUTAGE_PERCENT
    slow = _percent(_draw(key, at["request"], "kind", attempt)) < OUTAGE_TIMEOUT_PERCENT
    code, took = (
        np.where(slow, of[Outcome.TIMEOUT], of[Outcome.FAILURE])
        for of in ({o: _ERRORS.index(c) for o, c in OUTAGE_CODE.items()}, OUTAGE_US)
    )
    at["error"] = np.where(fails, code, _CALL_ERROR[call])
    # a call that was refused at once is recorded as 0; the schema's least latency is 1
    at["latency_us"] = np.where(fails, took, np.maximum(recorded.latency_us[call], 1))
    at["first_token_us"] = np.where(fails, 0, recorded.first_token_us[call])
    at["outcome"] = _OUTCOME_OF[at["error"]]
    at["end_us"] = begin + at["latency_us"]


# Events: calls as columns. -----------------------------------------------------------------------


def events(
    seed: int, start_ms: int, from_ms: int, to_ms: int, rate: float = 1.0
) -> Iterator[Batch]:
    """All invocations and fallbacks whose event time is in [from_ms, to_ms), block by block.

    start_ms: when live time, and with it the story, begins; from there on requests arrive `rate`
    times as fast as in the trace. The concatenation does not depend on where time is cut.
    """
    key = _key(seed, start_ms)
    seen = _first_request(from_ms * 1000 - LONGEST_US, start_ms, rate)
    waiting = np.zeros(0, _ROW)
    begin = from_ms
    while begin < to_ms:
        width = BLOCK_MS if begin < start_ms else LIVE_BLOCK_MS
        end = min(begin + width, to_ms, start_ms if begin < start_ms else to_ms)
        until = _first_request(end * 1000, start_ms, rate)
        waiting = np.concatenate([waiting, _calls(key, start_ms, rate, seen, until)])
        seen = until
        due = waiting["end_us"] < end * 1000
        now, waiting = waiting[due], waiting[~due]
        now = now[now["end_us"] >= from_ms * 1000]
        now = now[np.lexsort((now["attempt"], now["request"], now["end_us"]))]
        yield Batch(begin, end, *_columns(now, key, start_ms))
        begin = end


def _columns(
    rows: Rows, key: np.uint64, start_ms: int
) -> tuple[pa.RecordBatch, pa.RecordBatch, pa.RecordBatch]:
    tenants = [*TENANTS, pilot(start_ms)]
    ms = rows["end_us"] // 1000
    in_development = _within(rows["end_us"], start_ms, (MODE_FALLS, MODE_RISES))
    mode = _take(("PRODUCTION", "DEVELOPMENT"), in_development.astype(np.int64))
    asked_cheap = (rows["chain"] >= len(ROLES)) & (rows["chain"] != _MOVED)
    request = rows["request"]
    pairs = sample.calls().pairs
    role = _take(tuple(ROLES), rows["role"])
    tenant = _take(tenants, rows["tenant"])
    event_id = _uuid7(
        ms,
        _draw(key, request, "id", rows["attempt"]),
        _draw(key, request, "id_low", rows["attempt"]),
    )
    request_id = _uuid7(
        rows["arrival_us"] // 1000, _draw(key, request, "id"), _draw(key, request, "id_low")
    )
    profile_keys = [f"system/{name}/{at}" for at in ("PRODUCTION", "DEVELOPMENT") for name in ROLES]
    header: dict[str, Any] = {
        "event_id": event_id,
        "occurred_at_ms": ms,
        "source": pa.repeat(SOURCE, len(rows)),
        "tenant": tenant,
        "persona": _take(
            tuple(PERSONAS), _pick(tuple(PERSONAS.values()), _draw(key, request, "persona"))
        ),
        "mode": mode,
        "trace_id": _text(_hex(_draw(key, request, "trace"), _draw(key, request, "trace_low")), 32),
        "budget_trace_id": _take([f"{name}/{BUDGET}" for name in tenants], rows["tenant"]),
        "role": role,
        "request_id": request_id,
    }
    invocations = {
        **header,
        "provider": _take([provider for provider, _ in pairs], rows["pair"]),
        "model": _take([model for _, model in pairs], rows["pair"]),
        "outcome": _take(_OUTCOMES, rows["outcome"]),
        "input_tokens": rows["input_tokens"],
        "cached_tokens": np.zeros(len(rows), np.int64),
        "output_tokens": rows["output_tokens"],
        "latency_us": rows["latency_us"],
        "first_token_us": pa.array(rows["first_token_us"], mask=rows["first_token_us"] == 0),
        "gpu_ms": pa.nulls(len(rows), pa.int64()),
        "reported_cost_picousd": pa.nulls(len(rows), pa.int64()),
        "error_code": _take((None, *_ERRORS[1:]), rows["error"]),
        "attempt": rows["attempt"],
        "profile_key": _take(
            [*profile_keys, None],
            np.where(
                rows["by_profile"], rows["role"] + len(ROLES) * asked_cheap, len(profile_keys)
            ),
        ),
        "profile_version": pa.nulls(len(rows), pa.int64()),
    }
    fallbacks = {
        **header,
        "event_id": _uuid7(
            ms,
            _draw(key, request, "switch", rows["attempt"]),
            _draw(key, request, "switch_low", rows["attempt"]),
        ),
        "from_model": _take(_PAIRS, np.maximum(rows["from_pair"], 0)),
        "to_model": _take(_PAIRS, rows["pair"]),
        "reason": _take([name.lower() for name in _OUTCOMES], rows["from_outcome"]),
        "chain": pa.array([list(chain) for chain in _CHAINS]).take(pa.array(rows["chain"])),
        "attempt": rows["attempt"],
        "added_latency_us": rows["before_us"],
        "added_cost_picousd": pa.nulls(len(rows), pa.int64()),
        "invocation_id": event_id,
    }
    switched = _record_batch(ModelFallbackUsed, fallbacks).take(np.flatnonzero(rows["attempt"] > 1))
    made = _record_batch(LlmInvocation, invocations)
    return made, switched, _observations(rows, key, header, made)


JUDGING: Final = np.uint64(0x6A75646765)
"""Turns the key into one of its own, so that judging draws nothing of what is drawn elsewhere."""


def _observations(
    rows: Rows, key: np.uint64, header: dict[str, Any], invocations: pa.RecordBatch
) -> pa.RecordBatch:
    """A thumb for some of the answers."""
    own = key ^ JUDGING
    request, attempt = rows["request"], rows["attempt"]
    answers = sample.answers()
    prompt = (_draw(own, request, "call", attempt) % np.uint64(len(answers))).astype(np.int64)
    larger = np.array([LARGER in model for _, model in sample.calls().pairs], np.int64)
    ms = rows["end_us"] // 1000
    judged = _percent(_draw(own, request, "kind", attempt)) < JUDGED_PERCENT
    judged &= rows["outcome"] == _OUTCOMES.index(Outcome.SUCCESS)
    columns = {
        **header,
        "event_id": _uuid7(
            ms, _draw(own, request, "id", attempt), _draw(own, request, "id_low", attempt)
        ),
        "provider": invocations["provider"],
        "model": invocations["model"],
        "metric": pa.repeat("quality", len(rows)),
        "n": np.ones(len(rows), np.int64),
        "hits": answers[prompt, larger[rows["pair"]]],
        "invocation_id": header["event_id"],
        "judge": pa.repeat("sample", len(rows)),
    }
    return _record_batch(ModelQualityObserved, columns).take(np.flatnonzero(judged))


def _record_batch(event: type[Event], columns: dict[str, Any]) -> pa.RecordBatch:
    schema = pyruhvro.avro_to_arrow_schema(schema_text(event))
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[field.name]).cast(field.type) for field in schema], schema=schema
    )


def _take(names: Sequence[str | None], index: Ints) -> pa.StringArray:
    return pa.array(names, pa.string()).take(index)


_HEX: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


def _hex(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """128 bits as 32 hexadecimal digits: shape (n, 32)."""
    octets = np.stack([high, low], axis=1).astype(">u8").view(np.uint8).reshape(-1, 16)
    return _HEX[octets].view(np.uint8).reshape(-1, 32)


def _text(characters: NDArray[np.uint8], width: int) -> pa.StringArray:
    """ASCII strings of one width."""
    count = len(characters)
    offsets = np.arange(count + 1, dtype=np.int32) * width
    data = np.ascontiguousarray(characters).tobytes()
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data))


def _uuid7(ms: Ints, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> pa.StringArray:
    """Ids of the form of RFC 9562 version 7: time, then bits that follow from seed and number."""
    timed = (ms.astype(np.uint64) << np.uint64(16)) | np.uint64(0x7000)
    digits = _hex(
        timed | (high & np.uint64(0x0FFF)),
        (low & np.uint64(0x3FFF_FFFF_FFFF_FFFF)) | np.uint64(0x8000_0000_0000_0000),
    )
    dash = np.full((len(digits), 1), ord("-"), np.uint8)
    parts = np.split(digits, (8, 12, 16, 20), axis=1)
    return _text(np.hstack([x for part in parts for x in (part, dash)][:-1]), 36)
