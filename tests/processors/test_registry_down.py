"""While the registry is down processes wait for what needs it, and end when they are told to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from streams import kafka as clients
from streams import topics
from streams.codec import frame
from streams.registry import Registry, register_all
from streams.status import read_all
from streams.topics import LLM_INVOCATION, MODEL_PROFILE_UPDATED, SCORING_POLICY_UPDATED, Topic
from tests.support.gate import gate


def until(what: Callable[[], object], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


@pytest.fixture
def ready(kafka: str, registry: str) -> None:
    """Topics and schemas are there."""
    topics.create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        register_all(client)


@pytest.mark.parametrize(
    ("verb", "topic"),
    [
        (["meter", "--instance", "gate"], LLM_INVOCATION),
        (["agents"], MODEL_PROFILE_UPDATED),
        (["agents"], SCORING_POLICY_UPDATED),
    ],
    ids=["meter", "agents", "agents' follower"],
)
def test_it_can_be_stopped_while_it_waits_for_a_registry_that_is_down(
    kafka: str, registry: str, ready: None, tmp_path: Path, verb: list[str], topic: Topic
) -> None:
    unknown = 2**30 + uuid4().int % 2**20  # a schema id that no registry has given
    with gate(registry) as door, (tmp_path / "log").open("wb") as log:
        given = {"ROSTER_KAFKA": kafka, "ROSTER_REGISTRY": door.url, "ROSTER_DATA": str(tmp_path)}
        command = [sys.executable, "-m", "tools", *verb]
        with subprocess.Popen(command, env={**os.environ, **given}, stdout=log, stderr=log) as it:
            try:
                until(
                    lambda: [r for r in read_all(tmp_path).values() if r["note"] in ("", "ready")]
                )
                door.closed.set()
                out = clients.Outbound(clients.producer(kafka))
                out.send(topic.name, b"t/e", frame(unknown, b""))
                out.flush()
                until(lambda: any("/schemas/ids/" in path for path in door.refused))
                begun = time.monotonic()
                it.send_signal(signal.SIGTERM)
                assert it.wait(20) == 0, (tmp_path / "log").read_text()
                assert time.monotonic() - begun < 7, "ended by itself, and not by a stall"
            finally:
                it.kill()
