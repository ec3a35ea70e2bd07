"""Anybody can read the log: a plain client, with nothing of ours, sees what our code wrote."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Message

from schemas import Event, LlmInvocation, ModelProfileActive
from streams import kafka as clients
from streams.codec import FOLDED, encode, tenant_key
from streams.registry import Catalogue, Registry, register_all
from streams.topics import LLM_INVOCATION, MODEL_PROFILE_ACTIVE, Topic, create
from tests.support.events import good

READER = """
import json, sys
from confluent_kafka import DeserializingConsumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer

bootstrap, registry, topic, partition, offset, n = sys.argv[1:]
consumer = DeserializingConsumer({
    "bootstrap.servers": bootstrap,
    "group.id": "somebody-else",
    "value.deserializer": AvroDeserializer(SchemaRegistryClient({"url": registry})),
})
consumer.assign([TopicPartition(topic, int(partition), int(offset))])
for _ in range(int(n)):
    message = consumer.poll(30)
    print(json.dumps({"key": message.key().decode(), "value": message.value()}))
consumer.close()
ours = {"schemas", "streams", "processors", "projections", "tools"} & set(sys.modules)
sys.exit(f"imported {ours}" if ours else 0)
"""


def plainly(
    folder: Path, kafka: str, registry: str, topic: Topic, partition: int, offset: int, n: int
) -> list[dict[str, Any]]:
    """What a process that knows nothing of us reads; it stands in another folder, isolated."""
    told = (kafka, registry, topic.name, str(partition), str(offset), str(n))
    found = subprocess.run(
        [sys.executable, "-I", "-c", READER, *told],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


NOW_MS = time.time_ns() // 1_000_000
WRITTEN: tuple[tuple[Topic, Event], ...] = (
    (
        LLM_INVOCATION,
        good(
            LlmInvocation,
            event_id=f"open-{uuid4()}",
            occurred_at_ms=NOW_MS,
            tenant="open",
            role="диалог",
            outcome="REFUSAL",
            reported_cost_picousd=2**63 - 1,
            first_token_us=7,
            error_code="=1+1 🦊",
        ),
    ),
    (
        MODEL_PROFILE_ACTIVE,
        good(
            ModelProfileActive,
            event_id=f"open-{uuid4()}",
            scope=f"tenant:t{uuid4().hex}",
            fallbacks=["p/a", "p/b"],
            temperature=0.7,
            max_tokens=100,
            extra='{"top_p": 0.5}',
        ),
    ),
)


@pytest.mark.parametrize(("topic", "event"), WRITTEN, ids=[t.name for t, _ in WRITTEN])
def test_a_plain_client_reads_what_our_code_wrote(
    tmp_path: Path, kafka: str, registry: str, topic: Topic, event: Event
) -> None:
    create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        catalogue: Catalogue = register_all(client)
    key = tenant_key(event) if isinstance(event, FOLDED) else b"open/key"
    landed: list[tuple[int, int]] = []
    producer = clients.producer(kafka)

    def note(_: object, message: Message) -> None:
        landed.append((message.partition() or 0, message.offset() or 0))

    for _ in range(2):
        producer.produce(topic.name, encode(catalogue, topic, event), key, on_delivery=note)
        assert producer.flush(30) == 0
    (partition, offset), _ = landed
    first = plainly(tmp_path, kafka, registry, topic, partition, offset, 1)[0]
    assert first == {"key": key.decode(), "value": event.model_dump(mode="json")}
