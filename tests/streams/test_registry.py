"""The real registry, and what is concluded from its answers."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from schemas import (
    EVENTS,
    Event,
    LlmInvocation,
    ModeChanged,
    ModelProfileScored,
    PaneFact,
    Position,
    Recorded,
    ScoringPolicyUpdated,
)
from schemas.avro import full_name, schema_text, stem
from streams.codec import decode_value, encode, frame
from streams.errors import BadConfiguration, Stopped, Unreachable
from streams.registry import UNKNOWN_FOR_S, Catalogue, Registry, register_all
from streams.topics import LLM_INVOCATION, MODE_CHANGED, TOPICS

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def client(registry: str) -> Iterator[Registry]:
    with Registry(registry) as made:
        yield made


def subject() -> str:
    return f"test-{uuid4().hex}"


def changed(change: Callable[[dict[str, Any]], None]) -> str:
    """The schema of an invocation, changed."""
    schema = json.loads(schema_text(LlmInvocation))
    change(schema)
    return json.dumps(schema)


def with_field(**field: Any) -> str:
    return changed(lambda s: s["fields"].append({"name": "region", "type": "string", **field}))


# --- registering


def test_a_schema_registered_again_keeps_its_id(client: Registry) -> None:
    mine = subject()
    first = client.register(mine, schema_text(LlmInvocation))
    assert client.register(mine, schema_text(LlmInvocation)) == first
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(lambda _: client.register(mine, schema_text(LlmInvocation)), range(8))
    assert set(again) == {first}
    assert json.loads(client.text(first) or "") == json.loads(schema_text(LlmInvocation))


def test_registering_everything_again_changes_nothing(client: Registry) -> None:
    before = register_all(client)
    known = set(client.subjects())
    after = register_all(client)
    for topic in TOPICS:
        for event in topic.events:
            assert topic.subject(event) in known
            assert before.id_of(topic, event) == after.id_of(topic, event)
    assert LLM_INVOCATION.subject(LlmInvocation) == "llm.invocation-roster.LlmInvocation"
    assert set(client.subjects()) == known


def test_every_subject_demands_full_transitive(client: Registry, registry: str) -> None:
    register_all(client)
    for topic in TOPICS:
        for event in topic.events:
            answer = httpx.get(f"{registry}/config/{topic.subject(event)}").json()
            assert answer["compatibilityLevel"] == "FULL_TRANSITIVE"


def test_what_could_not_be_read_by_old_or_new_code_is_refused(client: Registry) -> None:
    mine = subject()
    first = client.register(mine, schema_text(LlmInvocation))
    client.set_compatibility(mine)
    no_default = with_field()
    gone = changed(lambda s: s["fields"].pop(0))
    other_type = changed(lambda s: s["fields"][1].update(type="string"))
    for text in (no_default, gone, other_type):
        with pytest.raises(BadConfiguration, match=f"schema of {mine} was refused") as error:
            client.register(mine, text)
        assert "\n" not in str(error.value)
    assert client.register(mine, schema_text(LlmInvocation)) == first


def test_a_field_with_a_default_is_a_new_version(client: Registry) -> None:
    mine = subject()
    first = client.register(mine, schema_text(LlmInvocation))
    client.set_compatibility(mine)
    second = client.register(mine, with_field(default=""))
    assert second != first
    third = changed(lambda s: s["fields"].append({"name": "zone", "type": "int", "default": 0}))
    assert client.register(mine, third) not in {first, second}


CHANGED: list[type[Event]] = [event for event in EVENTS if event.VERSION > 1]


def released(event: type[Event], version: int) -> str:
    """Text of a released schema, as it was registered."""
    name = f"{stem(event).rpartition('.v')[0]}.v{version}.avsc"
    schema = json.loads((files("schemas") / "avsc" / name).read_text(encoding="utf-8"))
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


def test_there_are_events_of_several_versions() -> None:
    assert {ScoringPolicyUpdated, PaneFact, ModelProfileScored} <= set(CHANGED)


@pytest.mark.parametrize("event", CHANGED, ids=lambda event: event.NAME)
def test_every_version_is_full_transitive_compatible_with_those_before(
    client: Registry, event: type[Event]
) -> None:
    for order in (1, -1):  # an older producer may register its version after ours
        mine = subject()
        texts = [released(event, version) for version in range(1, event.VERSION + 1)][::order]
        first = client.register(mine, texts[0])
        client.set_compatibility(mine)
        ids = [first, *(client.register(mine, text) for text in texts[1:])]
        assert len(set(ids)) == event.VERSION
    assert client.register(mine, schema_text(event)) == ids[0], "the newest text is the same"


OLDEST = Path(__file__).parent.parent / "schemas" / "oldest.txt"


@pytest.mark.parametrize("event", CHANGED, ids=lambda event: event.NAME)
def test_a_record_of_the_first_version_is_read_with_defaults(
    client: Registry, event: type[Event]
) -> None:
    """On a registry that has held the first version since before this one came."""
    topic = next(topic for topic in TOPICS if event in topic.events)
    old = client.register(topic.subject(event), released(event, 1))
    catalogue = Catalogue(client, [topic])
    assert old != catalogue.id_of(topic, event)
    lines = dict(line.split("  ", 1) for line in OLDEST.read_text("utf-8").splitlines())
    datum = bytes.fromhex(lines[f"{stem(event).rpartition('.v')[0]}.v1.avsc"])
    at = Position(topic.name, 0, 0, 1_700_000_000_000)
    found = decode_value(catalogue, at, b"key", frame(old, datum))
    assert isinstance(found, Recorded), found
    added = set(event.model_fields) - {f["name"] for f in json.loads(released(event, 1))["fields"]}
    for name in added:
        assert getattr(found.event, name) == event.model_fields[name].get_default(), name
    again = decode_value(catalogue, at, b"key", encode(catalogue, topic, found.event))
    assert isinstance(again, Recorded)
    assert again.event == found.event


def test_compatibility_is_checked_against_all_versions(client: Registry) -> None:
    """v3 gives a field another type that v2 knew and v1 did not: only the last one would agree."""
    mine = subject()
    client.register(mine, with_field(default=""))
    client.set_compatibility(mine)
    client.register(mine, schema_text(LlmInvocation))
    with pytest.raises(BadConfiguration):
        client.register(mine, with_field(type="int", default=0))


def test_what_is_no_schema_is_refused(client: Registry) -> None:
    with pytest.raises(BadConfiguration, match="was refused"):
        client.register(subject(), '{"type": "nothing"}')


# --- asking


@pytest.mark.parametrize("schema_id", [0, -1, 2**31 - 1, -(2**31), 2**32 - 1])
def test_an_unknown_id_is_none(client: Registry, schema_id: int) -> None:
    assert client.text(schema_id) is None


def test_a_registry_that_is_down_is_unreachable_in_one_line() -> None:
    with Registry(NOWHERE, timeout_s=1) as client:
        for call in (
            lambda: client.register("s", "{}"),
            lambda: client.set_compatibility("s"),
            lambda: client.text(1),
            client.subjects,
            lambda: Catalogue(client, [MODE_CHANGED]),
            lambda: register_all(client),
        ):
            with pytest.raises(Unreachable, match="does not answer") as error:
                call()
            assert "\n" not in str(error.value)


@contextmanager
def answering(status: int, body: object = None) -> Iterator[str]:
    """URL of a server that gives one answer to everything: a proxy in front of a registry."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [401, 403, 407, 429, 500, 502, 503])
def test_a_refusal_says_nothing_about_an_id(status: int) -> None:
    """Records must not become dead letters because somebody stands in the way."""
    with (
        answering(status) as url,
        Registry(url) as client,
        pytest.raises(Unreachable, match=str(status)),
    ):
        client.text(1)


def test_the_answer_that_there_is_none_is_believed() -> None:
    with answering(404, {"error_code": 40403}) as url, Registry(url) as client:
        assert client.text(1) is None


# --- the catalogue


def test_a_catalogue_knows_what_it_writes(catalogue: Catalogue) -> None:
    for topic in TOPICS:
        for event in topic.events:
            writer = catalogue.writer(catalogue.id_of(topic, event))
            assert writer is not None
            assert (writer.event, writer.name, writer.ours) == (event, full_name(event), True)
    with pytest.raises(KeyError):
        catalogue.id_of(MODE_CHANGED, LlmInvocation)


def test_a_schema_of_others_is_known_by_its_name(catalogue: Catalogue, client: Registry) -> None:
    newer = client.register(subject(), with_field(default=""))
    found = catalogue.writer(newer)
    assert found is not None
    assert (found.event, found.ours, found.schema_id) == (LlmInvocation, False, newer)
    other = client.register(subject(), '{"type":"record","name":"Other","fields":[]}')
    found = catalogue.writer(other)
    assert found is not None
    assert (found.event, found.name) == (None, "Other")


def test_an_id_that_is_registered_later_becomes_known(
    catalogue: Catalogue, client: Registry
) -> None:
    """A record with a made-up id must not ban the schema that is given this id next."""
    last = client.register(subject(), with_field(default=str(uuid4())))
    after = range(last + 1, last + 200)  # other tests register at the same time
    assert all(catalogue.writer(n) is None for n in after)
    fresh = client.register(subject(), with_field(default=str(uuid4())))
    if fresh not in after:
        pytest.skip("this registry does not count its ids up")
    until = time.monotonic() + UNKNOWN_FOR_S + 5
    while catalogue.writer(fresh) is None:
        assert time.monotonic() < until, "still unknown"
        time.sleep(0.05)


def test_an_unknown_id_is_not_asked_for_with_every_record(registry: str) -> None:
    class Counting(Registry):
        asked = 0

        def text(self, schema_id: int) -> str | None:
            self.asked += 1
            return super().text(schema_id)

    with Counting(registry) as client:
        catalogue = Catalogue(client, [MODE_CHANGED])
        for _ in range(5_000):
            assert catalogue.writer(0) is None
        assert client.asked <= 3


def test_while_the_registry_is_down_an_id_is_waited_for(registry: str) -> None:
    class Down(Registry):
        until = 0.0

        def text(self, schema_id: int) -> str | None:
            if time.monotonic() < self.until:
                raise Unreachable("down")
            return super().text(schema_id)

    with Down(registry) as client:
        catalogue = Catalogue(client, [MODE_CHANGED])
        other = client.register(subject(), with_field(default="x"))
        client.until = time.monotonic() + 1.2
        with pytest.raises(Unreachable):
            catalogue.writer(other, patience_s=0)
        assert catalogue.writer(other) is not None
        assert time.monotonic() >= client.until


def test_waiting_ends_when_the_process_is_to_end(registry: str) -> None:
    stopping = threading.Event()
    with Registry(registry) as client, Registry(NOWHERE) as down:
        catalogue = Catalogue(client, [MODE_CHANGED], stopping.is_set)
        catalogue._registry = down  # it was there when the process began
        timer = threading.Timer(0.7, stopping.set)
        timer.start()
        begun = time.monotonic()
        with pytest.raises(Stopped):
            catalogue.writer(2**31 - 1)
        assert 0.7 <= time.monotonic() - begun < 3
        timer.join()
        known = catalogue.id_of(MODE_CHANGED, ModeChanged)
        assert catalogue.writer(known) is not None  # what needs no wait is answered still
