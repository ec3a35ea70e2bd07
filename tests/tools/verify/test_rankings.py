"""Finals of a small log made by hand: every field of each is compared, and so are their order, the
chain of leaders, the panes that have none, and what is recommended on their ground."""

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from importlib.resources import files
from typing import Any

import pytest

from tests.support.evidence import POLICY, ROUGE, WER, invocation, result, totals
from tools.verify import profiles, rankings, recommended
from tools.verify.compare import Report
from tools.verify.log import Record
from tools.verify.rankings import BENCHMARKS, CARDS, POLICIES, Final, Finals, Inputs, Stretch
from tools.verify.recompute import PANE_MS, Cards, Meter, Pane, PaneKey, Rules
from tools.verify.records import Fields, derived_id

Path = tuple[str | int, ...]
RULES = Rules()
KEY = ("dialogue", "PRODUCTION")
SOURCES = [("llm.invocation", 0), ("model.quality.observed", 0)]
ENDS = {(BENCHMARKS, 0): 2, (BENCHMARKS, 1): 0, (CARDS, 0): 0, (POLICIES, 0): 1}
LAST = 999 * PANE_MS
POLICY_3 = {**POLICY, "benchmarks": [ROUGE, WER], "window_panes": 3, "evidence_modes": ["prod"]}


def evidence(*starts: int) -> dict[PaneKey, Pane]:
    """A good model, a worse one and one that fails, in each of the panes."""
    good = [invocation(latency_us=1_500_000 + i) for i in range(80)]
    slow = [invocation(latency_us=5_000_000 + i) for i in range(90)]
    return {
        (*KEY, start): {
            ("a", "m"): totals(*good, quality=[40, 36], refusal_accuracy=[9, 8]),
            ("b", "m"): totals(*slow, *[invocation(outcome="TIMEOUT")] * 9),
            ("c", "m"): totals(invocation(outcome="FAILURE"), policy_compliance=[1, 1]),
        }
        for start in starts
    }


def inputs_of(*starts: int, **policy: Any) -> Inputs:
    made = Inputs(RULES, Cards(), list(SOURCES), dict(ENDS))
    made.policy(Record(POLICIES, 0, 0, 0, b"k", b""), {**POLICY_3, **policy})
    for offset, f in enumerate((result("rouge", 0.35), result("wer", 0.1))):
        made.benchmark(Record(BENCHMARKS, 0, offset, 0, b"k", b""), f)
    made.panes(evidence(*starts))
    return made


def published(inputs: Inputs, end: int, before: Fields | None = None, revision: int = 0) -> Final:
    """A final as a scorer that makes no mistake writes it."""
    as_of = end + RULES.grace_ms
    stated: Fields = {
        "role": KEY[0],
        "deployment_mode": KEY[1],
        "window_end_ms": end,
        "as_of_ms": as_of,
        "revision": revision,
        "marks": [
            {
                "source_topic": topic,
                "source_partition": partition,
                "up_to_offset": 7,
                "watermark_ms": as_of,
            }
            for topic, partition in SOURCES
        ],
        "inputs": [
            {"topic": topic, "partition": partition, "next_offset": ENDS[topic, partition]}
            for topic, partition in sorted(ENDS)
        ],
    }
    record = Record(rankings.TOPIC, 0, 0, as_of, b"k", b"")
    made = rankings.wanted(Final(record, stated, before, revision), inputs)
    assert not isinstance(made, str), made
    return Final(record, deepcopy({**stated, **made}), before, revision)


def differences(final: Final, inputs: Inputs) -> Report:
    report = Report()
    rankings.compare(final, inputs, report, "rankings")
    return report


LED = {
    "provider": "b",
    "model": "m",
    "since_ms": 0,
    "challenger_provider": "a",
    "challenger_model": "m",
    "closes": 1,
}
INPUTS = inputs_of(LAST, LAST - PANE_MS)
FINAL = published(INPUTS, LAST + PANE_MS, LED)


def test_the_example_uses_every_kind_of_field() -> None:
    first, second, third = FINAL.fields["entries"]
    assert (first["status"], first["rank"], first["quality_n"]) == ("ranked", 1, 80)
    assert (second["status"], second["rank"]) == ("provisional", 2)
    assert (third["reason"], third["terms"]) == ("no_complete_response", [])
    assert [p["name"] for p in first["parts"]] == ["availability", "refusal_accuracy"]
    assert len(first["benchmarks"]) == 2
    assert FINAL.fields["leader"] == {**LED, "closes": 2}


def test_all_fields_of_the_schema_are_compared() -> None:
    path = files("schemas") / "avsc" / "model_profile_scored.v2.avsc"
    schema = json.loads(path.read_text(encoding="utf-8"))

    def names(record: dict[str, Any]) -> set[str]:
        return {field["name"] for field in record["fields"]}

    def inner(record: dict[str, Any], name: str) -> dict[str, Any]:
        kind = next(field["type"] for field in record["fields"] if field["name"] == name)
        if isinstance(kind, list):
            return next(one for one in kind if isinstance(one, dict))
        return dict(kind["items"])

    entry = inner(schema, "entries")
    assert set(FINAL.fields) == names(schema)
    found = FINAL.fields["entries"][0]
    assert set(found) == names(entry)
    for part in ("terms", "benchmarks", "parts"):
        assert set(found[part][0]) == names(inner(entry, part)), part
    assert set(FINAL.fields["leader"]) == names(inner(schema, "leader"))


def test_a_true_final_has_no_difference() -> None:
    report = differences(FINAL, INPUTS)
    assert report.differences == []
    assert report.values > 150


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, list) and value:
        yield path
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path


def changed(value: Any) -> Any:
    """The smallest lie: one bit, one letter, one item."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return math.nextafter(value, math.inf)
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 1)
    if isinstance(value, list):
        return value[:-1] if len(value) > 1 else [*value, "x"]
    return 1


ELSEWHERE = ("up_to_offset", "watermark_ms")  # told by the fold of the log, see below


@pytest.mark.parametrize(
    "path",
    [p for p in leaves(FINAL.fields) if p[-1] not in ELSEWHERE],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_change_in_any_field_is_noticed(path: Path) -> None:
    lie = deepcopy(FINAL.fields)
    inside: Any = lie
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = changed(inside[path[-1]])
    report = differences(Final(FINAL.at, lie, FINAL.before, FINAL.revision), INPUTS)
    assert report.total > 0
    assert report.total == report.wrong["rankings"]


def test_a_mark_that_no_fold_bears_out_is_noticed() -> None:
    """Its watermark is that of the log at its offset, and no earlier than as_of."""
    finals = Finals(Stretch(), RULES, Report())
    finals.take(FINAL.at, FINAL.fields)
    finals.close()
    meter, report = Meter(), Report()
    for place in SOURCES:
        ((position, compare),) = rankings.due(finals, place, report)
        assert position == 8
        for watermark, wrong in ((FINAL.fields["as_of_ms"], 0), (FINAL.fields["as_of_ms"] + 1, 1)):
            meter.watermark_ms = watermark
            before = report.total
            compare(meter)
            assert report.total - before == wrong
    early = deepcopy(FINAL.fields)
    early["marks"][0]["watermark_ms"] -= 1
    assert differences(Final(FINAL.at, early, LED, 0), INPUTS).total == 1


def test_only_what_had_been_read_counts() -> None:
    """A later policy, and a result beyond the position: the final stands, and a lie falls."""
    inputs = inputs_of(LAST, LAST - PANE_MS)
    later = {**POLICY_3, "weight_quality": 3000, "weight_cost": 2500, "occurred_at_ms": 5}
    inputs.policy(Record(POLICIES, 0, 1, 0, b"k", b""), later)
    newer = result("rouge", 0.5, occurred_at_ms=9)
    inputs.benchmark(Record(BENCHMARKS, 0, 2, 0, b"k", b""), newer)
    inputs.ends |= {(POLICIES, 0): 2, (BENCHMARKS, 0): 3}
    assert differences(FINAL, inputs).total == 0
    for i in (0, 3):
        read = deepcopy(FINAL.fields)
        read["inputs"][i]["next_offset"] += 1
        assert differences(Final(FINAL.at, read, LED, 0), inputs).total > 0


def test_the_newest_matching_result_counts_until_the_window_ends() -> None:
    inputs = inputs_of(LAST)
    end = LAST + PANE_MS
    for offset, changes in enumerate(
        (
            {"value": 0.44, "occurred_at_ms": end},
            {"value": 0.45, "occurred_at_ms": end + 1},
            {"value": 0.46, "occurred_at_ms": end, "role": "code"},
            {"value": 0.47, "occurred_at_ms": end, "role": "Chat"},
            {"value": 0.48, "occurred_at_ms": end, "signature": "s"},
        )
    ):
        f = result("rouge", **{"event_id": f"n{offset}", **changes})  # type: ignore[arg-type, dict-item]
        inputs.benchmark(Record(BENCHMARKS, 1, offset, 0, b"k", b""), f)
    below = {(BENCHMARKS, 0): 9, (BENCHMARKS, 1): 9}

    def value(wanted: Fields, below: dict[tuple[str, int], int] = below) -> float:
        found = inputs.result(("a", "m"), wanted, "dialogue", end, below)
        assert found is not None
        return float(found["value"])

    assert value(ROUGE) == 0.48  # a policy that names no signature takes any
    assert value({**ROUGE, "signature": "s"}) == 0.48
    assert value(ROUGE, {(BENCHMARKS, 1): 4}) == 0.47
    assert value(ROUGE, {(BENCHMARKS, 1): 3}) == 0.44
    assert value(ROUGE, {(BENCHMARKS, 0): 1}) == 0.35
    assert inputs.result(("a", "m"), ROUGE, "dialogue", end, {}) is None


# The chain of finals


def chained(*finals: tuple[int, int, Fields | None]) -> list[tuple[int, Fields | None] | None]:
    """(revision, leader before) that each final must have; (as_of, revision, leader) of each."""
    chain, found = rankings.Chain(), []
    for i, (as_of, revision, leader) in enumerate(finals):
        f = {**FINAL.fields, "as_of_ms": as_of, "revision": revision, "leader": leader}
        final = chain.link(Record(rankings.TOPIC, 0, i, 0, b"k", b""), f)
        found.append(None if final is None else (final.revision, final.before))
    return found


def test_a_final_follows_the_newest_revision_of_the_one_before() -> None:
    one, two, three = ({**LED, "closes": n} for n in (1, 2, 3))
    assert chained((10, 0, None), (20, 0, one), (20, 1, two), (20, 1, three), (30, 0, three)) == [
        (0, None),
        (0, None),
        (1, None),
        None,  # the first of an id counts
        (0, two),
    ]
    assert chained((10, 0, one), (20, 0, two), (10, 1, three), (20, 1, one), (30, 0, None)) == [
        (0, None),
        (0, one),
        (1, None),
        (1, one),
        (0, one),
    ]
    assert chained((10, 0, one), (20, 2, two)) == [(0, None), (0, one)]  # 2 after nothing: a lie


def test_keys_have_chains_of_their_own() -> None:
    chain = rankings.Chain()
    for mode in ("TEST", "PRODUCTION"):
        f = {**FINAL.fields, "deployment_mode": mode}
        final = chain.link(FINAL.at, f)
        assert final is not None and final.before is None


# Stretches and gaps


def test_a_stretch_holds_its_first_moment_and_not_its_last() -> None:
    assert [Stretch(True, 5, 7).contains(at) for at in (4, 5, 6, 7)] == [False, True, True, False]
    assert Stretch().contains(0)


def gaps(
    inputs: Inputs,
    ends: list[int],
    *,
    others: tuple[Fields, ...] = (),
    stretch: Stretch = Stretch(True),  # noqa: B008  # frozen
    kept_from_ms: int = 0,
    watermark_ms: int = 2 * LAST,
) -> Report:
    report = Report()
    finals = Finals(stretch, RULES, report)
    for i, end in enumerate(ends):
        final = published(inputs, end)
        finals.take(Record(rankings.TOPIC, 0, i, i, b"k", b""), final.fields)
    for f in others:
        finals.take(Record(rankings.TOPIC, 1, 0, 0, b"k", b""), f)
    finals.take(Record(rankings.TOPIC, 0, 99, 60_000, b"k", b""), {"status": "HEARTBEAT"})
    homes = {"dialogue": 0, "code": 0, "summary": 1}
    rankings.compare_gaps(finals, inputs, homes, kept_from_ms, watermark_ms, report)
    return report


def ends(*panes: int) -> list[int]:
    return [LAST + (pane + 1) * PANE_MS for pane in panes]


def test_a_final_stands_for_every_pane_that_enters_or_leaves_the_window() -> None:
    """Panes 0 and 5 with evidence, a window of three: 0, 3, 5 and 8, and no others."""
    inputs = inputs_of(LAST, LAST + 5 * PANE_MS)
    assert gaps(inputs, ends(0, 3, 5, 8)).differences == []
    report = gaps(inputs, ends(0, 5, 8))
    (difference,) = report.differences
    assert f"as of {LAST + 4 * PANE_MS + RULES.grace_ms}" in difference.where
    assert gaps(inputs, ends(0, 3, 4, 5, 8)).differences[0].recomputed == "none is due"
    lagging = gaps(inputs, ends(0, 3))
    assert lagging.total == 0
    assert "lags: 2 finals" in lagging.remarks[0]
    assert gaps(inputs, ends(0, 3), watermark_ms=LAST).remarks == []


def test_gaps_are_looked_for_in_the_stretch_alone() -> None:
    inputs = inputs_of(LAST, LAST + 5 * PANE_MS)
    late = Stretch(True, LAST + 6 * PANE_MS + 1)
    assert gaps(inputs, ends(0, 5, 8), stretch=late).total == 0


def test_windows_that_begin_before_what_is_kept_have_no_final() -> None:
    inputs = inputs_of(LAST, LAST + 5 * PANE_MS)
    assert gaps(inputs, ends(0, 5, 8), kept_from_ms=LAST + 2 * PANE_MS).total == 0


def other(as_of: int, **changes: Any) -> Fields:
    """A final of another key."""
    read = [{"topic": POLICIES, "partition": 0, "next_offset": 1}]
    named = {"role": "code", "deployment_mode": "TEST", "inputs": read, "as_of_ms": as_of}
    return {**FINAL.fields, **named, "revision": 0, **changes}


def silent(inputs: Inputs, f: Fields) -> Report:
    """What is said of a key without finals; that of the other key is none of its business."""
    inputs.evidence["code"] = {f["window_end_ms"] - PANE_MS: {}}
    return gaps(inputs, [], others=(f,))


def test_a_key_without_any_final_is_noticed_where_its_scorer_has_gone_on() -> None:
    inputs = inputs_of(LAST)
    as_of = RULES.closes_at(LAST)
    passed = other(as_of + 1)
    missing = silent(inputs, passed).differences
    about_it = [d for d in missing if "dialogue/PRODUCTION" in d.where]
    assert [d.recomputed for d in about_it] == ["a final: the key has none at all"]


@pytest.mark.parametrize(
    "changes",
    [
        {"as_of_ms": RULES.closes_at(LAST)},  # of one time the other keys may be first
        {"role": "summary"},  # another scorer
        {"inputs": []},  # it had not read the policy
        {"revision": 1},  # a correction says nothing of others
        {"generation": 1},
    ],
)
def test_a_key_without_any_final_may_lag_while_nothing_proves_the_contrary(
    changes: dict[str, Any],
) -> None:
    report = silent(inputs_of(LAST), other(RULES.closes_at(LAST) + 1, **changes))
    assert [d for d in report.differences if "dialogue/PRODUCTION" in d.where] == []
    assert any("lags" in text and "dialogue/PRODUCTION" in text for text in report.remarks)


def test_other_generations_are_remarked() -> None:
    report = Report()
    finals = Finals(Stretch(), RULES, report)
    finals.take(FINAL.at, {**FINAL.fields, "generation": 1})
    assert finals.last == {}
    assert report.remarks == ["rankings of generation 1 were not compared"]


# Recommendations


def profile_history() -> profiles.History:
    fold = profiles.Fold()
    change = {
        "event_id": "e",
        "occurred_at_ms": 0,
        "tenant": None,
        "trace_id": None,
        "actor": "test",
        "scope": "system",
        "role": "chat",
        "deployment_mode": "prod",
        "action": "SET",
        "model": "b/m",
        "fallbacks": [],
        "base_url": "",
        "temperature": 0.2,
        "max_tokens": None,
        "extra": "{}",
        "credential_ref": None,
        "expected_version": None,
    }
    for offset, (event_id, model) in enumerate((("e", "b/m"), ("f", "a/m"), ("g", "gone/m"))):
        record = Record("model.profile.updated", 0, offset, 0, b"system/chat/prod", b"")
        fold.step(record, {**change, "event_id": event_id, "model": model})
    return fold.history


FIRST = published(INPUTS, LAST + PANE_MS)


def advice(version: int | None = 1, **changes: Any) -> Fields:
    key = None if version is None else "system/chat/prod"
    best, current = FIRST.fields["entries"][:2]
    known = current if version == 1 else {"status": None, "score": None, "score_se": None}
    models = {None: None, 1: "b/m", 2: "a/m", 3: "gone/m"}
    return {
        "event_id": derived_id(
            *("model.profile.recommended", *KEY, "a", "m", key or "", version or 0, "p1")
        ),
        "occurred_at_ms": FIRST.fields["as_of_ms"],
        "source": "roster-scorer",
        "tenant": None,
        "mode": KEY[1],
        "role": KEY[0],
        "deployment_mode": KEY[1],
        "provider": "a",
        "model": "m",
        "score": best["score"],
        "score_se": best["score_se"],
        "samples": best["complete"],
        "leads_since_ms": FIRST.fields["as_of_ms"],
        "current_model": models[version],
        "current_status": known["status"],
        "current_score": known["score"],
        "current_score_se": known["score_se"],
        "profile_key": key,
        "profile_version": version,
        "ranking_event_id": FIRST.fields["event_id"],
        "ranking_as_of_ms": FIRST.fields["as_of_ms"],
        "policy_event_id": "p1",
        "policy_version": 1,
        **changes,
    }


def judged(f: Fields, final: Fields = FIRST.fields) -> Report:
    report = Report()
    record = Record(recommended.TOPIC, 0, 0, 0, b"dialogue/PRODUCTION", b"")
    finals = {final["event_id"]: Final(FIRST.at, final, None, 0)}
    recommended.compare([(record, f)], finals, profile_history(), report)
    return report


@pytest.mark.parametrize("version", [1, 3, None])
def test_a_recommendation_says_what_its_final_and_its_profile_say(version: int | None) -> None:
    report = judged(advice(version))
    assert report.differences == []
    assert report.values > 15


@pytest.mark.parametrize("name", sorted(advice()))
def test_a_change_in_any_field_of_a_recommendation_is_noticed(name: str) -> None:
    good = advice()
    assert judged({**good, name: changed(good[name])}).total > 0


def test_a_recommendation_needs_a_ranked_leader_and_another_model_in_force() -> None:
    assert judged(advice(2)).differences[0].recomputed == "none: the profile names the leader"
    none = {name: None for name in LED} | {"closes": 0}
    for leader, entries, why in (
        (None, FIRST.fields["entries"], "none: the final has no leader"),
        (none, FIRST.fields["entries"], "none: the final has no leader"),
        (FIRST.fields["leader"], [], "none: the leader is not ranked"),
    ):
        final = {**FIRST.fields, "leader": leader, "entries": entries}
        assert judged(advice(), final).differences[0].recomputed == why
