"""Watching rankings, on a real broker."""

import json
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from schemas import ModelProfileScored
from streams import kafka as clients
from streams import settings, topics
from streams.codec import encode
from streams.registry import Catalogue, Registry
from streams.topics import MODEL_PROFILE_SCORED
from tools.watch import watch_rankings


def test_each_ranking_is_told_once_and_only_those_asked_for(
    kafka: str, registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics.create(clients.admin(kafka), 1)
    role = f"role-{uuid4().hex}"
    fields = {
        "occurred_at_ms": 1,
        "source": "test",
        "deployment_mode": "TEST",
        "status": "FINAL",
        "window_start_ms": 0,
        "window_end_ms": 1,
        "revision": 0,
        "generation": 1,
        "policy_event_id": "p",
        "policy_version": 1,
        "marks": [],
        "inputs": [],
        "entries": [],
    }
    with Registry(registry) as client:
        catalogue = Catalogue(client, [MODEL_PROFILE_SCORED])
        outbound = clients.Outbound(clients.producer(kafka))
        for name, as_of_ms in ((role, 5), (role, 9), (f"{role}-other", 9)):
            event = ModelProfileScored.model_validate(
                {**fields, "event_id": str(uuid4()), "role": name, "as_of_ms": as_of_ms}
            )
            value = encode(catalogue, MODEL_PROFILE_SCORED, event)
            outbound.send(MODEL_PROFILE_SCORED.name, f"{name}/TEST".encode(), value)
        outbound.flush()
    here = settings.load({"ROSTER_KAFKA": kafka, "ROSTER_REGISTRY": registry})
    watch_rankings(replace(here, data=tmp_path), role, "TEST", as_json=True, for_s=2)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["role"], r["as_of_ms"]) for r in told] == [(role, 9)]
