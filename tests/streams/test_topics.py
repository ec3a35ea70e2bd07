"""Topics are made as declared, once, and what differs is told."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from schemas import EVENTS, ClockTick
from streams import kafka as clients
from streams import topics
from streams.errors import Unreachable
from streams.topics import BY_NAME, HOT, KEYED, TOPICS, Topic, changelogs, create, drift

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def admin(kafka: str) -> AdminClient:
    made = clients.admin(kafka)
    create(made, 1)
    return made


# --- the declaration


def test_every_topic_is_declared_once_and_every_event_has_one_but_ticks() -> None:
    names = [topic.name for topic in (*TOPICS, *changelogs())]
    assert len(set(names)) == len(names)
    assert set(BY_NAME) == {topic.name for topic in TOPICS}
    carried = [event for topic in TOPICS for event in topic.events if event is not ClockTick]
    assert len(set(carried)) == len(carried)
    assert {*carried, ClockTick} == set(EVENTS)


def test_an_event_has_the_name_of_its_topic_where_it_is_the_only_one() -> None:
    different = {topic.name: topic.events[0].NAME for topic in TOPICS if len(topic.events) == 1}
    different = {name: event for name, event in different.items() if name != event}
    assert different == {"late.events": "late.event", "dead.letters": "dead.letter"}


def test_the_log_is_kept_for_ever_and_published_state_is_compacted() -> None:
    for topic in (*TOPICS, *changelogs()):
        config = topic.config()
        assert config["message.timestamp.type"] == "LogAppendTime"
        if topic.compacted:
            assert config["cleanup.policy"] == "compact"
            assert topic.internal, "a compacted topic forgets; it is not truth"
        else:
            assert config["cleanup.policy"] == "delete"
            assert config["retention.ms"] == config["retention.bytes"] == "-1"


def test_topics_that_meet_in_a_table_have_one_count_of_partitions() -> None:
    for together in (
        (topics.MODEL_PROFILE_UPDATED, topics.MODEL_PROFILE_ACTIVE, topics.MODEL_PROFILE_REJECTED),
        (topics.SLM_METRICS, topics.MODEL_PROFILE_SCORED),
    ):
        assert {topic.partitions for topic in together} == {KEYED}
    assert {topic.partitions for topic in changelogs()} == {KEYED}
    assert topics.LLM_INVOCATION.partitions == HOT


# --- on the broker


def test_making_topics_again_makes_none(admin: AdminClient) -> None:
    assert create(admin, 1) == []
    assert drift(admin) == []


def test_topics_are_on_the_broker_as_declared(admin: AdminClient) -> None:
    found = admin.list_topics(timeout=10).topics
    wanted = {topic.name: topic for topic in (*TOPICS, *changelogs())}
    assert set(wanted) <= set(found)
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in wanted]
    for resource, future in admin.describe_configs(resources).items():
        topic = wanted[resource.name]
        config = {name: entry.value for name, entry in future.result(20).items()}
        assert topic.config().items() <= config.items(), topic.name
        assert config["min.insync.replicas"] == "1"
        assert len(found[topic.name].partitions) == topic.partitions


def test_a_topic_that_is_gone_is_told_and_made_again(
    admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Topic(f"test.topics.{uuid4().hex[:8]}", partitions=3)
    monkeypatch.setattr(topics, "TOPICS", (*TOPICS, fresh))
    assert drift(admin) == [f"{fresh.name}: missing"]
    assert create(admin, 1) == [fresh.name]
    eventually(lambda: drift(admin) == [])


def test_another_count_of_partitions_is_told(
    admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test.topics.{uuid4().hex[:8]}"
    monkeypatch.setattr(topics, "TOPICS", (Topic(name, partitions=2),))
    create(admin, 1)
    monkeypatch.setattr(topics, "TOPICS", (Topic(name, partitions=5),))
    eventually(lambda: drift(admin) == [f"{name}: 2 partitions, declared are 5"])
    assert create(admin, 1) == [], "partitions are never added: keys would move"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("retention.ms", "86400000"),
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "CreateTime"),
    ],
)
def test_another_setting_on_the_broker_is_told(
    admin: AdminClient, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    """A log that forgets, or whose times are the producers', is not the one that was declared."""
    topic = Topic(f"test.topics.{uuid4().hex[:8]}")
    monkeypatch.setattr(topics, "TOPICS", (topic,))
    create(admin, 1)
    change = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic.name, incremental_configs=[change])
    next(iter(admin.incremental_alter_configs([resource]).values())).result(20)
    wanted = f"{topic.name}: {setting} is {value}, declared is {topic.config()[setting]}"
    eventually(lambda: drift(admin) == [wanted])


def eventually(condition: Callable[[], Any], within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def nowhere() -> Iterator[AdminClient]:
    yield clients.admin(NOWHERE)


def test_a_broker_that_is_down_is_one_line(nowhere: AdminClient) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: create(nowhere, 1, 0.3),
        lambda: drift(nowhere, 0.3),
    )
    for call in calls:
        with pytest.raises(Unreachable, match="the broker does not answer") as error:
            call()
        assert "\n" not in str(error.value)


def test_more_replicas_than_brokers_is_refused_in_one_line(
    admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "TOPICS", (Topic(f"test.topics.{uuid4().hex[:8]}"),))
    with pytest.raises(Unreachable, match="could not be made") as error:
        create(admin, 3)
    assert "\n" not in str(error.value)
