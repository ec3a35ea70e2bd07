"""The meter's process on the real broker: what it says, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from processors.meter import LAW, law_of
from processors.meter_protocol import Meter
from schemas.slm_metrics import MeterMark
from streams import kafka as clients
from streams import topics
from streams.codec import frame
from streams.registry import Registry, register_all
from streams.status import read_all
from streams.topics import LLM_INVOCATION
from tests.support.gate import gate


def until(what: Callable[[], object], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def mark(partition: int, consumed: int) -> MeterMark:
    counters = {**dict.fromkeys(LAW, 0), "consumed": consumed, "applied": consumed}
    return MeterMark(
        source_topic=LLM_INVOCATION.name,
        source_partition=partition,
        generation=1,
        up_to_offset=consumed - 1,
        replay_from=0,
        watermark_ms=None,
        newest_event_ms=None,
        newest_append_ms=None,
        kept_from_ms=None,
        owner="x",
        **counters,
    )


def test_of_several_meters_each_tells_the_law_of_its_own_partitions() -> None:
    """All of them know all marks; the sum over the meters counts each partition once."""
    marks = {p: mark(p, 10**p) for p in range(4)}
    laws = []
    for ours in ((0, 1), (2, 3), ()):
        meter = Meter(LLM_INVOCATION.name, 4, 4, 1, "x")
        for m in marks.values():
            meter.observe(0, m.key(), m)
        for partition in ours:
            assert meter.assign(partition, marks[partition].up_to_offset + 1) is not None
        laws.append(law_of(meter))
    assert [law.get("consumed") for law in laws] == [11, 1100, None]
    assert laws[0] == {**dict.fromkeys(LAW, 0), "consumed": 11, "applied": 11}


@pytest.fixture
def ready(kafka: str, registry: str) -> None:
    """Topics and schemas are there."""
    topics.create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        register_all(client)


def test_it_can_be_stopped_while_it_waits_for_a_registry_that_is_down(
    kafka: str, registry: str, ready: None, tmp_path: Path
) -> None:
    unknown = 2**30 + uuid4().int % 2**20  # a schema id that no registry has given
    with gate(registry) as door, (tmp_path / "log").open("wb") as log:
        given = {
            "ROSTER_KAFKA": kafka,
            "ROSTER_REGISTRY": door.url,
            "ROSTER_DATA": str(tmp_path),
        }
        command = [sys.executable, "-m", "tools", "meter", "--instance", uuid4().hex]
        with subprocess.Popen(command, env={**os.environ, **given}, stdout=log, stderr=log) as it:
            try:
                until(lambda: [r for r in read_all(tmp_path).values() if not r["note"]])
                door.closed.set()
                out = clients.Outbound(clients.producer(kafka))
                out.send(LLM_INVOCATION.name, b"t/e", frame(unknown, b""))
                out.flush()
                until(lambda: any("/schemas/ids/" in path for path in door.refused))
                begun = time.monotonic()
                it.send_signal(signal.SIGTERM)
                assert it.wait(20) == 0, (tmp_path / "log").read_text()
                assert time.monotonic() - begun < 5
            finally:
                it.kill()
