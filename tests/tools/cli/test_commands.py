"""The commands as a person types them, on a real broker and registry."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import kafka as clients
from streams import settings
from streams.topics import DEAD_LETTERS, LLM_INVOCATION
from tools import __main__ as command_line
from tools.init import TEMPLATE

Roster = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def topics(kafka: str, registry: str) -> None:
    """Topics, schemas and defaults are there."""
    given = {"ROSTER_KAFKA": kafka, "ROSTER_REGISTRY": registry}
    command = [sys.executable, "-m", "tools", "topics", "--create"]
    subprocess.run(command, env={**os.environ, **given}, check=True)


@pytest.fixture
def roster(
    kafka: str,
    registry: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    topics: None,
) -> Roster:
    """Runs one command; exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROSTER_KAFKA", kafka)
    monkeypatch.setenv("ROSTER_REGISTRY", registry)
    monkeypatch.setenv("ROSTER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["roster", *arguments])
        capfd.readouterr()
        try:
            command_line.main()
            code: Any = 0
        except SystemExit as leaving:
            code = leaving.code
        said = capfd.readouterr()
        return int(code or 0), said.out, said.err

    return run


def test_help_is_quick_and_names_the_exit_statuses() -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tools", "--help"], capture_output=True, text=True, check=True
    )
    took = time.monotonic() - begun
    assert "130 interrupted" in done.stdout
    heavy = "{'faust', 'duckdb', 'confluent_kafka', 'pyarrow', 'pydantic', 'rich.live'}"
    code = f"import sys, tools.__main__; sys.exit(str({heavy} & set(sys.modules) or '') or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert took < 3.0  # 0.2 s on an idle machine


def test_topics_are_as_declared(roster: Roster) -> None:
    code, out, _ = roster("topics", "--json")
    found = json.loads(out)
    assert (code, found["differences"]) == (0, [])
    by_name = {row["topic"]: row for row in found["topics"]}
    assert by_name["llm.invocation"]["partitions"] == by_name["llm.invocation"]["found"] == 8
    code, out, _ = roster("schemas", "--json")
    assert code == 0
    assert all(isinstance(row["id"], int) for row in json.loads(out))


def test_creating_topics_again_adds_nothing(roster: Roster) -> None:
    code, out, _ = roster("topics", "--create", "--json")
    made = json.loads(out)["made"]
    assert (code, made["topics"], sum(made["defaults"].values())) == (0, [], 0)


def test_a_bad_line_stops_the_whole_file_unless_it_is_skipped(
    roster: Roster, tmp_path: Path
) -> None:
    deployment = f"d{uuid4().hex}"
    good = {"deployment": deployment, "to_mode": "TEST", "actor": "ann"}
    bad = {"deployment": deployment, "to_mode": 7, "actor": "ann"}
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(map(json.dumps, [good, bad, good])))

    code, out, error = roster("publish", "mode.changed", str(file))
    assert (code, out) == (2, "")
    assert f"{file} line 2: to_mode=7: " in error
    assert "nothing was sent: 1 of 3 events are bad" in error
    assert roster("mode", "get", "--deployment", deployment)[0] == 1

    code, out, error = roster("publish", "mode.changed", str(file), "--skip-bad", "--json")
    assert code == 1
    answer = json.loads(out)
    assert (answer["sent"], [b["line"] for b in answer["bad"]]) == (2, [2])
    assert roster("mode", "get", "--deployment", deployment)[0] == 0

    code, out, _ = roster("publish", "mode.changed", str(tmp_path / "nothing"))
    assert code == 2
    file.write_text(json.dumps(good))
    assert roster("publish", "mode.changed", str(file))[:2] == (
        0,
        "1 events acknowledged on mode.changed\n",
    )


OBSERVE = ("quality", "add", "p", "m", "--role", "code", "--tenant", "acme")


def test_mistakes_are_one_line_and_exit_status_2(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, said in [
        (("publish", "slm.metrics", "-"), "topic is 'slm.metrics'; allowed: llm.invocation"),
        (("mode", "set", "PARTY"), "mode is 'PARTY'; allowed: LOCAL"),
        (("cards", "set", "p", "m", "INPUT_TOKEN", "cheap"), "price is 'cheap'; allowed: USD"),
        (("cards", "set", "p", "m", "TOKEN", "1"), "unit='TOKEN'"),
        (("cards", "set", "p", "m", "INPUT_TOKEN", "1", "--valid-from", "soon"), "ISO 8601"),
        (("policies", "set", "code", "TEST", "weight_cost=1"), "weights must sum to 10,000"),
        (("policies", "set", "code", "TEST", "wait_cost=1"), "did you mean weight_cost"),
        (("policies", "set", "code", "TEST", "benchmarks={"), "allowed: a JSON array such as"),
        (("policies", "set", "code", "TEST", "window_panes=289"), "289; allowed: 1 to 288, or set"),
        (("policies", "set", "code", "TEST", "part_availability=1"), "parts must sum to 10,000"),
        ((*OBSERVE, "--good", "--n", "2"), "--good or --bad of one answer, or both --hits and --n"),
        ((*OBSERVE, "--hits", "2"), "or both --hits and --n"),
        (OBSERVE, "--good or --bad"),
        (("verify", "--from", "2025-01-31"), "give --rankings or --all"),
        (("verify", "--all", "--from", "2025-01-31", "--to", "2025-01-31"), "after --from"),
        (("verify", "--rankings", "--duckdb", "x"), "--rankings reads no DuckDB"),
        ((*OBSERVE, "--hits", "3", "--n", "2"), "hits must be at most n, 2"),
        (("benchmarks", "add", "p", "m", "mine", "0.5"), "--direction is missing: mine has none"),
        (("benchmarks", "add", "p", "m", "wer", "nan"), "value=nan"),
        (("benchmarks", "add", "p", "m", "wer", "0.5", "--ci-low", "0.4"), "given together"),
        (
            ("benchmarks", "add", "p", "m", "wer", "1", "--direction", "UP"),
            "be 'HIGHER' or 'LOWER'",
        ),
        (
            ("benchmarks", "add", "p", "m", "wer", ".5", "--ci-low", ".6", "--ci-high", ".7"),
            "--ci-low 0.6 and --ci-high 0.7; allowed: an interval around 0.5",
        ),
        (("rankings", "route", "--persona", " ", "--role", "code"), "--persona is ' '; allowed"),
        (("benchmarks", "add", "p", "m", "bleu", "41.5"), "value must be 0 to 1 in scale UNIT"),
        (("benchmarks", "add", "p", "m", "bleu", "1", "--seed", str(2**63)), "seed=922337203685"),
        (("models", "set", "p", "m", "--context-tokens", "0"), "context_tokens='0'"),
        (("models", "set", "p", "m", "--parameters-millions", "7b"), "valid integer"),
        (("models", "set", "p/../q", "m"), "provider='p/../q'"),
        (("models", "set", "p", "m", "--persona", "a b"), "allowed_personas.0='a b'"),
        (("budgets", "set", "a", "b", "--cap-usd", "0"), "cap_picousd=0"),
        (("budgets", "set", "a", "b", "--cap-usd", "1", "--period", "WEEK"), "period='WEEK'"),
        (("profiles", "set", "system", "code", "TEST", "--model", "m"), "model='m'"),
        (("profiles", "get", "code", "TEST", "--user", "u"), "--user needs --tenant"),
        (("sql", "SELECT 1", "--json", "--csv"), "exclude each other"),
    ]:
        code, out, error = roster(*arguments)
        assert (code, out) == (2, ""), arguments
        assert error.startswith("roster: ") and error.count("\n") == 1, error
        assert said in error, error
    monkeypatch.setenv("ROSTER_KAFKA", "127.0.0.1:1")
    code, out, error = roster("profiles", "list")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "no broker at 127.0.0.1:1" in error
    monkeypatch.delenv("ROSTER_REGISTRY")
    assert roster("profiles", "list")[::2] == (
        2,
        "roster: ROSTER_REGISTRY is missing: set both addresses, or none of them\n",
    )


def test_a_card_is_set_with_the_next_version(roster: Roster) -> None:
    model = f"m{uuid4().hex}"
    for price in ("0.6", "0.55"):
        code, out, error = roster("cards", "set", "p", model, "INPUT_TOKEN", price)
        assert code == 0, error
        assert out.startswith("published to rate.card.updated[0] offset ")
    rows = json.loads(roster("cards", "list", "--model", model, "--json")[1])
    assert [(r["version"], r["price_picousd_per_million"]) for r in rows] == [
        (1, 600_000_000_000),
        (2, 550_000_000_000),
    ]
    (row,) = [r for r in json.loads(roster("models", "list", "--json")[1]) if r["model"] == model]
    assert (row["input"], row["output"], row["registered"]) == ("$0.55", None, False)


def test_a_model_keeps_what_is_not_changed_until_it_is_taken_out(roster: Roster) -> None:
    who = ("p", f"m{uuid4().hex}")

    def shown() -> dict[str, Any]:
        row: dict[str, Any] = json.loads(roster("models", "show", *who, "--json")[1])
        listed = json.loads(roster("models", "list", "--json")[1])
        assert row in listed
        return row

    code, out, error = roster("models", "show", *who)
    assert (code, out) == (1, "")
    assert f"{who[0]}/{who[1]} is not registered" in error
    first = ("--context-tokens", "4096", "--tier", "small", "--role", "chat", "--role", "dialogue")
    more = ("--role", "odd", "--persona", "dev", "--reason", "trial", "--actor", "ann")
    code, out, error = roster("models", "set", *who, *first, *more)
    assert code == 0, error
    assert out.startswith("published to model.registered[0] offset ")
    row = shown()
    assert (row["context_tokens"], row["tier"], row["roles"]) == (
        4096,
        "small",
        ["dialogue", "odd"],
    )
    assert (row["registered"], row["actor"], row["reason"]) == (True, "ann", "trial")
    second = ("--tier", "large", "--licence", "MIT", "--persona", "", "--capability", "tools")
    assert roster("models", "set", *who, *second)[0] == 0
    row = shown()
    assert (row["context_tokens"], row["tier"], row["licence"]) == (4096, "large", "MIT")
    assert (row["roles"], row["allowed_personas"]) == (["dialogue", "odd"], [])
    assert (row["capabilities"], row["reason"]) == (["tools"], None)
    assert roster("models", "set", *who, "--context-tokens", "")[0] == 0
    assert shown()["context_tokens"] is None
    code, out, _ = roster("models", "list")
    assert code == 0
    (line,) = [line for line in out.splitlines() if who[1] in line]
    assert line.split()[:4] == ["p", who[1], "large", "-"] and line.endswith("yes")

    assert roster("models", "delete", *who, "--reason", "gone")[0] == 0
    assert roster("models", "show", *who)[0] == 1
    code, out, error = roster("models", "delete", *who)
    assert (code, out, error) == (1, "", f"roster: {who[0]}/{who[1]} is not registered\n")
    assert roster("models", "set", *who, "--notes", "new")[0] == 0
    assert (shown()["notes"], shown()["licence"]) == ("new", None)


def test_the_models_of_the_sample_are_registered(roster: Roster) -> None:
    rows = {
        (row["provider"], row["model"]): row
        for row in json.loads(roster("models", "list", "--json")[1])
    }
    groq = rows["groq", "llama-2-70b-chat"]
    assert (groq["registered"], groq["context_tokens"], groq["output"]) == (True, 4096, "$0.80")
    lepton = rows["lepton", "llama-2-7b-chat"]
    assert (lepton["registered"], lepton["input"], lepton["output"]) == (True, None, None)


def test_a_policy_keeps_what_is_not_changed(roster: Roster) -> None:
    role = f"role-{uuid4().hex}"
    assert roster("policies", "set", role, "prod", "weight_cost=1")[0] == 2  # nothing to keep yet
    whole = [
        "weight_quality=4000",
        "weight_cost=2000",
        "weight_latency=2000",
        "weight_reliability=2000",
        "cost_unit=PER_REQUEST",
        "reference_cost_picousd=5",
        "reference_latency_us=6",
        "evidence_modes=TEST,LOCAL",
    ]
    assert roster("policies", "set", role, "prod", *whole)[0] == 0
    change = ("weight_cost=1000", "weight_latency=3000")
    assert roster("policies", "set", role, "enterprise", *change)[0] == 0
    (row,) = json.loads(roster("policies", "list", "--role", role, "--json")[1])
    assert (row["deployment_mode"], row["weight_cost"], row["weight_latency"]) == (
        "PRODUCTION",
        1000,
        3000,
    )
    assert (row["reference_latency_us"], row["evidence_modes"]) == (6, ["TEST", "LOCAL"])


def test_a_policy_takes_lists_benchmarks_and_service_levels(roster: Roster) -> None:
    role = f"role-{uuid4().hex}"
    benchmarks = [{"name": "wer", "weight": 2, "floor_e9": 500_000_000, "target_e9": 0}]
    whole = [
        *("weight_quality=4000", "weight_cost=2000", "weight_latency=2000"),
        *("weight_reliability=2000", "cost_unit=PER_REQUEST", "reference_cost_picousd=5"),
        *("reference_latency_us=6", "evidence_modes=TEST", "quality_metrics=quality,helpful"),
        *(f"benchmarks={json.dumps(benchmarks)}", "sla_success=9900", "severity=PAGE"),
        *("part_availability=10000", "part_policy_compliance=0", "part_refusal_accuracy=0"),
    ]
    code, _, error = roster("policies", "set", role, "qa", *whole)
    assert code == 0, error
    changes = ("sla_success=null", "evidence_modes=", "window_panes=12", "hysteresis_closes=5")
    code, _, error = roster("policies", "set", role, "qa", *changes)
    assert code == 0, error
    (row,) = json.loads(roster("policies", "list", "--role", role, "--json")[1])
    assert (row["sla_success"], row["evidence_modes"], row["window_panes"]) == (None, [], 12)
    assert (row["hysteresis_closes"], row["severity"]) == (5, "PAGE")
    assert row["quality_metrics"] == ["quality", "helpful"]
    assert row["benchmarks"] == [{**benchmarks[0], "dataset_hash": None, "signature": None}]


def test_an_observation_says_what_was_seen(roster: Roster) -> None:
    for words, expected in (
        (("--good",), (1, 1)),
        (("--bad", "--metric", "refusal_accuracy"), (1, 0)),
        (("--hits", "3", "--n", "5", "--invocation", "i-1", "--judge", "ann"), (5, 3)),
    ):
        code, out, error = roster(*OBSERVE, *words, "--json")
        assert code == 0, error
        said = json.loads(out)
        assert (said["n"], said["hits"]) == expected
        assert (said["tenant"], said["role"], said["source"]) == ("acme", "code", "roster-cli")
    assert (said["invocation_id"], said["judge"], said["metric"]) == ("i-1", "ann", "quality")


def test_results_of_benchmarks_are_listed_by_their_times(roster: Roster) -> None:
    model = f"m{uuid4().hex}"
    mine = ("benchmarks", "add", "p", model)
    interval = ("--ci-low", "0.1", "--ci-high", "0.2", "--n", "50", "--role", "chat")
    assert roster(*mine, "wer", "0.125", *interval)[0] == 0  # of now
    percent = ("--scale", "PERCENT", "--at", "2024-05-01T00:00:00Z")
    assert roster(*mine, "bleu", "41.5", *percent)[0] == 0
    other = ("--direction", "HIGHER", "--at", "2024-06-01")
    assert roster(*mine, "pass_at_1", "0.5", *other)[0] == 0
    rows = json.loads(roster("benchmarks", "list", "--model", model, "--json")[1])
    assert [(r["name"], r["direction"], r["scale"]) for r in rows] == [
        ("bleu", "HIGHER", "PERCENT"),
        ("pass_at_1", "HIGHER", "UNIT"),
        ("wer", "LOWER", "UNIT"),
    ]
    assert (rows[0]["occurred_at_ms"], rows[0]["value"]) == (1_714_521_600_000, 41.5)
    assert (rows[2]["role"], rows[2]["interval"], rows[2]["n"]) == ("dialogue", "0.1 to 0.2", 50)
    asked = ("benchmarks", "list", "--model", model, "--role", "code", "--json")
    assert [r["name"] for r in json.loads(roster(*asked)[1])] == ["bleu", "pass_at_1"]


def test_of_recommendations_the_newest_of_each_role_and_mode_is_listed(
    roster: Roster, kafka: str
) -> None:
    from schemas import ModelProfileRecommended
    from streams.codec import encode
    from streams.registry import Catalogue, Registry
    from streams.topics import MODEL_PROFILE_RECOMMENDED
    from tests.support.events import good

    role = f"role-{uuid4().hex}"
    with Registry(settings.load().need_registry()) as client:
        catalogue = Catalogue(client, [MODEL_PROFILE_RECOMMENDED])
    outbound = clients.Outbound(clients.producer(kafka))
    for as_of, model in ((600_000, "b"), (900_000, "c"), (300_000, "a"), (900_000, "c")):
        one = good(
            ModelProfileRecommended,
            event_id=f"{role}-{model}",
            role=role,
            model=model,
            ranking_as_of_ms=as_of,
        )
        value = encode(catalogue, MODEL_PROFILE_RECOMMENDED, one)
        outbound.send(MODEL_PROFILE_RECOMMENDED.name, f"{role}/TEST".encode(), value)
    outbound.flush()
    asked = ("recommendations", "list", "--role", role, "--mode", "qa")
    (row,) = json.loads(roster(*asked, "--json")[1])
    assert (row["recommended"], row["current_model"]) == ("p/c", "p/a")
    rows = json.loads(roster(*asked, "--all", "--json")[1])
    assert [r["model"] for r in rows] == ["a", "b", "c"]
    assert "p/c" in roster(*asked)[1]
    code, out, _ = roster("recommendations", "list", "--role", f"no-{role}")
    assert (code, out.startswith("nothing is recommended")) == (0, True)


def test_a_budget_and_a_mode_are_what_was_set_last(roster: Roster) -> None:
    tenant = f"t{uuid4().hex}"
    for cap in ("10", "12.5"):
        assert roster("budgets", "set", tenant, "daily", "--cap-usd", cap)[0] == 0
    (row,) = json.loads(roster("budgets", "list", "--tenant", tenant, "--json")[1])
    assert (row["cap_picousd"], row["thresholds"]) == (12_500_000_000_000, [80, 100])
    for mode in ("prod", "qa"):
        assert roster("mode", "set", mode, "--deployment", tenant, "--actor", "ann")[0] == 0
    code, out, _ = roster("mode", "get", "--deployment", tenant)
    assert (code, out.split(" since ")[0], "by ann" in out) == (0, "TEST", True)


def test_a_change_that_nobody_decides_is_said_to_be_undecided(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.profiles.VERDICT_WITHIN_S", 0.5)
    role = f"role-{uuid4().hex}"
    code, out, error = roster("profiles", "set", "system", role, "qa", "--model", "p/m")
    assert (code, out) == (1, "")
    assert "no verdict came: do the agents run?" in error
    (row,) = json.loads(roster("profiles", "history", "system", role, "TEST", "--json")[1])
    assert (row["verdict"], row["version"], row["model"]) == ("accepted", 1, "p/m")
    code, out, error = roster("profiles", "get", role, "TEST")
    assert (code, out) == (1, "")
    assert f"no profile for role {role}" in error


def test_dead_letters_are_listed_and_shown_with_their_bytes(roster: Roster, kafka: str) -> None:
    from schemas import Position
    from streams.codec import Undecodable, encode
    from streams.registry import Catalogue, Registry

    at = Position(LLM_INVOCATION.name, 3, uuid4().int % 10**12, 1_700_000_000_000)
    letter = Undecodable(at, b"k", b"\x07bytes", (), "bad_magic", "first byte is 0x07").as_event(
        "t"
    )
    with Registry(settings.load().need_registry()) as client:
        value = encode(Catalogue(client, [DEAD_LETTERS]), DEAD_LETTERS, letter)
    outbound = clients.Outbound(clients.producer(kafka))
    for _ in range(2):  # made again it is the same: it is listed once
        outbound.send(DEAD_LETTERS.name, b"k", value)
    outbound.flush()
    code, out, _ = roster("dead-letters", "list", "--reason", "bad_magic", "--json")
    assert code == 0
    assert [r["event_id"] for r in json.loads(out)].count(letter.event_id) == 1
    code, out, _ = roster("dead-letters", "show", letter.event_id, "--json")
    shown = json.loads(out)
    assert (shown["value_hex"], shown["value_text"], shown["key"]) == (
        b"\x07bytes".hex(),
        ".bytes",
        "k",
    )
    assert shown["origin"] == f"llm.invocation[3]@{at.offset}"
    assert roster("dead-letters", "show", "no such")[0] == 1


def test_sql_without_a_projector_reads_the_file_or_says_that_there_is_none(
    roster: Roster, tmp_path: Path
) -> None:
    code, _, error = roster("sql", "SELECT 1")
    assert code == 2 and "there is no" in error
    from projections import store

    store.connect(tmp_path / "data" / store.FILE).close()
    code, out, _ = roster("sql", "SELECT 41 + 1 AS answer, 'a,b' AS text", "--csv")
    assert (code, out) == (0, 'answer,text\r\n42,"a,b"\r\n')
    code, out, _ = roster("sql", "SELECT count(*) AS n FROM invocations", "--json")
    assert json.loads(out)["rows"] == [[0]]
    for wrong in ("DROP TABLE invocations", "SELEC 1", "COPY invocations TO 'x'"):
        code, out, error = roster("sql", wrong)
        assert (code, out, error.count("\n")) == (2, "", 1), error
    code, out, error = roster("sql", "SELECT * FROM range(5)", "--rows", "2")
    assert code == 0 and "only the first 2 rows" in error


def test_init_writes_a_configuration_that_is_read_and_not_overwritten(
    roster: Roster, tmp_path: Path
) -> None:
    file = tmp_path / "roster.env"
    assert roster("init")[0] == 0
    assert file.read_text() == TEMPLATE
    code, _, error = roster("init")
    assert code == 2 and "--force" in error
    assert roster("init", "--force")[0] == 0
    # Every line that is taken from its comment is a setting that the reader knows.
    file.write_text(TEMPLATE.replace("\n#ROSTER_", "\nROSTER_"))
    found = settings.load({})
    assert (found.kafka, found.deployment, found.replication) == ("localhost:9092", "main", 1)
    assert found.api == "http://127.0.0.1:8090"


def test_nothing_runs_here(roster: Roster) -> None:
    assert roster("status")[0] == 1
    assert roster("down")[:2] == (0, "nothing runs here\n")
    assert roster("down", "--quiet")[:2] == (0, "")
