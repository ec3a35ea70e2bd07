"""The projector on the real broker: killed, cheated and asked while it works."""

import json
import os
import random
import resource
import shutil
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pytest

from projections import runner
from schemas import (
    BudgetThresholdCrossed,
    BudgetUpdated,
    ClockTick,
    DeadLetter,
    LateEvent,
    LlmInvocation,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileUpdated,
    ModelRegistered,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
)
from schemas.budget import CapAction
from schemas.model import RegistrationAction
from schemas.model_profile import ProfileAction
from schemas.rate_card import PriceUnit
from schemas.scoring_policy import CostUnit
from schemas.values import MAX_RECORD_BYTES, Outcome
from streams import topics
from streams.codec import Undecodable, decode, encode, frame
from streams.errors import LogDamaged
from streams.kafka import producer, read_to_end
from tests.support.gate import gate

pytestmark = pytest.mark.kafka
UNITS = (PriceUnit.INPUT_TOKEN, PriceUnit.CACHED_TOKEN, PriceUnit.OUTPUT_TOKEN)
Start = Callable[..., Any]


def now_ms() -> int:
    return int(time.time() * 1000)


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def invocation(**fields: Any) -> LlmInvocation:
    return LlmInvocation(
        **{
            "event_id": unique("e"),
            "occurred_at_ms": now_ms(),
            "source": "gateway",
            "tenant": "acme",
            "role": "code",
            "provider": "p",
            "model": "m",
            "outcome": Outcome.SUCCESS,
            "input_tokens": 1000,
            "output_tokens": 100,
            "latency_us": 1000,
            **fields,
        }
    )


def card(model: str, unit: PriceUnit, price: int, **fields: Any) -> RateCardUpdated:
    return RateCardUpdated(
        **{
            "event_id": unique("card"),
            "occurred_at_ms": now_ms(),
            "source": "test",
            "provider": "p",
            "model": model,
            "unit": unit,
            "price_picousd_per_million": price,
            "valid_from_ms": 0,
            **fields,
        }
    )


def budget(tenant: str, cap: int) -> BudgetUpdated:
    return BudgetUpdated(
        event_id=unique("budget"),
        occurred_at_ms=now_ms(),
        source="test",
        tenant=tenant,
        budget="main",
        cap_picousd=cap,
        period="MONTH",  # type: ignore[arg-type]  # as it comes from a file
        at_cap=CapAction.DENY,
        actor="someone",
    )


def registration(model: str, **fields: Any) -> ModelRegistered:
    return ModelRegistered(
        **{
            "event_id": unique("registration"),
            "occurred_at_ms": now_ms(),
            "source": "test",
            "provider": "p",
            "model": model,
            "action": RegistrationAction.SET,
            "actor": "a",
            **fields,
        }
    )


def letters_of(log: Any, topic: str) -> dict[tuple[int, int], list[str]]:
    """Partition and offset of every record that has a dead letter -> the reasons."""
    found = defaultdict(list)
    for message in read_to_end(log.bootstrap, topics.DEAD_LETTERS.name):
        recorded = decode(log.catalogue, message)
        if isinstance(recorded, Recorded) and isinstance(recorded.event, DeadLetter):
            event = recorded.event
            if event.origin_topic == topic:
                found[event.origin_partition, event.origin_offset].append(event.reason)
    return dict(found)


# What the ledger must hold, told again in the plainest way.


def plain_ledger(log: Any) -> tuple[dict[tuple[int, int], Any], Counter[str]]:
    """(partition, offset) -> (event, cost), and the number of records by verdict."""
    cards: dict[tuple[str, str, PriceUnit], list[Any]] = defaultdict(list)
    for message in read_to_end(log.bootstrap, topics.RATE_CARD_UPDATED.name):
        recorded = decode(log.catalogue, message)
        if isinstance(recorded, Recorded) and isinstance(recorded.event, RateCardUpdated):
            said = recorded.event
            cards[said.provider, said.model, said.unit].append((said, recorded.at))
    rows: dict[tuple[int, int], Any] = {}
    first: dict[Any, bytes] = {}
    verdicts: Counter[str] = Counter()
    for message in read_to_end(log.bootstrap, topics.LLM_INVOCATION.name):
        invoked = decode(log.catalogue, message)
        if isinstance(invoked, Undecodable):
            verdicts["dead_lettered"] += 1
            continue
        assert isinstance(invoked, Recorded)
        event, at = invoked.event, invoked.at
        if isinstance(event, ClockTick):
            verdicts["control"] += 1
            continue
        assert isinstance(event, LlmInvocation)
        value = message.value()
        assert isinstance(value, bytes)
        identity = (at.partition, event.tenant, event.source, event.event_id)
        if identity in first:
            verdicts["duplicate" if first[identity] == value else "conflict"] += 1
            continue
        first[identity] = value
        verdicts["applied"] += 1
        total: Fraction | None = Fraction(0)
        counts = (event.input_tokens, event.cached_tokens, event.output_tokens)
        for unit, n in zip(UNITS, counts, strict=True):
            if n and total is not None:
                valid = [
                    (c.version, c_at.offset, c.price_picousd_per_million)
                    for c, c_at in cards[event.provider, event.model, unit]
                    if c_at.append_ms < at.append_ms
                    and c.valid_from_ms <= event.occurred_at_ms
                    and (c.valid_to_ms is None or event.occurred_at_ms < c.valid_to_ms)
                ]
                total = total + Fraction(n * max(valid)[2], 10**6) if valid else None
        by_card = None if total is None else round(total)
        reported = event.reported_cost_picousd
        rows[at.partition, at.offset] = (event, reported if reported is not None else by_card)
    return rows, verdicts


def assert_ledger_is_that_of_the_log(log: Any, db: duckdb.DuckDBPyConnection) -> None:
    expected, verdicts = plain_ledger(log)
    found = db.execute(
        "SELECT src_partition, src_offset, event_id, tenant, input_tokens, output_tokens,"
        " cost_picousd FROM invocations ORDER BY 1, 2"
    ).fetchall()
    assert found == [
        (*place, e.event_id, e.tenant, e.input_tokens, e.output_tokens, cost)
        for place, (e, cost) in sorted(expected.items())
    ]
    counted = db.execute(
        "SELECT sum(applied), sum(duplicate), sum(conflict), sum(dead_lettered)"
        " FROM projection_offsets WHERE topic = 'llm.invocation'"
    ).fetchall()
    assert counted == [
        tuple(verdicts[v] for v in ("applied", "duplicate", "conflict", "dead_lettered"))
    ]
    sums: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for event, cost in expected.values():
        entry = sums[event.tenant, event.occurred_at_ms // 3_600_000 * 3_600_000]
        entry[0] += 1
        entry[1] += cost is None
        entry[2] += cost or 0
    hourly = db.execute(
        "SELECT tenant, hour_ms, sum(n), sum(unpriced_n), sum(cost_picousd) FROM cost_hourly"
        " GROUP BY ALL"
    ).fetchall()
    assert {row[:2]: list(row[2:]) for row in hourly} == sums


def assert_the_law_holds(db: duckdb.DuckDBPyConnection) -> None:
    broken = db.execute(
        "FROM projection_offsets WHERE consumed <> next_offset - first_offset OR consumed <>"
        " applied + duplicate + late + dead_lettered + conflict + control"
    ).fetchall()
    assert broken == []


TABLES = (
    "invocations",
    "fallbacks",
    "profile_changes",
    "profile_rejections",
    "mode_changes",
    "model_registrations",
    "policies",
    "rate_cards",
    "budget_updates",
    "budget_thresholds",
    "rankings",
    "ranking_entries",
    "late_events",
    "dead_letters",
    "cost_hourly",
    "metrics_totals",
    "latency_totals",
    "projection_offsets",
)


def differing(one: Path, other: Path) -> list[str]:
    """Tables whose rows are not the same in both files."""
    with duckdb.connect() as db:
        db.execute(f"ATTACH '{one}' AS a (READ_ONLY)")
        db.execute(f"ATTACH '{other}' AS b (READ_ONLY)")
        return [
            table
            for table in TABLES
            if db.execute(
                f"(FROM a.{table} EXCEPT ALL FROM b.{table})"
                f" UNION ALL (FROM b.{table} EXCEPT ALL FROM a.{table})"
            ).fetchall()
        ]


def test_killed_at_any_time_it_ends_with_the_rows_of_an_unbroken_run(
    log: Any, spawn: Start, project: Start, tmp_path: Path
) -> None:
    rng = random.Random(7)
    model, tenant = unique("model"), unique("tenant")
    for unit in UNITS:
        log.send(topics.RATE_CARD_UPDATED, card(model, unit, rng.randrange(10**12)))
    log.send(topics.BUDGET_UPDATED, budget(tenant, 10**9))
    log.flush()
    done = threading.Event()

    def produce() -> None:
        sent: list[LlmInvocation] = []
        while not done.wait(0.02) and len(sent) < 8_000:
            for _ in range(40):
                dice = rng.random()
                if sent and dice < 0.04:
                    event = rng.choice(sent)
                elif sent and dice < 0.06:
                    event = rng.choice(sent).model_copy(update={"latency_us": rng.randrange(10**9)})
                else:
                    event = invocation(
                        event_id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                        tenant=rng.choice([tenant, "other"]),
                        model=rng.choice([model, "unpriced"]),
                        cached_tokens=rng.randrange(50),
                    )
                    sent.append(event)
                log.send(topics.LLM_INVOCATION, event)
            if rng.random() < 0.3:
                log.raw("llm.invocation", b"key", b"nonsense %d" % rng.randrange(9))
            if rng.random() < 0.1:
                log.send(
                    topics.RATE_CARD_UPDATED, card(model, rng.choice(UNITS), rng.randrange(99))
                )
        log.flush()

    load = threading.Thread(target=produce)
    load.start()
    data = tmp_path / "killed"
    data.mkdir()
    try:
        for _ in range(5):
            victim = spawn(data)
            time.sleep(rng.random())
            victim.process.send_signal(signal.SIGKILL)
            victim.process.wait()
    finally:
        done.set()
        load.join()
    log.send(topics.LLM_INVOCATION, invocation(tenant=tenant, reported_cost_picousd=10**9))
    log.flush()
    survivor = project(data)
    survivor.caught_up(log)
    survivor.end()
    with duckdb.connect(str(data / "roster.duckdb"), read_only=True) as db:
        assert_ledger_is_that_of_the_log(log, db)
        assert_the_law_holds(db)
        crossed = db.execute(
            "SELECT threshold_percent FROM budget_thresholds WHERE tenant = ? ORDER BY 1", [tenant]
        ).fetchall()
        assert crossed == [(80,), (100,)]

    rebuilt = project(tmp_path / "rebuilt")
    rebuilt.caught_up(log)
    rebuilt.end()
    assert differing(data / "roster.duckdb", tmp_path / "rebuilt" / "roster.duckdb") == []
    for reasons in letters_of(log, "llm.invocation").values():
        assert len(reasons) == 1


def bad_invocations(log: Any) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """reason, key, value (reliability.md, section 4)."""
    good = invocation()
    key = f"{good.tenant}/{good.event_id}".encode()
    value = encode(log.catalogue, topics.LLM_INVOCATION, good)
    yield "null_key", None, value
    yield "empty_value", b"k", None
    yield "empty_value", b"k", b""
    yield "bad_frame", b"k", b"\0\0\0"
    for first in (b"{", b"Obj\x01", b"\x01", b"\xc3\x01"):
        yield "bad_magic", b"k", first + value
    for schema_id in (0, 2**31 - 1, -1):
        yield "schema_unknown", b"k", frame(schema_id, value[5:])
    mode = ModeChanged(
        event_id="m", occurred_at_ms=1, source="s", deployment="d", to_mode="TEST", actor="a"
    )
    yield "schema_not_allowed", b"k", encode(log.catalogue, topics.MODE_CHANGED, mode)
    for cut in (6, 20, len(value) - 1):
        yield "decode_error", b"k", value[:cut]
    yield "decode_error", b"k", value[:5] + b"\xff" * 12
    yield "trailing_bytes", key, value + b"\0"
    yield "too_large", b"k", value + b"x" * MAX_RECORD_BYTES

    def odd(**fields: Any) -> tuple[bytes, bytes]:
        event = good.model_copy(update=fields)
        return (
            f"{event.tenant}/{event.event_id}".encode(),
            encode(log.catalogue, topics.LLM_INVOCATION, event),
        )

    for fields in (
        {"input_tokens": -1},
        {"output_tokens": 10**9 + 1},
        {"latency_us": 0},
        {"reported_cost_picousd": -1},
    ):
        yield "out_of_range", *odd(**fields)
    texts: tuple[dict[str, Any], ...] = (
        {"role": ""},
        {"tenant": ""},
        {"event_id": "x" * 129},
        {"event_id": str(uuid.UUID(int=0))},
        {"provider": "../etc"},
        {"model": "'; DROP TABLE x;--"},
    )
    for fields in texts:
        yield "invalid_field", *odd(**fields)
    yield "invalid_field", b"someone/else", value
    yield "ts_future", *odd(occurred_at_ms=now_ms() + 3_600_000)
    yield "ts_too_old", *odd(occurred_at_ms=now_ms() - 36 * 86_400_000)


def test_each_bad_record_becomes_one_dead_letter_with_its_reason(log: Any, projector: Any) -> None:
    first = log.ends()["llm.invocation"]["5"]
    expected = []
    for reason, key, value in bad_invocations(log):
        log.raw("llm.invocation", key, value, partition=5)
        expected.append(reason)
    again = invocation()
    key = f"{again.tenant}/{again.event_id}".encode()
    value = b""
    for event in (again, again, again.model_copy(update={"latency_us": 77})):
        value = encode(log.catalogue, topics.LLM_INVOCATION, event)
        log.raw("llm.invocation", key, value, partition=5)
    log.flush()
    projector.caught_up(log)
    got = letters_of(log, "llm.invocation")
    mine = {place[1] - first: reasons for place, reasons in got.items() if place[0] == 5}
    for n, reason in enumerate(expected):
        assert mine.pop(n) == [reason], (n, reason)
    conflict = len(expected) + 2  # good, its duplicate, then the same id with another body
    assert mine.pop(conflict) == ["id_conflict"]
    assert not [n for n in mine if n >= 0]
    kept = projector.sql(
        "SELECT hex(value), value_length FROM dead_letters"
        f" WHERE origin_topic = 'llm.invocation' AND origin_offset = {first + conflict}"
        " AND origin_partition = 5"
    )
    assert kept == [[value.hex().upper(), len(value)]]


def test_a_good_record_is_filed_within_a_second_of_any_bad_ones(log: Any, projector: Any) -> None:
    projector.caught_up(log)
    for topic in topics.TOPICS:
        if topic.events and not topic.internal:
            log.raw(topic.name, b"k", b"\0\0\0\0\0nonsense")
    good = invocation()
    log.send(topics.LLM_INVOCATION, good)
    log.flush()
    begun = time.monotonic()
    sql = f"SELECT count(*) FROM invocations WHERE event_id = '{good.event_id}'"
    while projector.sql(sql) != [[1]]:
        assert time.monotonic() - begun < 5  # a second where nothing else runs
    projector.caught_up(log)
    for topic in topics.TOPICS:
        if topic.events and not topic.internal:
            bad = projector.sql(
                "SELECT sum(dead_lettered)::INT, (SELECT count(*) FROM dead_letters"
                f" WHERE origin_topic = '{topic.name}' AND reason <> 'id_conflict')"
                f" FROM projection_offsets WHERE topic = '{topic.name}'"
            )
            counted, filed = bad[0]
            assert counted > 0
            assert filed == (0 if topic is topics.DEAD_LETTERS else counted), topic.name


def test_a_repeated_id_is_counted_on_every_topic_and_a_conflict_is_a_dead_letter(
    log: Any, projector: Any
) -> None:
    header: dict[str, Any] = {"occurred_at_ms": now_ms(), "source": "test"}
    policy = ScoringPolicyUpdated(
        event_id=unique("policy"),
        **header,
        role="chat",
        deployment_mode="dev",
        weight_quality=2500,
        weight_cost=2500,
        weight_latency=2500,
        weight_reliability=2500,
        cost_unit=CostUnit.PER_REQUEST,
        reference_cost_picousd=1,
        reference_latency_us=1,
        actor="a",
    )
    fallback = ModelFallbackUsed(
        event_id=unique("fallback"),
        **header,
        tenant="acme",
        role="chat",
        from_model="a",
        to_model="b",
        reason="timeout",
        chain=("a", "b"),
        attempt=2,
        added_latency_us=5,
    )
    change = ModelProfileUpdated(
        event_id=unique("change"),
        **header,
        scope="system",
        role="code",
        deployment_mode="TEST",
        action=ProfileAction.SET,
        model="p/m",
        actor="a",
    )
    mode = ModeChanged(
        event_id=unique("mode"), **header, deployment="main", to_mode="qa", actor="a"
    )
    cases: list[tuple[Any, str, Any, dict[str, Any], int]] = [
        (topics.SCORING_POLICY_UPDATED, "policies", policy, {"actor": "b"}, 3),
        (topics.MODEL_FALLBACK_USED, "fallbacks", fallback, {"attempt": 3}, 1),
        (topics.MODEL_PROFILE_UPDATED, "profile_changes", change, {"actor": "b"}, 3),
        (topics.MODE_CHANGED, "mode_changes", mode, {"actor": "b"}, 3),
        (topics.MODEL_REGISTERED, "model_registrations", registration("m"), {"actor": "b"}, 3),
        (topics.RATE_CARD_UPDATED, "rate_cards", card("m", UNITS[0], 5), {"version": 2}, 3),
        (topics.BUDGET_UPDATED, "budget_updates", budget("nobody", 5), {"actor": "b"}, 3),
    ]
    for topic, _, event, changed, _ in cases:
        for said in (event, event, event.model_copy(update=changed)):
            log.send(topic, said, b"k")
    log.flush()
    projector.caught_up(log)
    for topic, table, event, _, rows in cases:
        found = projector.sql(f"FROM {table} WHERE event_id = '{event.event_id}'")
        assert len(found) == rows, table
        if rows == 3:
            verdicts = projector.sql(
                f"SELECT verdict FROM {table} WHERE event_id = '{event.event_id}'"
                " ORDER BY src_offset"
            )
            assert verdicts == [["applied"], ["duplicate"], ["conflict"]]
        assert ["id_conflict"] in letters_of(log, topic.name).values()
    assert projector.sql(
        f"SELECT role, deployment_mode FROM policies WHERE event_id = '{policy.event_id}'"
    )[0] == ["dialogue", "DEVELOPMENT"]
    assert projector.sql(f"SELECT chain FROM fallbacks WHERE event_id = '{fallback.event_id}'") == [
        [["a", "b"]]
    ]


def test_of_each_model_the_newest_registration_counts_until_it_is_taken_back(
    log: Any, projector: Any
) -> None:
    kept, gone, back = (unique(name) for name in ("kept", "gone", "back"))
    for event in (
        registration(kept, tier="small", roles=("chat", "dialogue", "odd"), context_tokens=5),
        registration(kept, tier="large", roles=("ASR", "odd"), allowed_personas=("ann",)),
        registration(gone, licence="MIT"),
        registration(gone, action=RegistrationAction.DELETE),
        registration(back),
        registration(back, action=RegistrationAction.DELETE),
        registration(back, notes="again"),
    ):
        log.send(topics.MODEL_REGISTERED, event, f"p/{event.model}".encode())
    log.flush()
    projector.caught_up(log)
    assert projector.sql(
        "SELECT model, tier, context_tokens, roles, allowed_personas, licence, notes"
        f" FROM registered_models WHERE model IN ('{kept}', '{gone}', '{back}') ORDER BY src_offset"
    ) == [
        [kept, "large", None, ["speech_recognition", "odd"], ["ann"], None, None],
        [back, None, None, [], [], None, "again"],
    ]
    first = f"SELECT roles FROM model_registrations WHERE model = '{kept}' ORDER BY src_offset"
    assert projector.sql(first)[0] == [["dialogue", "odd"]]


def test_a_card_that_comes_after_an_invocation_does_not_price_it(log: Any, projector: Any) -> None:
    model = unique("model")
    early, later = invocation(model=model), invocation(model=model)
    log.send(topics.LLM_INVOCATION, early)
    log.flush()
    time.sleep(0.01)
    for unit in UNITS:
        log.send(topics.RATE_CARD_UPDATED, card(model, unit, 2_000_000))
    log.flush()
    time.sleep(0.01)  # a card counts from the next millisecond on
    log.send(topics.LLM_INVOCATION, later)
    log.flush()
    projector.caught_up(log)
    sql = f"SELECT event_id, cost_picousd FROM invocations WHERE model = '{model}'"
    assert dict(projector.sql(sql)) == {early.event_id: None, later.event_id: 2200}


def test_thresholds_are_crossed_once_also_across_restarts(
    log: Any, project: Start, tmp_path: Path
) -> None:
    tenant = unique("tenant")
    log.send(topics.BUDGET_UPDATED, budget(tenant, 1000))
    log.flush()
    for spends in ((500, 299), (1, 150), (50, 900)):
        for spent in spends:
            log.send(topics.LLM_INVOCATION, invocation(tenant=tenant, reported_cost_picousd=spent))
        log.flush()
        running = project(tmp_path)
        running.caught_up(log)
        running.end()
    shutil.rmtree(tmp_path)
    running = project(tmp_path)  # from nothing: what the log says is not said again
    running.caught_up(log)
    (shown,) = [b for b in running.get("/v1/budgets")["budgets"] if b["tenant"] == tenant]
    running.end()
    assert (shown["spent_picousd"], shown["cap_picousd"], shown["crossed"]) == (
        1900,
        1000,
        [80, 100],
    )
    said = [
        recorded.event
        for message in read_to_end(log.bootstrap, "budget.threshold.crossed")
        if isinstance(recorded := decode(log.catalogue, message), Recorded)
        and isinstance(recorded.event, BudgetThresholdCrossed)
        and recorded.event.tenant == tenant
    ]
    assert [event.threshold_percent for event in said] == [80, 100]
    assert 800 <= said[0].spent_picousd <= 950 and 1000 <= said[1].spent_picousd <= 1900


def test_markers_of_transactions_are_passed_and_counted_as_control(
    log: Any, projector: Any
) -> None:
    before = log.ends()["late.events"]["0"]
    client = producer(log.bootstrap, transactional_id=unique("tx"))
    client.init_transactions(10)
    for n, commit in enumerate((True, False, True)):
        client.begin_transaction()
        for i in range(3):
            late = LateEvent(
                event_id=unique("late"),
                occurred_at_ms=now_ms(),
                source="meter",
                late_event_id=f"{n}.{i}",
                origin_topic="llm.invocation",
                origin_partition=0,
                origin_offset=0,
                pane_start_ms=0,
                watermark_ms=0,
                generation=1,
            )
            client.produce("late.events", encode(log.catalogue, topics.LATE_EVENTS, late), b"k")
        if commit:
            client.commit_transaction(10)
        else:
            client.flush(10)
            client.abort_transaction(10)
    projector.caught_up(log)
    (found,) = projector.sql(
        "SELECT next_offset, control, applied, dead_lettered, duplicate, consumed"
        " FROM projection_offsets WHERE topic = 'late.events'"
    )
    assert found[0] == log.ends()["late.events"]["0"] == before + 12
    assert found[1] >= 3 + 3  # three markers; the three records of the aborted one
    assert sum(found[1:5]) == found[5]


def test_a_snapshot_agrees_with_the_offsets_it_names(log: Any, projector: Any) -> None:
    projector.caught_up(log)
    status, made = projector.post("/v1/snapshot")
    assert status == 200, made
    with duckdb.connect(made["path"], read_only=True) as copy:
        rows = copy.execute("SELECT topic, partition, next_offset FROM projection_offsets")
        assert {(t, str(p)): o for t, p, o in rows.fetchall()} == {
            (t, p): o for t, parts in made["offsets"].items() for p, o in parts.items()
        }
        assert_ledger_is_that_of_the_log(log, copy)


def test_answers_over_http_are_consistent_and_errors_are_one_line(log: Any, projector: Any) -> None:
    log.send(
        topics.MODE_CHANGED,
        ModeChanged(
            event_id=unique("mode"),
            occurred_at_ms=now_ms(),
            source="test",
            deployment="main",
            to_mode="prod",
            actor="someone",
        ),
        b"main",
    )
    log.flush()
    projector.caught_up(log)
    status, answer = projector.post("/v1/sql", {"sql": "SELECT 1 AS one", "max_rows": 5})
    assert (status, answer["columns"], answer["rows"]) == (200, ["one"], [[1]])
    assert answer["offsets"] == log.ends()
    for body in (
        {"sql": "DROP TABLE invocations"},
        {"sql": "SELECT nothing"},
        {"sql": ""},
        {"sql": "SELECT 1", "max_rows": 0},
        {"query": "SELECT 1"},
    ):
        status, answer = projector.post("/v1/sql", body)
        assert status == 400, (body, answer)
        assert list(answer) == ["error"] and "\n" not in answer["error"]
    assert projector.get("/health") == {"status": "ok"}
    report = projector.get("/v1/status")
    law = report["law"]
    assert law["consumed"] == sum(v for k, v in law.items() if k != "consumed")
    assert report["lag"] == 0
    newest = projector.get("/v1/recent?n=1")["events"][0]
    assert (newest["kind"], newest["subject"]) == ("mode", "main")
    assert newest["what"] == "switched to PRODUCTION by someone"


def test_a_log_that_lacks_what_was_filed_is_said_in_one_line(
    log: Any, project: Start, tmp_path: Path
) -> None:
    running = project(tmp_path)
    running.caught_up(log)
    running.end()
    with duckdb.connect(str(tmp_path / "roster.duckdb")) as db:
        db.execute(
            "UPDATE projection_offsets SET next_offset = next_offset + 1000000"
            " WHERE topic = 'mode.changed'"
        )
    with pytest.raises(LogDamaged, match=r"mode\.changed\[0\]: the projection stands at offset"):
        runner.run(log.settings(tmp_path))


def test_a_full_disk_is_said_and_waited_for_and_nothing_is_lost(
    log: Any, spawn: Start, tmp_path: Path
) -> None:
    running = spawn(tmp_path)
    running.caught_up(log)
    running.post("/v1/snapshot")  # an empty log of the file: sizes are known
    size = (tmp_path / "roster.duckdb").stat().st_size
    resource.prlimit(
        running.process.pid, resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY)
    )
    marker = unique("tenant")
    for n in range(3000):
        log.send(topics.LLM_INVOCATION, invocation(tenant=marker, request_id=f"{n}" * 50))
    log.flush()
    until = time.monotonic() + 30
    while "the disk refuses" not in json.loads(
        (tmp_path / "status" / "projector.json").read_text()
    ).get("note", ""):
        assert time.monotonic() < until, size
        time.sleep(0.05)
    resource.prlimit(
        running.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    until = time.monotonic() + 30
    while True:
        try:
            if running.sql(f"SELECT count(*) FROM invocations WHERE tenant = '{marker}'") == [
                [3000]
            ]:
                break
        except (OSError, AssertionError):  # not open again
            pass
        assert time.monotonic() < until
        time.sleep(0.1)
    running.caught_up(log)
    running.end()
    first, last = running.said().splitlines()
    assert "the disk refuses" in first and "the disk takes" in last
    with duckdb.connect(str(tmp_path / "roster.duckdb"), read_only=True) as db:
        assert_ledger_is_that_of_the_log(log, db)
        assert_the_law_holds(db)


def test_a_second_projector_is_told_who_is_there(log: Any, projector: Any, spawn: Start) -> None:
    with pytest.raises(AssertionError) as ended:
        spawn(projector.data)
    (line,) = str(ended.value).splitlines()
    assert f"in use by process {os.getpid()}" in line


def test_it_can_be_stopped_while_it_waits_for_a_registry_that_is_down(
    log: Any, tmp_path: Path
) -> None:
    stop, ready = threading.Event(), threading.Event()
    ended: list[int] = []
    with gate(log.registry) as door:
        settings = replace(log.settings(tmp_path), registry=door.url)

        def work() -> None:
            ended.append(runner.run(settings, ready=lambda _: ready.set(), stop=stop))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert ready.wait(60)
        door.closed.set()
        log.raw("llm.invocation", b"t/e", frame(2**30 + uuid.uuid4().int % 2**20, b""))
        log.flush()
        until = time.monotonic() + 60
        while not any("/schemas/ids/" in path for path in door.refused):
            assert time.monotonic() < until
            time.sleep(0.05)
        stop.set()
        thread.join(5)
        assert ended == [0]
