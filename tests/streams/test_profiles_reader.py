"""The workers' reader on a real broker and registry."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from schemas import ModelProfileActive
from streams import kafka as clients
from streams import topics
from streams.codec import encode
from streams.profiles_reader import ProfilesReader, Resolved
from streams.registry import Catalogue, Registry
from streams.topics import MODEL_PROFILE_ACTIVE

Publish = Callable[..., int]


@pytest.fixture(scope="module")
def publish(kafka: str, registry: str) -> Iterator[Publish]:
    """Appends an active profile (or a tombstone, or raw bytes) and returns its offset."""
    topics.create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        catalogue = Catalogue(client, [MODEL_PROFILE_ACTIVE])
        out = clients.producer(kafka)

        def send(
            scope: str,
            role: str,
            mode: str = "PRODUCTION",
            raw: bytes | None = None,
            **given: object,
        ) -> int:
            offsets: list[int] = []
            value = raw
            if raw is None and given:
                fields = {
                    "event_id": str(uuid4()),
                    "occurred_at_ms": 1,
                    "source": "test",
                    "scope": scope,
                    "role": role,
                    "deployment_mode": mode,
                    "version": 1,
                    "actor": "ann",
                    "cause_event_id": "x",
                    "cause_partition": 0,
                    "cause_offset": 0,
                    **given,
                }
                event = ModelProfileActive.model_validate(fields)
                value = encode(catalogue, MODEL_PROFILE_ACTIVE, event)
            out.produce(
                MODEL_PROFILE_ACTIVE.name,
                value=value,
                key=f"{scope}/{role}/{mode}".encode(),
                on_delivery=lambda _, message: offsets.append(message.offset() or 0),
            )
            assert out.flush(10) == 0
            return offsets[0]

        yield send


@pytest.fixture
def reader(kafka: str, registry: str, publish: Publish) -> Iterator[ProfilesReader]:
    with ProfilesReader(kafka, registry) as following:
        assert following.wait_ready(20), following.trouble
        yield following


def eventually(check: Callable[[], bool], within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def model(found: Resolved | None) -> str | None:
    return None if found is None else found.profile.model


def test_the_most_particular_layer_decides(publish: Publish, reader: ProfilesReader) -> None:
    role = f"role-{uuid4()}"
    t = f"t{uuid4().hex}"
    publish("system", role, model="p/system")
    publish("mode", role, model="p/mode")
    publish(f"tenant:{t}", role, model="p/tenant")
    last = publish(f"user:{t}/u1", role, model="p/user", version=7)
    assert eventually(lambda: len([p for p in reader.profiles() if p.role == role]) == 4)

    found = reader.get(role, "PRODUCTION", t, "u1")
    assert found is not None
    assert (model(found), found.layer, found.version, found.offset) == ("p/user", "user", 7, last)
    assert model(reader.get(role, "PRODUCTION", t, "someone else")) == "p/tenant"
    assert model(reader.get(role, "PRODUCTION", "elsewhere")) == "p/mode"
    assert model(reader.get(role, "PRODUCTION")) == "p/mode"
    assert reader.get(role, "TEST", t, "u1") is None

    for scope in (f"user:{t}/u1", f"tenant:{t}", "mode"):
        publish(scope, role)  # a tombstone
    assert eventually(lambda: model(reader.get(role, "PRODUCTION", t, "u1")) == "p/system")


def test_roles_and_modes_have_aliases(publish: Publish, reader: ProfilesReader) -> None:
    t = f"t{uuid4().hex}"
    publish(f"tenant:{t}", "dialogue", model="p/a")
    assert eventually(lambda: model(reader.get("Chat", "prod", t)) == "p/a")
    assert model(reader.get("dialogue", "enterprise", t)) == "p/a"


def test_a_bad_record_is_counted_and_the_profile_before_it_stands(
    publish: Publish, reader: ProfilesReader
) -> None:
    role = f"role-{uuid4()}"
    before = reader.skipped
    publish("system", role, model="p/good")
    for raw in (b"", b"\x00\x00", b"\x07garbage", b"\x00\x7f\xff\xff\xffunknown id"):
        publish("system", role, raw=raw)
    assert eventually(lambda: reader.skipped == before + 4)
    assert model(reader.get(role, "PRODUCTION")) == "p/good"
    publish("system", role, model="p/better")
    assert eventually(lambda: model(reader.get(role, "PRODUCTION")) == "p/better")


def test_staleness_stays_small_while_the_broker_answers_and_grows_when_it_does_not(
    reader: ProfilesReader, registry: str
) -> None:
    assert eventually(lambda: reader.staleness_ms is not None)
    samples = []
    for _ in range(20):
        time.sleep(0.1)
        samples.append(reader.staleness_ms)
    assert max(s for s in samples if s is not None) < 2_000
    with ProfilesReader("127.0.0.1:1", registry) as nowhere:
        assert not nowhere.wait_ready(0.5)
        assert nowhere.staleness_ms is None
        assert eventually(lambda: nowhere.trouble is not None)


def test_a_look_up_needs_no_network_and_about_a_microsecond(
    publish: Publish, reader: ProfilesReader
) -> None:
    t = f"t{uuid4().hex}"
    publish(f"tenant:{t}", "dialogue", model="p/a")
    assert eventually(lambda: model(reader.get("dialogue", "PRODUCTION", t)) == "p/a")
    best = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(2_000):
            reader.get("dialogue", "PRODUCTION", t, "u")
        best = min(best, (time.perf_counter() - begun) / 2_000)
    print(f"{best * 1e6:.2f} us per get")
    assert best < 5e-6  # 1.2 us measured on an idle machine


def test_many_threads_read_while_profiles_change(publish: Publish, reader: ProfilesReader) -> None:
    role = f"role-{uuid4()}"
    publish("system", role, model="p/0", version=0)
    assert eventually(lambda: reader.get(role, "PRODUCTION") is not None)
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        last = -1
        while not done.is_set():
            found = reader.get(role, "PRODUCTION")
            if found is None or found.version < last or found.profile.model != f"p/{found.version}":
                wrong.append(found)
                return
            last = found.version

    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    for n in range(1, 40):
        publish("system", role, model=f"p/{n}", version=n)
    assert eventually(lambda: model(reader.get(role, "PRODUCTION")) == "p/39")
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []


def test_close_ends_the_thread_and_what_was_read_stays(
    kafka: str, registry: str, publish: Publish
) -> None:
    role = f"role-{uuid4()}"
    publish("system", role, model="p/a")
    reader = ProfilesReader(kafka, registry)
    assert reader.wait_ready(20)
    reader.close()
    reader.close()
    assert not [t for t in threading.enumerate() if t.name == "roster-live-reader"]
    assert model(reader.get(role, "PRODUCTION")) == "p/a"


def test_close_ends_a_reader_that_waits_for_its_registry(kafka: str, publish: Publish) -> None:
    publish("system", f"role-{uuid4()}", model="p/a")
    reader = ProfilesReader(kafka, "http://127.0.0.1:1")
    assert not reader.wait_ready(1.0)
    begun = time.monotonic()
    reader.close()
    assert time.monotonic() - begun < 4
    assert not [t for t in threading.enumerate() if t.name == "roster-live-reader"]


def test_a_user_without_a_tenant_is_a_mistake_of_the_caller(reader: ProfilesReader) -> None:
    with pytest.raises(ValueError, match="tenant"):
        reader.get("dialogue", "PRODUCTION", user="u")


def test_the_reader_brings_neither_faust_nor_duckdb() -> None:
    heavy = "{'faust', 'duckdb', 'pyarrow', 'numpy'} & set(sys.modules)"
    code = f"import sys, streams.profiles_reader; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
