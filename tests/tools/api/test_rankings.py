"""Rankings and observations of quality over HTTP, on a real broker, registry and projector."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import httpx
import pytest

from processors.explain import explain
from projections import runner
from schemas import ModelQualityObserved, Recorded
from streams import kafka as clients
from streams import settings, topics
from streams.codec import decode, encode, tenant_key
from streams.errors import Unreachable
from streams.ranking_header import header
from streams.registry import Catalogue, Registry, register_all
from streams.settings import Settings
from streams.topics import MODEL_PROFILE_SCORED, MODEL_QUALITY_OBSERVED, SCORING_POLICY_UPDATED
from tests.support.rankings import WINDOW_END, entries, evidence, final, policy, recorded
from tools.api.problems import Problem
from tools.api.rankings import Publisher, mounted, observed
from tools.publish import now_ms

ROLE = f"role-{uuid4().hex}"
RULES = policy(role=ROLE, event_id=str(uuid4()))
PANEL = {
    "leader": evidence([1_500_000] * 80, cost=10**9, quality=(160, 200)),
    "far": evidence([2_500_000] * 80, cost=6 * 10**9, quality=(100, 200), failed=9),
}
FIRST = final(entries(PANEL, RULES), RULES)
SECOND = final(FIRST.entries[:1], RULES, window_end_ms=WINDOW_END + 300_000)
GOOD = {"tenant": "acme", "role": "code", "provider": "p", "model": "m", "n": 2, "hits": 1}


@dataclass
class Api:
    client: httpx.Client
    settings: Settings

    def get(self, path: str, **parameters: str) -> tuple[int, Any]:
        answer = self.client.get(path, params=parameters)
        return answer.status_code, answer.json()

    def observe(self, fields: object) -> httpx.Response:
        return self.client.post("/v1/quality", json=fields)


@pytest.fixture(scope="module")
def api(kafka: str, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A projector that has filed two rankings and their policy."""
    data = tmp_path_factory.mktemp("api")
    here = replace(settings.load({"ROSTER_DATA": str(data)}), kafka=kafka, registry=registry)
    topics.create(clients.admin(kafka), 1)
    out = clients.Outbound(clients.producer(kafka))
    with Registry(registry) as client:
        catalogue = register_all(client)
    for record in (FIRST, SECOND):
        value = encode(catalogue, MODEL_PROFILE_SCORED, record)
        key = f"{ROLE}/PRODUCTION".encode()
        out.send(MODEL_PROFILE_SCORED.name, key, value, [header(record)])
    value = encode(catalogue, SCORING_POLICY_UPDATED, RULES)
    out.send(SCORING_POLICY_UPDATED.name, b"k", value)
    out.flush()
    ready, stop, address = threading.Event(), threading.Event(), []

    def say(at: str) -> None:
        address.append(at)
        ready.set()

    thread = threading.Thread(
        target=runner.run,
        args=(here,),
        kwargs={"ready": say, "stop": stop, "further": [mounted(here)]},
        daemon=True,
    )
    thread.start()
    assert ready.wait(60)
    with httpx.Client(base_url=address[0], timeout=30, trust_env=False) as http:
        made = Api(http, here)
        until = time.monotonic() + 60
        while made.get(f"/v1/rankings/{SECOND.event_id}")[0] != 200:
            assert time.monotonic() < until
            time.sleep(0.2)
        while made.get(f"/v1/rankings/{SECOND.event_id}/explain")[0] != 200:
            assert time.monotonic() < until
            time.sleep(0.2)
        yield made
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_the_newest_ranking_and_that_of_a_moment(api: Api) -> None:
    status, found = api.get("/v1/rankings", role=ROLE, mode="prod")
    assert (status, [r["event_id"] for r in found["rankings"]]) == (200, [SECOND.event_id])
    assert found["rankings"][0] == json.loads(SECOND.model_dump_json())
    at = "2023-11-14T22:29:59.9+00:00"
    assert SECOND.as_of_ms == 1_700_001_000_000
    _, found = api.get("/v1/rankings", role=ROLE, at=at)
    assert [r["event_id"] for r in found["rankings"]] == [FIRST.event_id]
    answer = api.client.get(f"/v1/rankings?role={ROLE}&at={at}")  # the sign not encoded
    assert answer.json() == found
    assert api.get("/v1/rankings", role=ROLE, at="2000-01-01") == (200, {"rankings": []})


def test_a_ranking_by_its_id_and_why_it_is_so(api: Api) -> None:
    assert api.get(f"/v1/rankings/{FIRST.event_id}") == (
        200,
        json.loads(FIRST.model_dump_json()),
    )
    status, found = api.get(f"/v1/rankings/{FIRST.event_id}/explain")
    offset = found["policy"]["offset"]
    wanted = explain(FIRST, recorded(RULES, offset)).plain()
    wanted["policy"]["append_ms"] = found["policy"]["append_ms"]
    assert (status, found) == (200, json.loads(json.dumps(wanted)))


def test_the_newest_final_of_a_key_is_explained_without_its_id(api: Api) -> None:
    _, wanted = api.get(f"/v1/rankings/{SECOND.event_id}/explain")
    assert api.get("/v1/rankings/explain", role=ROLE, mode="prod") == (200, wanted)
    status, problem = api.get("/v1/rankings/explain", role=ROLE, mode="prod", tenant="nobody")
    assert (status, problem["status"]) == (404, 404)
    assert api.get("/v1/rankings", role=ROLE, tenant="nobody") == (200, {"rankings": []})


def test_what_is_not_there_or_not_understood_is_a_problem_with_its_field(api: Api) -> None:
    for path in ("/v1/rankings/none", "/v1/rankings/none/explain"):
        answer = api.client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (
            404,
            "application/problem+json",
        )
        assert answer.json()["detail"] == "no ranking has the id none"
    status, problem = api.get("/v1/rankings", at="yesterday")
    assert (status, problem["field"], problem["value"]) == (422, "at", "yesterday")
    assert "ISO 8601" in problem["allowed"]


def test_an_observation_is_answered_when_it_stands_in_the_log(api: Api) -> None:
    answer = api.observe({**GOOD, "event_id": f"e-{ROLE}", "judge": "ann"})
    assert answer.status_code == 201, answer.text
    said = answer.json()
    assert (said["event_id"], said["topic"]) == (f"e-{ROLE}", "model.quality.observed")
    at = {said["partition"]: said["offset"]}
    end = {said["partition"]: said["offset"] + 1}
    name = MODEL_QUALITY_OBSERVED.name
    (message,) = clients.read_to_end(api.settings.need_kafka(), name, at, end)
    with Registry(api.settings.need_registry()) as client:
        found = decode(Catalogue(client, topics=()), message)
    assert isinstance(found, Recorded)
    event = found.event
    assert isinstance(event, ModelQualityObserved)
    assert (event.n, event.hits, event.judge, event.source) == (2, 1, "ann", "roster-api")
    assert message.key() == tenant_key(event)


def test_many_at_once_are_all_acknowledged(api: Api) -> None:
    answers: list[int] = []

    def observe() -> None:
        for _ in range(5):
            answers.append(api.observe(GOOD).status_code)

    threads = [threading.Thread(target=observe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [201] * 40


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"hits": 3}, "hits", 3),
        ({"hits": -1}, "hits", -1),
        ({"hits": float("nan")}, "hits", "nan"),
        ({"n": "many"}, "n", "many"),
        ({"tenant": "a b"}, "tenant", "a b"),
        ({"tenant": None}, "tenant", None),
        ({"score": 1}, "score", 1),
        ({"occurred_at_ms": 5}, "occurred_at_ms", 5),
        ({"event_id": "00000000-0000-0000-0000-000000000000"}, "event_id", "0" * 8),
        ({"role": ""}, "role", ""),
    ],
)
def test_a_bad_observation_names_field_value_and_what_is_allowed(
    changes: dict[str, object], field: str, value: object
) -> None:
    with pytest.raises(Problem) as caught:
        observed({**GOOD, **changes}, now_ms())
    body = caught.value.body
    assert (body["status"], body["field"]) == (422, field)
    assert str(body["value"]).startswith(str(value))
    assert body["allowed"]
    assert field in body["detail"]


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Problem) as caught:
        observed({k: v for k, v in GOOD.items() if k != "model"}, now_ms())
    assert caught.value.body["field"] == "model"


def test_a_bad_body_is_refused_and_nothing_is_sent(api: Api) -> None:
    answer = api.observe({**GOOD, "hits": 9})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["field"] == "hits"
    post = api.client.post
    plain = {"Content-Type": "text/plain"}
    right = {"Content-Type": "application/json"}
    body = json.dumps(GOOD)
    assert post("/v1/quality", content=body, headers=plain).status_code == 415
    assert post("/v1/quality", content="{", headers=right).status_code == 400
    assert post("/v1/quality", content="[1]", headers=right).status_code == 400
    assert post("/v1/quality", content="[" * 100_000, headers=right).status_code == 400
    assert post("/v1/quality", content="x" * 300_000, headers=right).status_code == 413


def test_without_a_broker_the_answer_says_so(api: Api) -> None:
    nowhere = replace(api.settings, kafka="127.0.0.1:1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tools.api.rankings.ACKNOWLEDGED_WITHIN_S", 1.0)
        with pytest.raises(Unreachable, match="not acknowledged"):
            Publisher(nowhere).send(observed(dict(GOOD), now_ms()))
